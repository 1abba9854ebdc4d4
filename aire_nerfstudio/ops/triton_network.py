"""A sine network on CUDA through Triton: float16 products, float32 sums, first layer and weights, 16-bit phases.

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
import importlib.metadata
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
from aire_nerfstudio.ops.arguments import check_unchanged, fit_together, is_transformed, shapes_of
from aire_nerfstudio.ops.aside import Aside
from aire_nerfstudio.ops.processors import matmul_precision
from aire_nerfstudio.ops.triton_launches import (
    Grid,
    Measured,
    beside,
    finish,
    has_copy_engine,
    left_of,
    measure,
    omegas_on,
    on_device,
    packed,
    padded,
    partial_products,
    plain,
    right_of,
    total,
    total_parts,
    up,
)

KINDS = {("siren", False): 0, ("finer", False): 1, ("finer", True): 2, ("spder", False): 3}
# Inputs and outputs of up to so many columns, coordinates and colours, are multiplied in float32; inputs from WIDE on,
# a network's features, in float16. What lies between might be coordinates, which float16 would spoil.
NARROW, WIDE = 4, 9
# Below so many rows launching costs more than is saved.
FEWEST_ROWS = 1024


def is_possible(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> bool:
    """Whether a network at ``x [..., d]`` may and can run here: float32 on CUDA, no autocast, precision ``medium``."""
    if x.device.type != "cuda" or x.dtype != torch.float32 or matmul_precision() != "medium":
        return False
    if torch.is_autocast_enabled("cuda") or is_transformed() or missing() is not None or is_too_old(x.device):
        return False
    if x.dim() == 0 or NARROW < x.shape[-1] < WIDE or x.numel() < FEWEST_ROWS * max(1, x.shape[-1]):
        return False
    if len(weights) < 2 or not len(weights[-1]) or not fit_together(x, weights, biases):
        return False
    return all(t.dtype == torch.float32 and t.device == x.device for t in (*weights, *biases))


@functools.cache
def missing() -> str | None:
    """What Triton lacks here, said once as well; None where it can compile."""
    reason = None
    if importlib.util.find_spec("triton") is None:
        reason = "triton is not installed; pip install triton"
    elif importlib.util.find_spec("triton.tools.tensor_descriptor") is None:
        reason = f"triton {importlib.metadata.version('triton')} has no tensor descriptors; a newer torch brings one"
    elif torch.version.hip is not None:
        reason = "they are for NVIDIA's GPUs"
    elif not os.environ.get("CC") and not any(shutil.which(name) for name in ("gcc", "clang", "cc")):
        reason = "triton finds no C compiler: neither gcc nor clang is on the PATH; install one or set CC"
    elif not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        reason = "triton finds no Python.h; install Python's development files (python3-dev)"
    if reason is not None:
        warnings.warn(f"Triton's kernels are not used, PyTorch's are: {reason}", stacklevel=3)
    return reason


@functools.cache
def is_too_old(device: torch.device) -> bool:
    """Whether a GPU is of before Ampere, for which Triton makes no tensor core products; said once."""
    version = torch.cuda.get_device_capability(device)
    if version >= (8, 0):
        return False
    warnings.warn(
        f"Triton's kernels are not used, PyTorch's are: they are for compute capability 8.0 and later, and this GPU "
        f"has {version[0]}.{version[1]}",
        stacklevel=4,
    )
    return True


def triton_network(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation, omegas: Sequence[float],
    detach_finer_scale: bool = False,
) -> Tensor:  # fmt: skip
    """A sine network at ``x [..., d]`` as ``sine_network.reference`` defines it, ``[..., out]``.

    Up to 4 inputs are multiplied in float32; more become float16, and must lie below its end, 65,504.
    """
    kind = KINDS[activation, detach_finer_scale and activation == "finer"]
    settings = (activation, tuple(map(float, omegas)), detach_finer_scale, kind, torch.is_grad_enabled())
    with on_device(x):
        return _TritonNetwork.apply(x, settings, *weights, *biases)


class Kept(NamedTuple):
    """What backward needs of forward, besides the parameters; None in the lists is what a layer has no use for.

    Attributes:
        entry: what the first layer took: the points, or where they are wide their float16 form, ``[rows, d]``.
        values: of each sine layer, float16 ``[rows, n]``, where they are stored.
        phases: of each, 16-bit phases (SIREN) or z, ``[rows, n]``, where they are stored.
        packed: weights behind each sine layer in float16, ``[n', n]``, but few last ones.
        norms: largest sums down their columns, ``[m]`` each.
        sizes: largest |z| of each layer, ``[m]`` each, for others than SIREN.
        branch_norms: largest weights of a branch, ``[m]``.
    """

    entry: Tensor
    values: list[Any]
    phases: list[Any]
    packed: list[Any]
    norms: list[Any]
    sizes: list[Any]
    branch_norms: Any = None

    @classmethod
    def empty(cls, entry: Tensor, layers: int) -> Kept:
        """Nothing yet of so many sine layers."""
        return cls(entry, *([None] * layers for _ in range(5)))

    def flat(self) -> list[Any]:
        """All tensors in a row."""
        return [self.entry, *self.values, *self.phases, *self.packed, *self.norms, *self.sizes, self.branch_norms]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Kept:
        """What :meth:`flat` gave."""
        layers = (len(tensors) - 2) // 5
        entry, *lists, branch_norms = tensors
        parts = [list(lists[layers * part : layers * (part + 1)]) for part in range(5)]
        return cls(entry, *parts)._replace(branch_norms=branch_norms)


class Branch(NamedTuple):
    """A second output, one number a row, that a sine layer before the last has, and what the layer behind it takes too.

    Attributes:
        layer: which sine layer, not the first.
        weight: ``[1, n]``, of the layer's values.
        beside: the following layer's inputs behind those values, ``[rows, k]``.
    """

    layer: int
    weight: Tensor
    beside: Tensor

    @staticmethod
    def columns(branch: Branch | None, index: int, width: int) -> int:
        """Of a sine layer's values and what is put beside them, padded."""
        from aire_nerfstudio.ops import triton_kernels as kernels

        extra = branch.beside.shape[1] if branch is not None and branch.layer == index else 0
        return up(width + extra, kernels.PAD)


class _TritonNetwork(torch.autograd.Function):
    """A launch a layer each way; kept are float16 values, and of each z the phase in 16 bits (SIREN) or z."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: tuple, *parameters: Tensor) -> Tensor:
        _, omegas, _, kind, is_grad_enabled = settings
        rows, weights, biases = plain(x, parameters)
        keeps = is_grad_enabled and any(ctx.needs_input_grad)
        if not keeps and can_fuse(weights):
            y = _fused(rows, weights, biases, omegas, kind)
            return y.view(*x.shape[:-1], y.shape[-1])
        shares, kept, _ = forward_layers(rows, weights, biases, omegas, kind, keeps)
        y = shares if shares.dim() == 2 else finish(shares, biases[-1])
        if keeps:
            ctx.settings, ctx.count, ctx.shapes = settings, len(weights), shapes_of(parameters)
            ctx.save_for_backward(x, *parameters, *kept.flat())
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        from aire_nerfstudio.ops.sine_network import backward_by_reference

        x, *saved = ctx.saved_tensors
        parameters, kept = saved[: 2 * ctx.count], Kept.of(saved[2 * ctx.count :])
        check_unchanged(ctx.shapes, parameters)
        if torch.is_grad_enabled():
            return backward_by_reference(ctx, x, parameters, grad)
        gy = grad.detach().reshape(len(kept.entry), parameters[-1].numel())
        _, weights, biases = plain(x, parameters)
        dx, gradients = backward_layers(gy, weights, biases, kept, ctx.settings, ctx.needs_input_grad[0])
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
    first = padded(weights[0], width, rows.shape[1], dtype=torch.float32)
    hidden = torch.zeros(max(1, layers - 1), width, width, dtype=torch.float16, device=rows.device)
    bias = torch.zeros(layers, width, device=rows.device)
    for index in range(layers):
        bias[index, : len(biases[index])] = biases[index]
        if index > 0:
            hidden[index - 1, : weights[index].shape[0], : weights[index].shape[1]] = weights[index]
    high = weights[-1].half()
    parts = [high, (weights[-1] - high.float()).half()]
    last = torch.stack([padded(part, kernels.FUSED_OUT, width, dtype=torch.float16) for part in parts])
    last_bias = padded(biases[-1], kernels.FUSED_OUT, dtype=torch.float32)
    y = torch.empty(len(rows), out, device=rows.device)
    if len(rows):
        kernels.fused_forward[(-(-len(rows) // kernels.FUSED_ROWS),)](
            rows, first, hidden, last, bias, last_bias, omegas_on(tuple(omegas), rows.device), y,
            len(rows), rows.shape[1], out,
            LAYERS=layers, KIND=kind, WIDTH=width, OUT=kernels.FUSED_OUT, ROWS=kernels.FUSED_ROWS,
            num_warps=kernels.FUSED_WARPS,
        )  # fmt: skip
    return y


def forward_layers(
    rows: Tensor, weights: list[Tensor], biases: list[Tensor], omegas: Sequence[float], kind: int, keeps: bool,
    branch: Branch | None = None,
) -> tuple[Tensor, Kept, Tensor]:  # fmt: skip
    """The network's outputs ``[rows, out]``, or few ones' shares without the bias, ``[m, rows, out]``.

    Besides, what backward needs, and a branch's shares ``[m, rows, 1]`` without its bias.
    """
    with Aside(rows.device) as aside:
        return _forward_layers(rows, weights, biases, omegas, kind, keeps, branch, aside)


def _forward_layers(
    rows: Tensor, weights: list[Tensor], biases: list[Tensor], omegas: Sequence[float], kind: int, keeps: bool,
    branch: Branch | None, aside: Aside,
) -> tuple[Tensor, Kept, Tensor]:  # fmt: skip
    from aire_nerfstudio.ops import triton_kernels as kernels

    count, inputs, out, layers = len(rows), rows.shape[1], weights[-1].shape[0], len(omegas)
    is_entry, is_end = inputs <= NARROW, out <= NARROW
    h = rows if is_entry else padded(rows, count, up(inputs, kernels.PAD), dtype=torch.float16)
    kept, y, branched = Kept.empty(h, layers), rows, rows
    widths = [weight.shape[0] for weight in weights[:-1]]
    sides = [h.shape[1], *(Branch.columns(branch, index, width) for index, width in enumerate(widths))]
    # Of narrow points the first weights stay as they are.
    found = {
        index: aside.run(packed, weights[index], sides[index + 1], sides[index], False, keeps)
        for index in range(1 if is_entry else 0, layers)
    }
    for index in range(layers):
        entry, ends = inputs if is_entry and index == 0 else 0, is_end and index == layers - 1
        is_branch = branch is not None and branch.layer == index
        width, weight, columns, depth = widths[index], weights[index], sides[index + 1], h.shape[1]
        if not entry:
            if index == min(found):
                aside.join()
            weight, _, norms = found[index]
            if index > 0:
                kept.packed[index - 1], kept.norms[index - 1] = weight, norms
        tile = kernels.forward_tile(columns, kind, bool(entry), has_copy_engine(rows.device))
        grid = Grid.of(count, columns, tile)
        value = rows.new_empty(0 if ends else count, columns, dtype=torch.float16)
        phase_type = torch.int16 if kind == 0 else torch.float32
        phase = rows.new_empty(count if keeps and not entry else 0, columns, dtype=phase_type)
        sizes = rows.new_empty(grid.programs if keeps and kind != 0 else 0)
        norms = rows.new_empty(grid.across if (ends or is_branch) and keeps else 0)
        outputs = out if ends else int(is_branch)
        shares = rows.new_empty(grid.across if outputs else 0, count, outputs)
        if count:
            operands = (h, weight) if entry else (left_of(h, tile), right_of(weight, tile, True))
            kernels.layer_forward[grid.programs](
                *operands, biases[index], branch.weight if branch is not None and is_branch else weights[-1],
                beside(None if ends else value, tile), beside(phase if len(phase) else None, tile), sizes, shares,
                norms, count, depth, columns, width, float(omegas[index]),
                KIND=kind, ENTRY=entry, OUT=outputs, STORE=not ends, KEEP=keeps, **tile,
            )  # fmt: skip
        kept.phases[index], kept.sizes[index] = None if entry else phase, sizes
        if ends:
            kept.norms[index], y = norms, shares
        else:
            kept.values[index] = h = value
        if branch is not None and is_branch:
            branched, kept = shares, kept._replace(branch_norms=norms)
            # Where the layer's columns are padding.
            value[:, width : width + branch.beside.shape[1]] = branch.beside
    if not is_end:
        few = kernels.FEW_OUT if out <= kernels.FEW_OUT else kernels.MANY_OUT
        high, low, norms = packed(weights[-1], up(out, kernels.PAD), h.shape[1], True, keeps)
        kept.packed[-1], kept.norms[-1] = high, norms
        y = rows.new_empty(count, out)
        if count:
            kernels.affine[(-(-count // kernels.AFFINE_TILE["ROWS"]), -(-out // few))](
                h, high, low, biases[-1], y, count, h.shape[1], out, h.shape[1], 1,
                BIAS=True, LOW=True, OUT=few, **kernels.AFFINE_TILE,
            )  # fmt: skip
    return y, kept, branched


def backward_layers(
    given: Tensor | Measured, weights: list[Tensor], biases: list[Tensor], kept: Kept, settings: tuple,
    needs_dx: bool, numerator: Tensor | None = None, gain: float = 1.0, branch: Branch | None = None,
    branched: Measured | None = None,
) -> tuple[Tensor | None, list[Tensor]]:  # fmt: skip
    """Gradients with respect to the points and to all weights, then all biases, times ``gain`` and ``numerator []``.

    Of a network with a branch, whose gradient ``branched`` is, those of its weight and bias come last; such a network
    has few outputs and takes few coordinates.
    """
    gy = given if isinstance(given, Tensor) else given.grad
    with Aside(gy.device) as aside:
        arguments = given, gy, weights, biases, kept, settings, needs_dx, numerator, gain, branch, branched
        return _backward_layers(*arguments, aside)


def _backward_layers(
    given: Tensor | Measured, gy: Tensor, weights: list[Tensor], biases: list[Tensor], kept: Kept, settings: tuple,
    needs_dx: bool, numerator: Tensor | None, gain: float, branch: Branch | None, branched: Measured | None,
    aside: Aside,
) -> tuple[Tensor | None, list[Tensor]]:  # fmt: skip
    from aire_nerfstudio.ops import triton_kernels as kernels
    from aire_nerfstudio.ops import triton_sums as sums

    omegas, kind = settings[1], settings[3]
    count, out = gy.shape
    inputs = weights[0].shape[1]
    if count == 0:
        shapes = [*(w.shape for w in weights), *(w.shape[:1] for w in weights)]
        shapes += [] if branch is None else [branch.weight.shape, branch.weight.shape[:1]]
        return gy.new_zeros(0, inputs) if needs_dx else None, [gy.new_zeros(shape) for shape in shapes]
    is_narrow, is_entry = out <= NARROW, inputs <= NARROW
    scale = gy.new_ones(1)
    if is_narrow:
        # Kernels go through memory row by row.
        measured = given if isinstance(given, Measured) else measure(gy.contiguous()[None], None, None)[0]
        grad, largest = measured.grad, measured.largest
        d_weights, d_biases = [], [aside.run(total_parts, measured.sums, (out, out, 0, 0), numerator, scale, gain)]
    else:
        # The largest becomes 1, before it is float16; a gradient of zero has none.
        numerator = gy.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
        gy = gy / numerator
        d_biases, largest = [gy.sum(0) * numerator], gy.new_ones(1)
        grad = padded(gy, count, up(out, kernels.PAD), dtype=torch.float16)
        d_weights = [_outer(grad, kept.values[-1], weights[-1].shape, numerator, scale, gain)]
    d_branch: list[Tensor] = []
    for index in reversed(range(len(omegas))):
        width = weights[index].shape[0]
        columns, depth = Branch.columns(branch, index, width), grad.shape[1]
        norms, sizes = kept.norms[index], kept.sizes[index]
        factor, before, scale = gy.new_empty(1), scale, gy.new_empty(1)
        beside_it = branched if branch is not None and branch.layer == index else None
        branches = (norms, norms) if beside_it is None else (beside_it.largest, kept.branch_norms)
        sums.next_scale[(1,)](
            largest, largest.numel(), norms, norms.numel(), sizes, sizes.numel(),
            branches[0], branches[0].numel(), branches[1], branches[1].numel(), float(omegas[index]), before, factor,
            scale, KIND=kind, BRANCH=beside_it is not None, BLOCK=sums.SCALE_BLOCK, num_warps=8,
        )  # fmt: skip
        entry = inputs if index == 0 and is_entry else 0
        stores = index > 0 or needs_dx or not is_entry
        is_heavy = bool(entry) or beside_it is not None
        tile = (
            kernels.last_tile()
            if is_narrow
            else kernels.backward_tile(columns, kind, is_heavy, has_copy_engine(gy.device))
        )
        grid = Grid.of(count, columns, tile)
        narrow = out if is_narrow else int(beside_it is not None)
        dz = gy.new_empty(count if stores else 0, columns, dtype=torch.float16)
        parts = gy.new_empty(grid.blocks, 1 + narrow + entry, columns)
        largest = gy.new_empty(grid.programs)
        entered = (kept.entry, weights[0], biases[0], factor)
        if is_narrow:
            kernels.last_backward[grid.programs](
                grad, weights[-1], None if entry else kept.phases[index], *entered, dz if stores else None, parts,
                largest, count, columns, width, float(omegas[index]),
                KIND=kind, OUT=narrow, ENTRY=entry, STORE=stores, **tile,
            )  # fmt: skip
        else:
            kernels.layer_backward[grid.programs](
                left_of(grad, tile), right_of(kept.packed[index], tile, False),
                beside(None if entry else kept.phases[index], tile), *entered[:3],
                before if beside_it is None else beside_it.grad, weights[0] if branch is None else branch.weight,
                scale, factor, beside(dz if stores else None, tile), parts, largest, count, depth, columns, width,
                float(omegas[index]), KIND=kind, ENTRY=entry, BRANCH=narrow, STORE=stores, **tile,
            )  # fmt: skip
        found = aside.run(total_parts, parts, (width, columns, narrow, entry), numerator, scale, gain)
        ends = (width, (1 + narrow) * width)
        d_biases.append(found[: ends[0]])
        if is_narrow:
            d_weights.append(found[ends[0] : ends[1]].view(out, width))
        elif beside_it is not None:
            d_bias = aside.run(total_parts, beside_it.sums, (1, 1, 0, 0), numerator, gy.new_ones(1), gain)
            d_branch = [found[ends[0] : ends[1]].view(1, width), d_bias]
        if entry:
            d_weights.append(found[ends[1] :].view(width, inputs))
        else:
            behind = kept.values[index - 1] if index > 0 else kept.entry
            d_weights.append(aside.run(_outer, dz, behind, weights[index].shape, numerator, scale, gain))
        grad, is_narrow = dz, False
    dx = None
    if needs_dx:
        dx = _points_gradient(grad, weights[0]) * (gain / scale)
        dx = dx if numerator is None else dx * numerator
    return dx, [*d_weights[::-1], *d_biases[::-1], *d_branch]


def _points_gradient(dz: Tensor, weight: Tensor) -> Tensor:
    """``dz [rows, n] weight [n, d]``, float32 ``[rows, d]``."""
    from aire_nerfstudio.ops import triton_kernels as kernels

    inputs = weight.shape[1]
    columns = up(inputs, kernels.PAD)
    high, low, _ = packed(weight, dz.shape[1], columns, True, False)
    few = kernels.FEW_OUT if inputs <= kernels.FEW_OUT else kernels.MANY_OUT
    dx = weight.new_empty(len(dz), inputs)
    kernels.affine[(-(-len(dz) // kernels.AFFINE_TILE["ROWS"]), -(-inputs // few))](
        dz, high, low, weight, dx, len(dz), dz.shape[1], inputs, 1, columns,
        BIAS=False, LOW=True, OUT=few, **kernels.AFFINE_TILE,
    )  # fmt: skip
    return dx


def _outer(
    grad: Tensor, x: Tensor, shape: Sequence[int], numerator: Tensor | None, denominator: Tensor, gain: float
) -> Tensor:
    """``grad^T x`` times gain and numerator over denominator, ``shape``, of float16 ``[rows, n]`` and ``[rows, k]``.

    Both are padded.
    """
    return total(partial_products(grad, x), shape, numerator, denominator, gain)
