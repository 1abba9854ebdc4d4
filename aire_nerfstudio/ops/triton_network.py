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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aire_nerfstudio.ops.activations import Activation
from aire_nerfstudio.ops.arguments import fit_together, is_transformed
from aire_nerfstudio.ops.processors import matmul_precision

KINDS = {("siren", False): 0, ("finer", False): 1, ("finer", True): 2, ("spder", False): 3}
# Inputs and outputs of up to so many columns, coordinates and colours, are multiplied in float32; inputs from WIDE on,
# a network's features, in float16. What lies between might be coordinates, which float16 would spoil.
NARROW, WIDE = 4, 9
# Below so many rows launching costs more than is saved.
FEWEST_ROWS = 1024
SHARES = 32


def is_possible(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> bool:
    """Whether a network at ``x [..., d]`` may and can run here: float32 on CUDA, no autocast, precision ``medium``."""
    if x.device.type != "cuda" or x.dtype != torch.float32 or matmul_precision() != "medium":
        return False
    if torch.is_autocast_enabled("cuda") or is_transformed() or missing() is not None:
        return False
    if x.dim() == 0 or NARROW < x.shape[-1] < WIDE or x.numel() < FEWEST_ROWS * max(1, x.shape[-1]):
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
    """A sine network at ``x [..., d]`` as ``sine_network.reference`` defines it, ``[..., out]``.

    Up to 4 inputs are multiplied in float32; more become float16, and must lie below its end, 65,504.
    """
    kind = KINDS[activation, detach_finer_scale and activation == "finer"]
    settings = (activation, tuple(map(float, omegas)), detach_finer_scale, kind, torch.is_grad_enabled())
    return _TritonNetwork.apply(x, settings, *weights, *biases)


class _Kept(NamedTuple):
    """What backward needs of forward, besides the parameters.

    Attributes:
        entry: what the first layer took: the points, or where they are wide their float16 form, ``[rows, d]``.
        values: of each sine layer, float16 ``[rows, n]``.
        phases: of each, 16-bit phases (SIREN) or z, ``[rows, n]``.
        packed: weights behind each sine layer in float16, ``[n', n]``.
        norms: largest sums down their columns, ``[m]`` each.
        sizes: largest |z| of each layer, ``[m]`` each, where z is kept.
    """

    entry: Tensor
    values: list[Tensor]
    phases: list[Tensor]
    packed: list[Tensor]
    norms: list[Tensor]
    sizes: list[Tensor]

    def flat(self) -> list[Tensor]:
        """All tensors in a row."""
        return [self.entry, *self.values, *self.phases, *self.packed, *self.norms, *self.sizes]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> _Kept:
        """What :meth:`flat` gave."""
        layers = (len(tensors) - 1) // 5
        parts = [list(tensors[1 + layers * part : 1 + layers * (part + 1)]) for part in range(5)]
        return cls(tensors[0], *parts)


class _TritonNetwork(torch.autograd.Function):
    """A launch a layer each way; kept are float16 values, and of each z the phase in 16 bits (SIREN) or z."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: tuple, *parameters: Tensor) -> Tensor:
        _, omegas, _, kind, is_grad_enabled = settings
        count = len(parameters) // 2
        weights = [p.detach().contiguous() for p in parameters[:count]]
        biases = [p.detach().contiguous() for p in parameters[count:]]
        rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
        keeps = is_grad_enabled and any(ctx.needs_input_grad)
        if not keeps and can_fuse(weights):
            y = _fused(rows, weights, biases, omegas, kind)
            return y.view(*x.shape[:-1], y.shape[-1])
        y, kept = _forward(rows, weights, biases, omegas, kind, keeps)
        if keeps:
            ctx.settings, ctx.count = settings, count
            ctx.save_for_backward(x, *parameters, *kept.flat())
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        from aire_nerfstudio.ops.sine_network import backward_by_reference

        x, *saved = ctx.saved_tensors
        parameters, kept = saved[: 2 * ctx.count], _Kept.of(saved[2 * ctx.count :])
        if torch.is_grad_enabled():
            return backward_by_reference(ctx, x, parameters, grad)
        gy = grad.detach().reshape(len(kept.entry), parameters[-1].numel())
        weights = [p.detach().contiguous() for p in parameters[: ctx.count]]
        dx, gradients = _backward(gy, weights, kept, ctx.settings, ctx.needs_input_grad[0])
        wanted = [g if need else None for g, need in zip(gradients, ctx.needs_input_grad[2:], strict=True)]
        return None if dx is None else dx.view(x.shape), None, *wanted


def can_fuse(weights: Sequence[Tensor]) -> bool:
    """Whether a network is narrow enough to be evaluated in one launch."""
    from aire_nerfstudio.ops import triton_kernels as kernels

    widest = max(weight.shape[0] for weight in weights[:-1])
    is_narrow = weights[0].shape[1] <= NARROW and weights[-1].shape[0] <= kernels.FUSED_OUT
    return is_narrow and widest <= kernels.FUSED_WIDTHS[-1]


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
    if tuple(t.shape) == shape:
        return t.to(dtype).contiguous()
    out = torch.zeros(shape, dtype=dtype, device=t.device)
    out[tuple(slice(n) for n in t.shape)] = t
    return out


def _packed(weight: Tensor, rows: int, columns: int, is_split: bool, keeps: bool) -> tuple[Tensor, Tensor, Tensor]:
    """``weight`` in float16 with zeros around it, ``[rows, columns]``, what is left of it, and its columns' norms."""
    from aire_nerfstudio.ops import triton_sums as sums

    high = weight.new_empty(rows, columns, dtype=torch.float16)
    low = torch.empty_like(high) if is_split else high
    programs = columns // sums.PACK_COLUMNS
    norms = weight.new_empty(programs if keeps else 0)
    sums.pack[(programs,)](
        weight, high, low, norms, *weight.shape, columns, rows,
        LOW=is_split, NORMS=keeps, ROWS=sums.PACK_ROWS, COLUMNS=sums.PACK_COLUMNS,
    )  # fmt: skip
    return high, low, norms


def _forward(
    rows: Tensor, weights: list[Tensor], biases: list[Tensor], omegas: Sequence[float], kind: int, keeps: bool
) -> tuple[Tensor, _Kept]:
    from aire_nerfstudio.ops import triton_kernels as kernels

    count, out = len(rows), weights[-1].shape[0]
    is_narrow = rows.shape[1] <= NARROW
    h = rows if is_narrow else _padded(rows, count, _up(rows.shape[1], kernels.PAD), dtype=torch.float16)
    kept = _Kept(h, [], [], [], [], [])
    for index, omega in enumerate(omegas):
        width, depth = weights[index].shape[0], h.shape[1]
        columns = _up(width, kernels.PAD)
        weight = weights[index]
        if not is_narrow:
            weight, _, norms = _packed(weight, columns, depth, False, keeps)
            if index > 0:
                kept.packed.append(weight)
                kept.norms.append(norms)
        wide, warps = kernels.columns_and_warps(columns, is_narrow, kind)
        grid = (-(-count // kernels.ROWS), columns // wide)
        value = rows.new_empty(count, columns, dtype=torch.float16)
        phase = torch.empty_like(value, dtype=torch.int16 if kind == 0 else torch.float32) if keeps else value
        sizes = rows.new_empty(grid[0] * grid[1] if keeps and kind != 0 else 0)
        if count:
            kernels.layer_forward[grid](
                h, weight, biases[index], value, phase, sizes, count, depth, columns, width, float(omega),
                KIND=kind, NARROW=depth if is_narrow else 0, KEEP=keeps,
                ROWS=kernels.ROWS, COLUMNS=wide, DEPTH=kernels.DEPTH, num_warps=warps,
            )  # fmt: skip
        kept.values.append(value)
        kept.phases.append(phase)
        kept.sizes.append(sizes)
        h, is_narrow = value, False
    few = kernels.FEW_OUT if out <= kernels.FEW_OUT else kernels.MANY_OUT
    high, low, norms = _packed(weights[-1], _up(out, kernels.PAD), h.shape[1], True, keeps)
    kept.packed.append(high)
    kept.norms.append(norms)
    y = rows.new_empty(count, out)
    if count:
        kernels.affine[(-(-count // kernels.ROWS), -(-out // few))](
            h, high, low, biases[-1], y, count, h.shape[1], out, h.shape[1], 1,
            BIAS=True, LOW=True, ROWS=kernels.ROWS, OUT=few, DEPTH=kernels.DEPTH, num_warps=4,
        )  # fmt: skip
    return y, kept


def _backward(
    gy: Tensor, weights: list[Tensor], kept: _Kept, settings: tuple, needs_dx: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """Gradients with respect to the points and to all weights, then all biases."""
    from aire_nerfstudio.ops import triton_kernels as kernels
    from aire_nerfstudio.ops import triton_sums as sums

    omegas, kind = settings[1], settings[3]
    count, out = gy.shape
    inputs = weights[0].shape[1]
    if count == 0:
        shapes = [*(w.shape for w in weights), *(w.shape[:1] for w in weights)]
        return gy.new_zeros(0, inputs) if needs_dx else None, [gy.new_zeros(shape) for shape in shapes]
    # The largest becomes 1; a gradient of zero has none.
    top = gy.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    gy = (gy / top).contiguous()  # kernels go through memory row by row
    d_biases, d_weights = [gy.sum(0) * top], []
    is_narrow, has_narrow_entry = out <= NARROW, inputs <= NARROW
    grad = gy if is_narrow else _padded(gy, count, _up(out, kernels.PAD), dtype=torch.float16)
    scale = largest = gy.new_ones(1)
    if not is_narrow:
        d_weights.append(_outer(grad, kept.values[-1], weights[-1].shape, top, scale))
    blocks = -(-count // kernels.ROWS)
    for index in reversed(range(len(omegas))):
        width, columns, depth = weights[index].shape[0], kept.values[index].shape[1], grad.shape[1]
        factor, following = gy.new_empty(1), gy.new_empty(1)
        sums.next_scale[(1,)](
            largest, largest.numel(), kept.norms[index], kept.norms[index].numel(), kept.sizes[index],
            kept.sizes[index].numel(), float(omegas[index]), scale, factor, following,
            KIND=kind, HAS_GRADS=index < len(omegas) - 1, BLOCK=sums.SCALE_BLOCK,
        )  # fmt: skip
        scale = following
        is_first = index == 0 and has_narrow_entry
        stores = index > 0 or needs_dx or not has_narrow_entry
        wide, warps = kernels.columns_and_warps(columns, is_narrow, kind)
        grid = (blocks, columns // wide)
        dz = torch.empty_like(kept.values[index]) if stores else kept.values[index]
        bias_parts = gy.new_empty(blocks, 1, columns)
        last_parts = gy.new_empty(blocks, out if is_narrow else 0, columns)
        first_parts = gy.new_empty(blocks, inputs if is_first else 0, columns)
        largest = gy.new_empty(grid[0] * grid[1])
        kernels.layer_backward[grid](
            grad, weights[-1] if is_narrow else kept.packed[index], kept.phases[index], kept.entry, factor, dz,
            bias_parts, last_parts, first_parts, largest, count, depth, columns, width, float(omegas[index]),
            KIND=kind, NARROW=out if is_narrow else 0, FIRST=inputs if is_first else 0, STORE=stores,
            ROWS=kernels.ROWS, COLUMNS=wide, DEPTH=kernels.DEPTH, num_warps=warps,
        )  # fmt: skip
        if is_narrow:
            # Of the gradient that came in, before this layer's factor.
            d_weights.append(_total(last_parts, weights[-1].shape, top, gy.new_ones(1)))
        d_biases.append(_total(bias_parts, (1, width), top, scale).view(width))
        if is_first:
            d_weights.append(_total(first_parts, (inputs, width), top, scale, transposed=True))
        else:
            behind = kept.values[index - 1] if index > 0 else kept.entry
            d_weights.append(_outer(dz, behind, weights[index].shape, top, scale))
        grad, is_narrow = dz, False
    dx = _points_gradient(grad, weights[0]) * (top / scale) if needs_dx else None
    return dx, [*d_weights[::-1], *d_biases[::-1]]


def _points_gradient(dz: Tensor, weight: Tensor) -> Tensor:
    """``dz [rows, n] weight [n, d]``, float32 ``[rows, d]``."""
    from aire_nerfstudio.ops import triton_kernels as kernels

    inputs = weight.shape[1]
    columns = _up(inputs, kernels.PAD)
    high, low, _ = _packed(weight, dz.shape[1], columns, True, False)
    few = kernels.FEW_OUT if inputs <= kernels.FEW_OUT else kernels.MANY_OUT
    dx = weight.new_empty(len(dz), inputs)
    kernels.affine[(-(-len(dz) // kernels.ROWS), -(-inputs // few))](
        dz, high, low, weight, dx, len(dz), dz.shape[1], inputs, 1, columns,
        BIAS=False, LOW=True, ROWS=kernels.ROWS, OUT=few, DEPTH=kernels.DEPTH, num_warps=4,
    )  # fmt: skip
    return dx


def _outer(grad: Tensor, x: Tensor, shape: Sequence[int], numerator: Tensor, denominator: Tensor) -> Tensor:
    """``grad^T x`` times numerator over denominator, ``shape``, of float16 ``[rows, n]`` and ``[rows, k]``, padded."""
    from aire_nerfstudio.ops import triton_kernels as kernels

    rows, n, k = len(grad), grad.shape[1], x.shape[1]
    share = _up(-(-rows // SHARES), kernels.DEPTH)
    shares = -(-rows // share)
    partial = grad.new_empty(shares, n, k, dtype=torch.float32)
    (high, warps), (wide, _) = kernels.columns_and_warps(n), kernels.columns_and_warps(k)
    grid = (n // high, k // wide, shares)
    kernels.outer_product[grid](
        grad, x, partial, rows, n, k, share,
        BLOCK_N=high, BLOCK_K=wide, DEPTH=kernels.DEPTH, num_warps=warps,
    )  # fmt: skip
    return _total(partial, shape, numerator, denominator)


def _total(
    partial: Tensor, shape: Sequence[int], numerator: Tensor, denominator: Tensor, transposed: bool = False
) -> Tensor:
    """Sum over the first dimension of ``[m, n, k]`` times numerator over denominator, cut to ``shape``; transposed."""
    from aire_nerfstudio.ops import triton_sums as sums

    down, across = shape
    if len(partial) > 2 * SHARES:
        # The kernel's programs are few, and each goes through all shares.
        partial = partial.sum(0, keepdim=True)
    out = partial.new_empty((across, down) if transposed else (down, across))
    sums.total[(-(-across // sums.TOTAL_BLOCK), down)](
        partial, numerator, denominator, out, len(partial), across, down, partial.shape[2], partial.shape[1],
        TRANSPOSED=transposed, BLOCK=sums.TOTAL_BLOCK, SHARES=sums.TOTAL_SHARES,
    )  # fmt: skip
    return out
