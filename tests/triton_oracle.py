"""What checks of Triton's derivatives have in common: networks in both precisions, and how near their results are."""

from __future__ import annotations

import copy
import os
import sys

import torch
from torch import Tensor

from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops import triton_launches

ACTIVATION, DEVICE = sys.argv[1], sys.argv[2]
# Tiles by pointers, as before Hopper, instead of descriptors.
triton_launches.COPY_ENGINE_WITHOUT_DEVICE = "pointers" not in sys.argv
# There the interpreter has tried all shapes by itself.
IS_SHORT = "emulated_device" in sys.modules or "pointers" in sys.argv
# Of gradients: a few times what float16's rounding of each layer's values makes of the phases of the next.
ALLOWED = 1e-2


def relative(got: Tensor, expected: Tensor) -> float:
    """Distance over the expected one's size."""
    return float((got.detach().double() - expected.detach()).norm() / expected.detach().norm().clamp_min(1e-300))


def twins(widths: tuple[int, ...], d: int, omega: float = 10.0) -> tuple[SineMLP, SineMLP]:
    """A network, and the same in double precision."""
    network = SineMLP(d, widths, 1, ACTIVATION, omega, omega).to(DEVICE)
    return network, copy.deepcopy(network).double()


def compare(found: tuple[Tensor, ...], expected: tuple[Tensor | None, ...], allowed: float) -> None:
    """All within ``allowed``; what the reference has no gradient for is 0."""
    for a, b in zip(found, expected, strict=True):
        if b is None or not b.any():
            assert not a.any(), a
        else:
            assert a.shape == b.shape
            assert a.dtype == torch.float32
            assert relative(a, b) < allowed, relative(a, b)


def done() -> None:
    """Say so and go."""
    print("checked", flush=True)
    # With an emulated device, autograd's thread for it may still be there when libraries are unloaded.
    os._exit(0)
