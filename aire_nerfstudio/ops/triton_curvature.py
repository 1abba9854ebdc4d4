"""Gradient and mean-curvature motion of a sine network on CUDA through Triton: float16 products, the rest float32.

Used where ``torch.set_float32_matmul_precision`` is ``medium``, for hidden weights as in
:mod:`~aire_nerfstudio.ops.triton_gradient`; :mod:`~aire_nerfstudio.ops.triton_curvature_kernels` tells the passes.
Where the gradient vanishes, and there is no normal, the motion is that across the third axis.

=================  ==============  ================================================================
derivative         compiled        remark
=================  ==============  ================================================================
weights, biases    yes             of both outputs, through the normal as well; the same bits every time
x                  refused         where ``x`` asks for it, the reference is used
second (weights)   by reference    with ``create_graph``, in float32
=================  ==============  ================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aire_nerfstudio.ops.activations import Activation
from aire_nerfstudio.ops.arguments import SMOOTH, check_unchanged, shapes_of
from aire_nerfstudio.ops.create_graph import network_gradients_by_reference
from aire_nerfstudio.ops.triton_launches import (
    Grid,
    Tile,
    beside,
    has_copy_engine,
    left_of,
    on_device,
    right_of,
    total_parts,
)
from aire_nerfstudio.ops.triton_passes import Kept, Passes


def gradient_and_motion(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation, omegas: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """``df/dx [N, d]`` and ``laplace f - n H n [N]`` in the first three coordinates, ``d`` 3 or 4.

    Where :func:`~aire_nerfstudio.ops.triton_passes.is_possible`.
    """
    settings = (activation, tuple(map(float, omegas)), torch.is_grad_enabled())
    with on_device(x):
        return _TritonCurvature.apply(x, settings, *weights, *biases)


class _TritonCurvature(torch.autograd.Function):
    """Forward, adjoint and tangents; source and reverse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: tuple, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        activation, omegas, is_grad_enabled = settings
        keeps = is_grad_enabled and any(ctx.needs_input_grad)
        passes = _Curvature(x, parameters, omegas, SMOOTH[activation])
        gradient, bent, frame = passes.outputs_and_motion(keeps)
        if keeps:
            ctx.settings, ctx.shapes = settings, shapes_of(parameters)
            ctx.save_for_backward(passes.rows, gradient, bent, *frame.flat(), *parameters, *passes.kept.flat())
        return gradient, bent[:, 0].clone()

    @staticmethod
    def backward(ctx: Any, grad_gradient: Tensor, grad_motion: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        from aire_nerfstudio.ops.mean_curvature import reference

        rows, gradient, bent, *saved = ctx.saved_tensors
        layers = len(ctx.settings[1])
        frame, saved = _Frame.of(saved, layers), saved[1 + 3 * layers :]
        parameters, kept = saved[: 2 * layers + 2], Kept.of(saved[2 * layers + 2 :])
        check_unchanged(ctx.shapes, parameters)
        if torch.is_grad_enabled():
            return network_gradients_by_reference(reference, ctx, rows, parameters, (grad_gradient, grad_motion))
        passes = _Curvature(rows, parameters, ctx.settings[1], SMOOTH[ctx.settings[0]], kept)
        grads = (grad_gradient.detach().contiguous(), grad_motion.detach().contiguous())
        gradients = passes.backward(*grads, gradient, bent, frame)
        wanted = [g if need else None for g, need in zip(gradients, ctx.needs_input_grad[2:], strict=True)]
        return None, None, *wanted


class _Frame(NamedTuple):
    """Tangents along two directions across the normal, and it.

    Attributes:
        directions: ``[3, rows, d]``.
        tangents: of each sine layer t, float16 ``[3, rows, n]``; None of the last.
        sizes: s across the normal, float16 ``[2, rows, n]``; None of the first.
        scales: of both, ``[1]``.
    """

    directions: Tensor
    tangents: list[Any]
    sizes: list[Any]
    scales: list[Any]

    def flat(self) -> list[Any]:
        """All tensors in a row."""
        return [self.directions, *self.tangents, *self.sizes, *self.scales]

    @classmethod
    def of(cls, tensors: Sequence[Any], layers: int) -> _Frame:
        """What :meth:`flat` gave of so many sine layers, which others may follow."""
        parts = [list(tensors[1 + layers * part : 1 + layers * (part + 1)]) for part in range(3)]
        return cls(tensors[0], *parts)


class _Source(NamedTuple):
    """Of a layer: T ``[rows, n]``, its scale and largest numbers, and what becomes part of dz, with its scale."""

    out: Tensor
    scale: Tensor
    largest: Tensor
    mixed: Tensor
    mixed_scale: Tensor


class _Grads(NamedTuple):
    """Of a layer: dz and two sigmas ``[3, rows, n]``, their scales ``[2]``, largest numbers of dz and of sigmas."""

    out: Tensor
    scales: Tensor
    largest: Tensor
    largest_others: Tensor


def planes(streams: Any, how: Callable[[Tensor, Tile], Any], tile: Tile, count: int = 3) -> list[Any]:
    """So many of ``streams [m, rows, n]``, each as a matrix that is taken by tiles; None for what is not there."""
    found = [] if streams is None else [how(stream, tile) for stream in streams]
    return [*found, *[None] * (count - len(found))]


class _Curvature(Passes):
    """What is beside the passes of value and gradient."""

    def _programs(self, layer: int) -> tuple[Tile, Grid]:
        from aire_nerfstudio.ops import triton_curvature_kernels as kernels

        tile = kernels.tile(layer == 0, self.kind, has_copy_engine(self.rows.device))
        return tile, Grid.of(len(self.rows), self.columns[layer], tile)

    # --- outputs ---------------------------------------------------------------------------------------------------

    def outputs_and_motion(self, keeps: bool) -> tuple[Tensor, Tensor, _Frame]:
        """The gradient ``[rows, d]``; motion, u H n and v H n ``[rows, 3]`` (only the first without ``keeps``)."""
        from aire_nerfstudio.ops import triton_curvature_kernels as kernels

        count, layers = len(self.rows), self.last + 1
        _, gradient = self.outputs(keeps=True)
        frame = _Frame(self.rows.new_empty(3, count, self.inputs), *([None] * layers for _ in range(3)))
        if count == 0:
            return gradient, self.rows.new_empty(0, 3), frame
        kernels.frame[(-(-count // kernels.POINTS),)](
            gradient, frame.directions, count, INPUTS=self.inputs, ROWS=kernels.POINTS
        )
        tiles = [self._programs(layer)[1].across for layer in range(layers)]
        shares = self.rows.new_empty(sum(tiles), count, 3)
        largest, scale = self.one, self.one
        for layer, own in enumerate(shares.split(tiles)):
            factor, scale = self.next_scale(largest, self.row_norms(layer), layer, scale)
            frame.scales[layer] = scale
            largest = self._tangents(layer, factor, frame, own, keeps)
        return gradient, shares.sum(0), frame

    def _tangents(self, layer: int, factor: Tensor, frame: _Frame, shares: Tensor, keeps: bool) -> Tensor:
        """The largest numbers among a layer's tangents."""
        from aire_nerfstudio.ops import triton_curvature_kernels as kernels

        here, scale, streams = self.layers[layer], frame.scales[layer], 3 if keeps else 2
        tile, grid = self._programs(layer)
        largest = self.rows.new_empty(grid.programs)
        out = None if layer == self.last else self.half(layer, streams)
        if layer == 0:
            del tile["DEPTH"]
            kernels.tangents_entry[grid.programs](
                self.rows, frame.directions, self.weights[0], self.biases[0], beside(here.adjoint, tile), here.scale,
                scale, *planes(out, beside, tile), shares, largest, len(self.rows), self.columns[0], self.widths[0],
                self.omegas[0],
                KIND=self.kind, ENTRY=self.inputs, STREAMS=streams, **tile,
            )  # fmt: skip
        else:
            is_last = layer == self.last
            sizes = frame.sizes[layer] = self.half(layer, 2) if keeps else None
            kernels.tangents[grid.programs](
                *planes(frame.tangents[layer - 1], left_of, tile), right_of(here.packed, tile, True),
                beside(here.phase, tile),
                beside(None if is_last else here.adjoint, tile), here.scale, self.weights[-1], factor, scale,
                *planes(sizes, beside, tile, 2), *planes(out, beside, tile), shares, largest, len(self.rows),
                self.columns[layer - 1],
                self.columns[layer], self.widths[layer], self.omegas[layer],
                KIND=self.kind, LAST=is_last, STREAMS=streams, **tile,
            )  # fmt: skip
        frame.tangents[layer] = out
        return largest

    # --- gradients of the parameters -------------------------------------------------------------------------------

    def backward(
        self, grad_gradient: Tensor, grad_motion: Tensor, gradient: Tensor, bent: Tensor, frame: _Frame
    ) -> list[Tensor]:
        """Gradients of all weights, then all biases, for the gradient's ``[rows, d]`` and the motion's ``[rows]``."""
        from aire_nerfstudio.ops import triton_curvature_kernels as kernels

        count = len(self.rows)
        if count == 0:
            return [torch.zeros_like(p) for p in (*self.weights, *self.biases)]
        programs = -(-count // kernels.POINTS)
        direction = torch.empty_like(gradient)
        largest, motions = (self.rows.new_empty(programs) for _ in range(2))
        kernels.through_normal[(programs,)](
            grad_gradient, grad_motion, gradient, frame.directions, bent, direction, largest, motions, count,
            INPUTS=self.inputs, ROWS=kernels.POINTS,
        )  # fmt: skip
        given = (grad_motion, motions)
        sources = [self._first_source(direction, largest, given, frame)]
        for layer in range(1, self.last):
            sources.append(self._source(layer, sources[-1], given, frame))
        grads, found = self._last(sources[-1], given, frame)
        width = self.widths[self.last]
        d_weights, d_biases = [found[width:].view(1, width)], [torch.zeros_like(self.biases[-1]), found[:width]]
        for layer in reversed(range(1, self.last + 1)):
            source = sources[layer - 1]
            scales = (grads.scales[0], grads.scales[1], frame.scales[layer - 1])
            d_weights.append(self.outer(layer, grads.out, frame.tangents[layer - 1], scales, source.out, source.scale))
            if layer > 1:
                grads, found = self._reverse(layer - 1, grads, source, given, frame)
                d_biases.append(found)
        found, width = self._first(grads, direction, given, frame), self.widths[0]
        d_weights.append(found[width:].view(width, self.inputs))
        d_biases.append(found[:width])
        return [*d_weights[::-1], *d_biases[::-1]]

    def _scales_of_source(
        self, layer: int, largest: Tensor, before: Tensor, given: tuple[Tensor, Tensor], frame: _Frame
    ) -> Tensor:
        """Scales ``[2]`` of what a layer's source leaves."""
        from aire_nerfstudio.ops import triton_curvature_kernels as kernels
        from aire_nerfstudio.ops import triton_sums as sums

        norms, sizes, scales = self.row_norms(layer), self.sizes(layer), self.rows.new_empty(2)
        motions = given[1]
        kernels.source_scales[(1,)](
            largest, largest.numel(), norms, norms.numel(), before, motions, motions.numel(), frame.scales[layer],
            self.layers[layer].scale, self.kept.last_size, sizes, sizes.numel(), self.omegas[layer], scales,
            KIND=self.kind, LAST=layer == self.last, BLOCK=sums.SCALE_BLOCK, num_warps=8,
        )  # fmt: skip
        return scales

    def _first_source(self, direction: Tensor, largest: Tensor, given: tuple[Tensor, Tensor], frame: _Frame) -> _Source:
        from aire_nerfstudio.ops import triton_curvature_kernels as kernels

        scales = self._scales_of_source(0, largest, self.one, given, frame)
        tile, grid = self._programs(0)
        del tile["DEPTH"]
        out, found = self.half(0), self.rows.new_empty(grid.programs)
        kernels.source_entry[grid.programs](
            self.rows, direction, frame.directions, self.weights[0], self.biases[0], given[0], scales,
            beside(out, tile), found,
            len(out), self.columns[0], self.widths[0], self.omegas[0], KIND=self.kind, ENTRY=self.inputs, **tile,
        )  # fmt: skip
        # What becomes part of dz is computed again.
        return _Source(out, scales[0], found, self.one, self.one)

    def _source(self, layer: int, before: _Source, given: tuple[Tensor, Tensor], frame: _Frame) -> _Source:
        from aire_nerfstudio.ops import triton_curvature_kernels as kernels

        here, scales = self.layers[layer], self._scales_of_source(layer, before.largest, before.scale, given, frame)
        tile, grid = self._programs(layer)
        out, mixed, found = self.half(layer), self.half(layer), self.rows.new_empty(grid.programs)
        kernels.source[grid.programs](
            left_of(before.out, tile), before.scale, right_of(here.packed, tile, True), beside(here.phase, tile),
            *planes(frame.sizes[layer], beside, tile, 2), frame.scales[layer], beside(here.adjoint, tile), here.scale,
            given[0], scales, beside(mixed, tile), beside(out, tile), found, len(out), self.columns[layer - 1],
            self.columns[layer],
            self.omegas[layer], KIND=self.kind, **tile,
        )  # fmt: skip
        return _Source(out, scales[0], found, mixed, scales[1])

    def _last(self, before: _Source, given: tuple[Tensor, Tensor], frame: _Frame) -> tuple[_Grads, Tensor]:
        """Gradients of the last sine layer's biases and of the last weights come second."""
        from aire_nerfstudio.ops import triton_curvature_kernels as kernels

        last, here, columns = self.last, self.layers[self.last], self.columns[self.last]
        scales = self._scales_of_source(last, before.largest, before.scale, given, frame)
        tile, grid = self._programs(last)
        grads = _Grads(self.half(last, 3), scales, *(self.rows.new_empty(grid.programs) for _ in range(2)))
        parts = self.rows.new_empty(grid.blocks, 2, columns)
        kernels.last_source[grid.programs](
            left_of(before.out, tile), before.scale, right_of(here.packed, tile, True), beside(here.phase, tile),
            *planes(frame.sizes[last], beside, tile, 2), frame.scales[last], self.weights[-1], given[0], scales,
            *planes(grads.out, beside, tile), parts, grads.largest, grads.largest_others, len(self.rows),
            self.columns[last - 1], columns, self.widths[last], self.omegas[last], KIND=self.kind, **tile,
        )  # fmt: skip
        return grads, total_parts(parts, (self.widths[last], columns, 1, 0), None, scales, 1.0)

    def _reverse(
        self, layer: int, behind: _Grads, source: _Source, given: tuple[Tensor, Tensor], frame: _Frame
    ) -> tuple[_Grads, Tensor]:
        """Gradients of the layer's biases come second."""
        from aire_nerfstudio.ops import triton_curvature_kernels as kernels
        from aire_nerfstudio.ops import triton_sums as sums

        here, columns, sizes = self.layers[layer], self.columns[layer], self.sizes(layer)
        scales = self.rows.new_empty(2)
        norms, motions = self.layers[layer + 1].norms, given[1]
        kernels.reverse_scales[(1,)](
            behind.largest, behind.largest.numel(), behind.largest_others, behind.largest_others.numel(), norms,
            norms.numel(), behind.scales, motions, motions.numel(), frame.scales[layer], here.scale,
            source.mixed_scale, sizes, sizes.numel(), self.omegas[layer], scales,
            KIND=self.kind, BLOCK=sums.SCALE_BLOCK, num_warps=8,
        )  # fmt: skip
        tile, grid = self._programs(layer)
        grads = _Grads(self.half(layer, 3), scales, *(self.rows.new_empty(grid.programs) for _ in range(2)))
        parts = self.rows.new_empty(grid.blocks, 1, columns)
        kernels.reverse[grid.programs](
            *planes(behind.out, left_of, tile), behind.scales, right_of(self.layers[layer + 1].packed, tile, False),
            beside(here.phase, tile), *planes(frame.sizes[layer], beside, tile, 2), frame.scales[layer],
            beside(here.adjoint, tile), here.scale, beside(source.mixed, tile), source.mixed_scale, given[0], scales,
            *planes(grads.out, beside, tile), parts, grads.largest, grads.largest_others, len(self.rows),
            self.columns[layer + 1], columns,
            self.omegas[layer], KIND=self.kind, **tile,
        )  # fmt: skip
        return grads, total_parts(parts, (self.widths[layer], columns, 0, 0), None, scales, 1.0)

    def _first(self, behind: _Grads, direction: Tensor, given: tuple[Tensor, Tensor], frame: _Frame) -> Tensor:
        """Gradients of the first layer's biases and weights, one behind the other."""
        from aire_nerfstudio.ops import triton_curvature_kernels as kernels

        here, columns = self.layers[0], self.columns[0]
        tile, grid = self._programs(0)
        parts = self.rows.new_empty(grid.blocks, 1 + self.inputs, columns)
        kernels.reverse_entry[grid.programs](
            *planes(behind.out, left_of, tile), behind.scales, right_of(self.layers[1].packed, tile, False),
            self.rows, direction, frame.directions, self.weights[0], self.biases[0], beside(here.adjoint, tile),
            here.scale, given[0], parts, len(self.rows), self.columns[1], columns,
            self.widths[0], self.omegas[0], KIND=self.kind, ENTRY=self.inputs, **tile,
        )  # fmt: skip
        return total_parts(parts, (self.widths[0], columns, 0, self.inputs), None, self.one, 1.0)
