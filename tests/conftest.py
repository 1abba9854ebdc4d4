"""Every test starts from the same seeds, so that tests pass in any order."""

import random

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - nerfstudio draws from the global generator
    torch.manual_seed(0)
