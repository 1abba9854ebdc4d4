"""Whether training data are those of another run, without keeping them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

# In the metadata of what is trained on.
FINGERPRINT = "fingerprint"


def fingerprint(parts: Iterable[Tensor | np.ndarray | str]) -> str:
    """A digest that two sets of data share where they are alike to the bit.

    Args:
        parts: arrays of any shape and type, and words, in an order of their own.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(f"{len(part)} {part}".encode())
            continue
        array: Any = np.ascontiguousarray(torch.as_tensor(part).detach().cpu().numpy())
        digest.update(f"{array.dtype} {array.shape} ".encode())
        digest.update(array.view(np.uint8).reshape(-1).data if array.size else b"")
    return digest.hexdigest()[:32]
