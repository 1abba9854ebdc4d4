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
from aire_nerfstudio.ops.triton_curvature import gradient_and_motion
from aire_nerfstudio.ops.triton_gradient import value_and_gradient

# Hidden layers of both tiles.
NETWORKS = ((64, 128, 64), "siren"), ((64, 64), "finer")

def steps(networks):
    for widths, activation in networks:
        for op, inputs in ((value_and_gradient, 3), (gradient_and_motion, 4)):
            network = SineMLP(inputs, widths, 1, activation)
            points = torch.rand(5000, inputs)
            first, second = op(points, *network.for_ops()[:4])
            (first.sum() + second.sum()).backward()
            with torch.no_grad():
                op(points, *network.for_ops()[:4])

found = compiled(lambda: steps(NETWORKS))
names = {name for name, _ in found}
print(*sorted(names))
for (name, _), kernel in found.items():
    spilled, registers = spills(kernel)
    assert spilled == 0, (name, spilled)
    is_product = name in {"last_forward", "adjoint", "tangent", "last_tangent", "reverse", "outer_products"}
    is_product |= name in {"tangents", "source", "last_source", "reverse_entry"}
    assert not is_product or "wgmma" in kernel.asm["ptx"], name
# Another generation's tensor cores have layouts of their own.
names_100 = {"last_forward", "adjoint", "tangent", "reverse", "tangents", "source"}
compiled(lambda: steps((((64, 64), "siren"),)), 100, names_100)
# Those that ask for most.
large = {"outer_products", "tangents", "reverse", "reverse_entry"}
for (name, _), kernel in compiled(lambda: steps(NETWORKS[:1]), 86, large).items():
    assert kernel.metadata.shared <= SMALL, (name, kernel.metadata.shared)
"""


PLAIN = """
import sys
import torch
from triton_compiling import SMALL, compiled, spills
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops import triton_adam
from aire_nerfstudio.ops.radiance import Network
from aire_nerfstudio.ops.triton_radiance import triton_radiance
from aire_nerfstudio.ops.triton_mean_square import triton_mean_square
from aire_nerfstudio.ops.triton_network import triton_network

names = set()

def steps(widths, activation, inputs, outputs):
    name, *detached = activation.split()
    network = SineMLP(inputs, widths, outputs, name, detach_finer_scale=bool(detached))
    x = torch.rand(5000, inputs, requires_grad=True)
    triton_network(x, *network.for_ops()).sum().backward()
    with torch.no_grad():
        triton_network(x, *network.for_ops())
    if outputs <= 4:
        triton_mean_square(x.detach(), torch.rand(5000, outputs), *network.for_ops()).backward()

# Both tiles, all activations, coordinates and features, few outputs and many.
CASES = [
    ((256, 256, 64), "siren", 2, 3), ((64, 128), "siren", 4, 4), ((64, 64), "finer", 12, 6),
    ((64,), "finer", 1, 1), ((100, 64), "spder", 4, 4), ((100,), "finer", 2, 3), ((64, 64), "finer detached", 2, 1),
]  # fmt: skip

def adam():
    parameters = [torch.zeros(300, requires_grad=True)]
    states = [{name: torch.zeros(300 if name != "step" else ()) for name in triton_adam.STATE}]
    for group, with_states in (({**triton_adam.NO_GROUP, "weight_decay": 0.1, "maximize": True}, states), (None, None)):
        stepping = triton_adam.TritonAdam(parameters, with_states, group)
        stepping.aim([torch.zeros(300)])
        stepping(torch.zeros(()), torch.zeros(()), torch.zeros((), dtype=torch.bool))

for (name, _), kernel in compiled(adam).items():
    assert spills(kernel)[0] == 0, name
    names.add(name)
for arguments in CASES:
    for (name, _), kernel in compiled(lambda: steps(*arguments)).items():
        spilled, registers = spills(kernel)
        assert spilled == 0, (name, arguments, spilled)
        is_product = name in {"layer_backward", "outer_product", "fused_forward", "affine"}
        is_product |= name == "layer_forward" and "tensordesc" in str(kernel.src.signature["x"])
        assert not is_product or "wgmma" in kernel.asm["ptx"], (name, arguments)
        names.add(name)
# Of a network with a branch what others have not. Both tiles, on Hopper and elsewhere.
def radiance(widths, activation):
    name, *detached = activation.split()
    options = {"detach_finer_scale": bool(detached)}
    density, colour = SineMLP(3, widths, 13, name, **options), SineMLP(15, (64, 64), 3, name, **options)
    parts = [Network.of(network.for_ops()) for network in (density, colour)]
    logarithm, rgb = triton_radiance(torch.rand(5000, 3), torch.rand(5000, 3), *parts, name, bool(detached))
    (logarithm.sum() + rgb.sum()).backward()

layers = {"layer_forward", "layer_backward", "next_scale"}
heaviest = (60, "spder"), (60, "siren")
for architecture, cases in ((90, ((120, "siren"), (60, "finer detached"), *heaviest)), (86, heaviest)):
    for widths, activation in cases:
        found = compiled(lambda: radiance((64, widths), activation), architecture, layers)
        assert any(kernel.src.signature.get("branch_grad") == "*fp32" for kernel in found.values())
        for (name, _), kernel in found.items():
            assert spills(kernel)[0] == 0, (architecture, name, activation, spills(kernel))
            assert architecture != 86 or kernel.metadata.shared <= SMALL, (name, kernel.metadata.shared)

# Consumers' GPUs.
for architecture, cases in ((86, CASES[:3]), (120, CASES[:1])):
    for arguments in cases:
        for (name, _), kernel in compiled(lambda: steps(*arguments), architecture).items():
            assert kernel.metadata.shared <= SMALL, (architecture, name, kernel.metadata.shared)
            assert spills(kernel)[0] == 0, (architecture, name)
for arguments in CASES[1:3]:
    compiled(lambda: steps(*arguments), 100)
# Of neurons there may be any number: kernels are the same.
many, others = (compiled(lambda: steps(widths, "siren", 2, 3)) for widths in ((64, 64), (60, 49)))
assert others.keys() <= many.keys(), sorted(others.keys() - many.keys())
print(*sorted(names))
"""


def test_networks_compile_without_spills_for_all_generations_and_once_for_all_widths(tmp_path):
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLAIN],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": paths},
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert {
        *("layer_forward", "layer_backward", "last_backward", "outer_product", "affine", "fused_forward"),
        *("pack", "total", "total_parts", "finish", "next_scale", "_begin", "_update"),
    } <= set(done.stdout.split())  # fmt: skip


def test_steps_on_derivatives_compile_for_hopper_without_spills_and_for_small_gpus(tmp_path):
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECK],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": paths},
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    launched = set(done.stdout.split())
    assert {"adjoint", "tangent_entry", "tangent", "last_tangent", "reverse", "outer_products"} <= launched
    assert {"frame", "tangents_entry", "tangents", "source", "last_source", "reverse_entry"} <= launched
