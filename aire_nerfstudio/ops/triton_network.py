"""A sine network on CUDA through Triton: float16 products, float32 sums, first layer, weights and phases.

Used where ``torch.set_float32_matmul_precision`` is ``medium``; the others take PyTorch's float32 and TF32.
Gradients are scaled by their largest before they become float16, and back after: none underflows for the loss's size.

=================  ==============  ================================================================
derivative         compiled        remark
=================  ==============  ================================================================
weights, biases    yes             dW is summed over a fixed split of the rows: the same bits every time
x                  yes             where ``x`` asks for it
second (all)       by reference    with ``create_graph``, in float32
=================  ==============  ================================================================
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aire_nerfstudio.ops.activations import Activation
from aire_nerfstudio.ops.arguments import fit_together, is_transformed
from aire_nerfstudio.ops.processors import matmul_precision

KINDS = {("siren", False): 0, ("finer", False): 1, ("finer", True): 2, ("spder", False): 3}
# Inputs and outputs of up to so many columns are multiplied in float32.
NARROW = 8
# Below so many rows launching costs more than is saved.
FEWEST_ROWS = 1024
SHARES = 32
# What gradients between layers are kept below; float16 ends at 65,504.
LARGEST = 3e4


def is_possible(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> bool:
    """Whether a network at ``x [..., d]`` may and can run here: float32 on CUDA, no autocast, precision ``medium``."""
    if x.device.type != "cuda" or x.dtype != torch.float32 or matmul_precision() != "medium":
        return False
    if torch.is_autocast_enabled("cuda") or is_transformed() or missing() is not None:
        return False
    if x.dim() == 0 or x.shape[-1] > NARROW or x.numel() < FEWEST_ROWS * max(1, x.shape[-1]):
        return False
    if len(weights) < 2 or not fit_together(x, weights, biases):
        return False
    return all(t.dtype == torch.float32 and t.device == x.device for t in (*weights, *biases))


@functools.cache
def missing() -> str | None:
    """What Triton lacks here, said once as well; None where it can compile."""
    reason = None
    if importlib.util.find_spec("triton") is None:
        reason = "triton is not installed; pip install triton"
    elif not os.environ.get("CC") and not any(shutil.which(name) for name in ("gcc", "clang", "cc")):
        reason = "triton finds no C compiler: neither gcc nor clang is on the PATH; install one or set CC"
    elif not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        reason = "triton finds no Python.h; install Python's development files (python3-dev)"
    if reason is not None:
        warnings.warn(f"Triton's kernels are not used, PyTorch's are: {reason}", stacklevel=3)
    return reason


def triton_network(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation, omegas: Sequence[float],
    detach_finer_scale: bool = False,
) -> Tensor:  # fmt: skip
    """A sine network at ``x [..., d]``, ``d <= 8``, as ``sine_network.reference`` defines it, ``[..., out]``."""
    kind = KINDS[activation, detach_finer_scale and activation == "finer"]
    settings = (activation, tuple(map(float, omegas)), detach_finer_scale, kind, torch.is_grad_enabled())
    return _TritonNetwork.apply(x, settings, *weights, *biases)


class _TritonNetwork(torch.autograd.Function):
    """A launch a layer each way; kept are float16 values, and of each z the phase in 16 bits (SIREN) or z."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: tuple, *parameters: Tensor) -> Tensor:
        _, omegas, _, kind, is_grad_enabled = settings
        count = len(parameters) // 2
        weights, biases = [p.detach() for p in parameters[:count]], [p.detach() for p in parameters[count:]]
        rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
        keeps = is_grad_enabled and any(ctx.needs_input_grad)
        if not keeps and can_fuse(weights):
            y = _fused(rows, weights, biases, omegas, kind)
            return y.view(*x.shape[:-1], y.shape[-1])
        values, kept = _forward(rows, weights, biases, omegas, kind, keeps)
        y = torch.addmm(biases[-1], values[-1][:, : weights[-1].shape[1]].float(), weights[-1].T)
        if keeps:
            ctx.settings, ctx.count = settings, len(values)
            ctx.save_for_backward(x, *values, *kept, *parameters)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        from aire_nerfstudio.ops.sine_network import backward_by_reference

        x, *saved = ctx.saved_tensors
        values, kept, parameters = saved[: ctx.count], saved[ctx.count : 2 * ctx.count], saved[2 * ctx.count :]
        if torch.is_grad_enabled():
            return backward_by_reference(ctx, x, parameters, grad)
        rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
        gy = grad.detach().reshape(len(rows), parameters[-1].numel())
        # An empty batch, and a gradient of zero, have no largest.
        scale = gy.abs().amax().clamp_min(torch.finfo(torch.float32).tiny) if gy.numel() else gy.new_ones(())
        dx, gradients = _backward(rows, gy / scale, parameters, values, kept, ctx.settings, ctx.needs_input_grad[0])
        wanted = [g * scale if need else None for g, need in zip(gradients, ctx.needs_input_grad[2:], strict=True)]
        return None if dx is None else (dx * scale).view(x.shape), None, *wanted


