"""Every test starts from the same seeds and settings, so that tests pass in any order."""

import os
import random
import shutil
import tempfile
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

# Shapes and types of every call across these boundaries are checked (aire_nerfstudio/shapes.py).
CHECKED = [
    *("fields", "losses", "analysis", "ops.compositing", "ops.ray_marching", "ops.sphere_tracing"),
    *("adaptation.surgery", "adaptation.importance", "adaptation.decay", "adaptation.compensation"),
    "adaptation.frequencies",
]
# The demo scene and the built-in picture are made anew for the tests, not taken from, or left in, the user's cache; and
# methods say where they lie once they are imported.
CACHE = Path(tempfile.mkdtemp(prefix="aire-cache-"))
os.environ["AIRE_CACHE"] = str(CACHE)
jaxtyping.install_import_hook([f"aire_nerfstudio.{room}" for room in CHECKED], "typechecking.check")


# Networks here are tiny: a second thread would only wait, and for long where the machine has other work.
torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def pytest_unconfigure():
    """The processes that only share tests out have made a cache, too."""
    shutil.rmtree(CACHE, ignore_errors=True)


def pytest_collection_modifyitems(items):
    """The longest files first, then those that start processes: a worker that meets one last is waited for."""
    longest = ("test_on_cuda", "test_viewer_browser", "test_triton_network", "test_triton_derivatives")
    starts = ("run_command", "_run", "fork", "killed")

    def place(item):
        name = item.module.__name__
        if name in longest:
            return longest.index(name)
        is_starting = name.startswith("test_triton") or any(hasattr(item.module, start) for start in starts)
        return len(longest) + (not is_starting)

    items.sort(key=place)


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - nerfstudio draws from the global generator
    torch.manual_seed(0)
    # A trainer made in a test sets its own.
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def unchecked_shapes():
    """For tests of what a function itself says to wrong shapes: nobody is asked before it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def demo():
    """The demo scene's folder."""
    from aire_nerfstudio.data.demo_scene import ensure_demo_scene

    return ensure_demo_scene()


@pytest.fixture(scope="session")
def lego():
    """The reduced Lego scene, real benchmark data that lies beside the checkout."""
    folder = SHARED / "lego_200"
    if not folder.is_dir():
        pytest.skip("real data: ../shared/data/lego_200 is not there")
    return folder
