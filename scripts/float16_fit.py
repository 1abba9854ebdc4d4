"""What the arithmetic of the Triton kernels costs in PSNR, imitated on a processor: fits of one picture by a SIREN.

    python scripts/float16_fit.py --image div2k/03.png [--side 96] [--width 96] [--steps 1000] [--seeds 0 1]

Products of float16 numbers are exact in float32, so that rounding the operands is all there is to imitate: values,
hidden weights and the gradients between the layers, scaled as ops/triton_sums.py scales them, and phases of 16 bits.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from aire_nerfstudio.fields.sine_mlp import SineMLP

LARGEST = 3e4


class _Imitated(torch.autograd.Function):
    """A SIREN of points ``[n, 2]``: weights, then biases."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, omegas: tuple[float, ...], *parameters: Tensor) -> Tensor:
        weights, biases = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]
        values, phases = [x], []
        for index, omega in enumerate(omegas):
            weight = weights[index] if index == 0 else _half(weights[index])
            turns = omega * (values[-1] @ weight.T + biases[index]) / (2 * math.pi)
            turns = turns - turns.round()
            last = torch.sin(2 * math.pi * turns)
            values.append(_half(last))
            phases.append(turns if index == 0 else (turns * 65536).round() / 65536)
        ctx.omegas = omegas
        ctx.save_for_backward(*weights, *values, *phases)
        return last @ weights[-1].T + biases[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        layers = len(ctx.omegas)
        weights, values, phases = (
            ctx.saved_tensors[: layers + 1],
            ctx.saved_tensors[layers + 1 : 2 * layers + 2],
            ctx.saved_tensors[2 * layers + 2 :],
        )
        d_weights, d_biases = [grad.T @ torch.sin(2 * math.pi * phases[-1])], [grad.sum(0)]
        scale, largest = 1.0, float(grad.abs().max())
        for index in reversed(range(layers)):
            is_last = index == layers - 1
            weight = weights[index + 1] if is_last else _half(weights[index + 1])
            bound = largest * float(weights[index + 1].abs().sum(0).max()) * ctx.omegas[index]
            factor = LARGEST / max(bound, 1e-30)
            grad = factor * (grad @ weight) * ctx.omegas[index] * torch.cos(2 * math.pi * phases[index])
            scale, largest = scale * factor, float(grad.abs().max())
            d_biases.append(grad.sum(0) / scale)
            d_weights.append((grad if index == 0 else _half(grad)).T @ values[index] / scale)
            grad = _half(grad)
        return None, None, *d_weights[::-1], *d_biases[::-1]


def _half(t: Tensor) -> Tensor:
    return t.half().float()


def main() -> None:
    """Fit in both ways from the same start, print the PSNRs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--side", type=int, default=96, help="of the picture's middle, in pixels")
    parser.add_argument("--width", type=int, default=96, help="of three sine layers")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    given = parser.parse_args()
    picture = Image.open(given.image).convert("RGB")
    left, top = ((size - given.side) // 2 for size in picture.size)
    picture = picture.crop((left, top, left + given.side, top + given.side))
    target = 2 * torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(-1, 3) / 255 - 1
    at = (torch.arange(given.side) + 0.5) * 2 / given.side - 1
    x = torch.stack(torch.meshgrid(at, at, indexing="ij"), -1).view(-1, 2)
    for seed in given.seeds:
        torch.manual_seed(seed)
        start = SineMLP(2, [given.width] * 3, 3)
        found = {}
        for name in ("float32", "imitated"):
            network, begin = copy.deepcopy(start), time.perf_counter()
            parameters = [p for layer in network.affines() for p in (layer.weight, layer.bias)]
            optimizer = torch.optim.Adam(parameters, 5e-4)
            rates = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1 / given.steps))
            for _ in range(given.steps):
                optimizer.zero_grad()
                y = network(x) if name == "float32" else _imitated(network, x)
                (y - target).square().mean().backward()
                optimizer.step()
                rates.step()
            with torch.no_grad():
                # Both by float32: what training cost, not evaluation.
                found[name] = _psnr(network(x), target)
            found[f"{name}, s"] = time.perf_counter() - begin
        with torch.no_grad():
            found["evaluated so"] = _psnr(_imitated(network, x), target)
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()), flush=True)


def _imitated(network: SineMLP, x: Tensor) -> Tensor:
    weights, biases, _, omegas, *_ = network.for_ops()
    return _Imitated.apply(x, tuple(omegas), *weights, *biases)


def _psnr(y: Tensor, target: Tensor) -> float:
    """In decibels, for values in [-1, 1]."""
    return float(-10 * torch.log10((y - target).square().mean() / 4))


if __name__ == "__main__":
    main()