def can_fuse(weights: Sequence[Tensor]) -> bool:
    """Whether a network is narrow enough to be evaluated in one launch."""
    from aire_nerfstudio.ops import triton_kernels as kernels

    widest = max(weight.shape[0] for weight in weights[:-1])
    return widest <= kernels.FUSED_WIDTHS[-1] and weights[-1].shape[0] <= kernels.FUSED_OUT


def _fused(rows: Tensor, weights: list[Tensor], biases: list[Tensor], omegas: Sequence[float], kind: int) -> Tensor:
    from aire_nerfstudio.ops import triton_kernels as kernels

    widest = max(weight.shape[0] for weight in weights[:-1])
    width = next(w for w in kernels.FUSED_WIDTHS if widest <= w)
    layers, out = len(weights) - 1, weights[-1].shape[0]
    first = _padded(weights[0], width, rows.shape[1], dtype=torch.float32)
    hidden = torch.zeros(max(1, layers - 1), width, width, dtype=torch.float16, device=rows.device)
    bias = torch.zeros(layers, width, device=rows.device)
    for index in range(layers):
        bias[index, : len(biases[index])] = biases[index]
        if index > 0:
            hidden[index - 1, : weights[index].shape[0], : weights[index].shape[1]] = weights[index]
    high = weights[-1].half()
    parts = [high, (weights[-1] - high.float()).half()]
    last = torch.stack([_padded(part, kernels.FUSED_OUT, width, dtype=torch.float16) for part in parts])
    last_bias = _padded(biases[-1], kernels.FUSED_OUT, dtype=torch.float32)
    y = torch.empty(len(rows), out, device=rows.device)
    if len(rows):
        kernels.fused_forward[(-(-len(rows) // kernels.FUSED_ROWS),)](
            rows, first, hidden, last, bias, last_bias, torch.tensor(omegas, device=rows.device), y,
            len(rows), rows.shape[1], out,
            LAYERS=layers, KIND=kind, WIDTH=width, OUT=kernels.FUSED_OUT, ROWS=kernels.FUSED_ROWS,
            num_warps=kernels.FUSED_WARPS,
        )  # fmt: skip
    return y


def _up(n: int, to: int) -> int:
    return -(-n // to) * to


def _padded(t: Tensor, *shape: int, dtype: torch.dtype) -> Tensor:
    """``t`` with zeros behind it in both directions."""
    out = torch.zeros(shape, dtype=dtype, device=t.device)
    out[tuple(slice(n) for n in t.shape)] = t
    return out


def _forward(
    rows: Tensor, weights: list[Tensor], biases: list[Tensor], omegas: Sequence[float], kind: int, keeps: bool
) -> tuple[list[Tensor], list[Tensor]]:
    from aire_nerfstudio.ops import triton_kernels as kernels

    h, values, kept = rows, [], []
    for index, omega in enumerate(omegas):
        is_first = index == 0
        weight, columns = weights[index], _up(weights[index].shape[0], kernels.PAD)
        depth = rows.shape[1] if is_first else h.shape[1]
        padded = _padded(weight, columns, depth, dtype=torch.float32 if is_first else torch.float16)
        bias = _padded(biases[index], columns, dtype=torch.float32)
        value = torch.empty(len(rows), columns, dtype=torch.float16, device=rows.device)
        keep = torch.empty_like(value, dtype=torch.int16 if kind == 0 else torch.float32) if keeps else value
        if len(rows):
            wide, warps = kernels.columns_and_warps(columns, is_first)
            grid = (-(-len(rows) // kernels.ROWS), columns // wide)
            kernels.layer_forward[grid](
                h, padded, bias, value, keep, len(rows), depth, columns, float(omega),
                KIND=kind, NARROW=is_first, KEEP=keeps,
                ROWS=kernels.ROWS, COLUMNS=wide, DEPTH=kernels.DEPTH, num_warps=warps,
            )  # fmt: skip
        values.append(value)
        kept.append(keep)
        h = value
    return values, kept


def _backward(
    rows: Tensor, gy: Tensor, parameters: list[Tensor], values: list[Tensor], kept: list[Tensor], settings: tuple,
    needs_dx: bool,
) -> tuple[Tensor | None, list[Tensor]]:  # fmt: skip
    from aire_nerfstudio.ops import triton_kernels as kernels

    omegas, kind = settings[1], settings[3]
    count = len(parameters) // 2
    weights = parameters[:count]
    d_weights: list[Tensor] = []
    d_biases = [gy.sum(0)]
    out = gy.shape[1]
    half = _padded(gy, len(rows), _up(out, kernels.PAD), dtype=torch.float16)
    d_weights.append(_outer(half, values[-1])[:out, : weights[-1].shape[1]])
    is_narrow = out <= NARROW
    scale = gy.new_ones(())
    grad = gy.contiguous() if is_narrow else half
    for index in reversed(range(len(omegas))):
        following, columns = weights[index + 1], values[index].shape[1]
        depth = grad.shape[1]
        padded = _padded(following, depth, columns, dtype=torch.float32 if is_narrow else torch.float16)
        # Float16 ends at 65,504: where the gradient might come near, it is made smaller, and larger again in the sums.
        bound = grad.abs().amax().float() * following.abs().sum(0).amax() if len(rows) else scale
        factor = (LARGEST / (bound * _largest_slope(kept[index], omegas[index], kind)).clamp_min(1e-30)).clamp_max(1.0)
        scale = scale * factor
        dz = torch.empty_like(values[index])
        if len(rows):
            wide, warps = kernels.columns_and_warps(columns, is_narrow)
            grid = (-(-len(rows) // kernels.ROWS), columns // wide)
            kernels.layer_backward[grid](
                grad, padded, kept[index], factor, dz, len(rows), depth, columns, float(omegas[index]),
                KIND=kind, NARROW=is_narrow,
                ROWS=kernels.ROWS, COLUMNS=wide, DEPTH=kernels.DEPTH, num_warps=warps,
            )  # fmt: skip
        is_narrow = False
        width, depth = weights[index].shape
        d_biases.append(dz.sum(0, dtype=torch.float32)[:width] / scale)
        if index > 0:
            d_weights.append(_outer(dz, values[index - 1])[:width, :depth] / scale)
        else:
            # Coordinates have more digits than float16: as the sum of two.
            high = rows.half()
            both = torch.cat([high, (rows - high.float()).half()], 1)
            parts = _outer(dz, _padded(both, len(rows), kernels.PAD, dtype=torch.float16))[:width]
            d_weights.append((parts[:, :depth] + parts[:, depth : 2 * depth]) / scale)
        grad = dz
    dx = grad[:, : weights[0].shape[0]].float() @ weights[0] / scale if needs_dx else None
    return dx, [*d_weights[::-1], *d_biases[::-1]]


def _largest_slope(kept: Tensor, omega: float, kind: int) -> Tensor | float:
    """A bound of the activation's derivative where it was evaluated."""
    if kind == 0 or not kept.numel():
        return omega
    size = kept.abs().amax()
    return omega * (1 + (omega * size).sqrt()) if kind == 3 else omega * (1 + 2 * size)


def _outer(grad: Tensor, x: Tensor) -> Tensor:
    """``grad^T x`` in float32, ``[n, k]``, of float16 ``[rows, n]`` and ``[rows, k]``, padded."""
    from aire_nerfstudio.ops import triton_kernels as kernels

    rows, n, k = len(grad), grad.shape[1], x.shape[1]
    if rows == 0:
        return torch.zeros(n, k, device=grad.device)
    share = _up(-(-rows // SHARES), kernels.DEPTH)
    shares = -(-rows // share)
    partial = torch.empty(shares, n, k, device=grad.device)
    (high, warps), (wide, _) = kernels.columns_and_warps(n), kernels.columns_and_warps(k)
    grid = (n // high, k // wide, shares)
    kernels.outer_product[grid](
        grad, x, partial, rows, n, k, share,
        BLOCK_N=high, BLOCK_K=wide, DEPTH=kernels.DEPTH, num_warps=warps,
    )  # fmt: skip
    return partial.sum(0)
