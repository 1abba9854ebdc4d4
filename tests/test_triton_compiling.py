"""The kernels that a step launches, compiled for GPUs that are not there."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

CHECK = """
import sys
import torch
from triton_compiling import SMALL, compiled, spills
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops.triton_gradient import value_and_gradient

def step():
    for widths, activation in (((256, 256, 128), "siren"), ((64, 64, 64), "siren"), ((64, 64, 64), "finer")):
        network = SineMLP(3, widths, 1, activation)
        value, gradient = value_and_gradient(torch.rand(5000, 3), *network.for_ops()[:4])
        (value.sum() + gradient.sum()).backward()

found = compiled(step)
names = {name for name, _ in found}
print(*sorted(names))
for (name, _), kernel in found.items():
    spilled, registers = spills(kernel)
    assert spilled == 0, (name, spilled)
    is_product = name in {"last_forward", "adjoint", "tangent", "last_tangent", "reverse", "outer_products"}
    assert not is_product or "wgmma" in kernel.asm["ptx"], name
for (name, _), kernel in compiled(step, 86).items():
    assert kernel.metadata.shared <= SMALL, (name, kernel.metadata.shared)
"""


def test_steps_on_derivatives_compile_for_hopper_without_spills_and_for_small_gpus(tmp_path):
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECK],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": paths},
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"last_forward", "adjoint", "tangent_entry", "tangent", "last_tangent", "reverse"} <= set(
        done.stdout.split()
    )
