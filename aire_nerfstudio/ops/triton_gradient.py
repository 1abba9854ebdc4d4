"""Value and spatial gradient of a sine network on CUDA through Triton: float16 products, float32 sums.

Used where ``torch.set_float32_matmul_precision`` is ``medium``. Hidden weights become float16 as they are: a layer of
which the largest is below 1e-4 loses digits, above 65,504 it is infinite. The passes are told in
:mod:`~aire_nerfstudio.ops.triton_gradient_kernels`; each is a launch a layer, and a launch for the scale of what it
leaves in float16.

=================  ==============  ================================================================
derivative         compiled        remark
=================  ==============  ================================================================
weights, biases    yes             of both outputs; summed in a fixed order: the same bits every time
x                  refused         where ``x`` asks for it, the reference is used
second (weights)   by reference    with ``create_graph``, in float32
=================  ==============  ================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aire_nerfstudio.ops.activations import Activation
from aire_nerfstudio.ops.arguments import SMOOTH, check_unchanged, shapes_of
from aire_nerfstudio.ops.create_graph import network_gradients_by_reference
from aire_nerfstudio.ops.triton_launches import beside, left_of, measure, on_device, right_of, total_parts
from aire_nerfstudio.ops.triton_passes import Kept, Passes


def value_and_gradient(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation, omegas: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """``f [N]`` and ``df/dx [N, d]`` as :func:`~aire_nerfstudio.ops.value_gradient.reference` defines them.

    Where :func:`~aire_nerfstudio.ops.triton_passes.is_possible`.
    """
    settings = (activation, tuple(map(float, omegas)), torch.is_grad_enabled())
    with on_device(x):
        return _TritonGradient.apply(x, settings, *weights, *biases)


class _TritonGradient(torch.autograd.Function):
    """Forward and adjoint passes, tangent and reverse passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: tuple, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        activation, omegas, is_grad_enabled = settings
        keeps = is_grad_enabled and any(ctx.needs_input_grad)
        passes = Passes(x, parameters, omegas, SMOOTH[activation])
        value, gradient = passes.outputs(keeps)
        if keeps:
            ctx.settings, ctx.shapes = settings, shapes_of(parameters)
            ctx.save_for_backward(passes.rows, *parameters, *passes.kept.flat())
        return value, gradient

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor, grad_gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        from aire_nerfstudio.ops.value_gradient import reference

        rows, *saved = ctx.saved_tensors
        count = 2 * (len(ctx.settings[1]) + 1)
        parameters, kept = saved[:count], Kept.of(saved[count:])
        check_unchanged(ctx.shapes, parameters)
        if torch.is_grad_enabled():
            return network_gradients_by_reference(reference, ctx, rows, parameters, (grad_value, grad_gradient))
        passes = _Backward(rows, parameters, ctx.settings[1], SMOOTH[ctx.settings[0]], kept)
        gradients = passes(grad_value.detach().contiguous(), grad_gradient.detach().contiguous())
        wanted = [g if need else None for g, need in zip(gradients, ctx.needs_input_grad[2:], strict=True)]
        return None, None, *wanted


class _Tangent(NamedTuple):
    """Of a layer: t ``[rows, n]`` and its scale ``[1]``; what stands for s . a ``[rows, n]``, and its largest sizes."""

    out: Tensor
    scale: Tensor
    mixed: Tensor
    largest_mixed: Tensor


class _Backward(Passes):
    """Gradients of all weights, then all biases."""

    def __call__(self, grad_value: Tensor, grad_gradient: Tensor) -> list[Tensor]:
        """For gradients of the value ``[rows]`` and of the gradient ``[rows, d]``."""
        if len(self.rows) == 0:
            return [torch.zeros_like(p) for p in (*self.weights, *self.biases)]
        ends, _ = measure(grad_value[None, :, None], None, None)
        largest = measure(grad_gradient[None], None, None)[0].largest
        tangents: list[_Tangent] = []
        for layer in range(self.last):
            tangent, largest = self._tangent(layer, tangents, grad_gradient, largest)
            tangents.append(tangent)
        dz, scale, largest, found = self._last(grad_value, ends.largest, tangents[-1], largest)
        width = self.widths[self.last]
        d_weights, d_biases = [found[width:].view(1, width)], [ends.sums.sum(0), found[:width]]
        for layer in reversed(range(self.last)):
            t, one = tangents[layer], self.one
            d_weights.append(self.outer(layer + 1, dz[None], one, (scale, one, one), t.out, t.scale))
            dz, scale, largest, found = self._reverse(layer, dz, scale, largest, t, grad_gradient)
            width = self.widths[layer]
            d_biases.append(found[:width])
        d_weights.append(found[width:].view(width, self.inputs))
        return [*d_weights[::-1], *d_biases[::-1]]

    def _tangent(
        self, layer: int, before: list[_Tangent], direction: Tensor, largest: Tensor
    ) -> tuple[_Tangent, Tensor]:
        """A layer's, but the last one's, and its largest numbers; the largest ones before are given."""
        from aire_nerfstudio.ops import triton_gradient_kernels as kernels

        here, count = self.layers[layer], len(self.rows)
        scale = before[-1].scale if before else self.one
        factor, scale = self.next_scale(largest, self.row_norms(layer), layer, scale)
        tile, grid, numbers = self.shared_out(layer, layer == 0)
        out, largest = self.half(layer), numbers()
        if layer == 0:
            del tile["DEPTH"]
            kernels.tangent_entry[grid.programs](
                self.rows, direction, self.weights[0], self.biases[0], factor, beside(out, tile), largest, count,
                self.columns[0], self.widths[0], self.omegas[0], KIND=self.kind, ENTRY=self.inputs, **tile,
            )  # fmt: skip
            # s is computed again.
            return _Tangent(out, scale, here.adjoint, self.one), largest
        mixed, largest_mixed = self.half(layer), numbers()
        kernels.tangent[grid.programs](
            left_of(before[-1].out, tile), right_of(here.packed, tile, True), beside(here.phase, tile), factor,
            beside(here.adjoint, tile), beside(mixed, tile), beside(out, tile), largest, largest_mixed,
            1 / self._mixed_room(layer), count, self.columns[layer - 1], self.columns[layer], self.omegas[layer],
            KIND=self.kind, **tile,
        )  # fmt: skip
        return _Tangent(out, scale, mixed, largest_mixed), largest

    def _mixed_room(self, layer: int) -> float:
        """What the product of a layer's s and a, each at most LARGEST over its slopes, is divided by in float16."""
        from aire_nerfstudio.ops.triton_sums import LARGEST

        return LARGEST.value / max(1.0, self.omegas[layer]) ** 2

    def _last(
        self, grad: Tensor, largest_grad: Tensor, before: _Tangent, largest: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The last sine layer's dz, its scale and largest numbers; gradients of its biases and the last weights."""
        from aire_nerfstudio.ops import triton_gradient_kernels as kernels

        last, here, one = self.last, self.layers[self.last], self.one
        scale, _ = self._scale_of_sum(
            last, (largest_grad, one, one), (largest, self.row_norms(last), 1.0, before.scale, one), self.kept.last_size
        )
        tile, grid, numbers = self.shared_out(last, True)
        dz, largest, parts = self.half(last), numbers(), grad.new_empty(grid.blocks, 2, self.columns[last])
        kernels.last_tangent[grid.programs](
            left_of(before.out, tile), right_of(here.packed, tile, True), beside(here.phase, tile), self.weights[-1],
            grad, scale, before.scale, beside(dz, tile), parts, largest,
            len(grad), self.columns[last - 1], self.columns[last], self.widths[last], self.omegas[last],
            KIND=self.kind, **tile,
        )  # fmt: skip
        found = total_parts(parts, (self.widths[last], self.columns[last], 1, 0), None, scale, 1.0)
        return dz, scale, largest, found

    def _reverse(
        self, layer: int, grad: Tensor, scale: Tensor, largest: Tensor, tangent: _Tangent, direction: Tensor
    ) -> tuple[Any, Tensor, Tensor, Tensor]:
        """A layer's dz, its scale and largest numbers; gradients of its biases and, of the first, its weights."""
        from aire_nerfstudio.ops import triton_gradient_kernels as kernels

        here, behind, one = self.layers[layer], self.layers[layer + 1], self.one
        entry = self.inputs if layer == 0 else 0
        # Of the first layer nothing becomes float16: its scale may be any.
        gain, other = (1.0, one) if entry else (self._mixed_room(layer), tangent.scale)
        first, second = (largest, behind.norms, scale), (tangent.largest_mixed, one, gain, here.scale, other)
        scale, factors = self._scale_of_sum(layer, first, second, one)
        tile, grid, numbers = self.shared_out(layer, layer == 0)
        dz, largest = None if entry else self.half(layer), numbers()
        parts = self.rows.new_empty(grid.blocks, 1 + entry, self.columns[layer])
        kernels.reverse[grid.programs](
            left_of(grad, tile), right_of(behind.packed, tile, False), beside(None if entry else here.phase, tile),
            beside(tangent.mixed, tile), self.rows, direction, self.weights[0], self.biases[0], factors,
            beside(dz, tile), parts, largest, len(grad), self.columns[layer + 1], self.columns[layer],
            self.widths[layer], self.omegas[layer], KIND=self.kind, ENTRY=entry, **tile,
        )  # fmt: skip
        found = total_parts(parts, (self.widths[layer], self.columns[layer], 0, entry), None, scale, 1.0)
        return dz, scale, largest, found

    def _scale_of_sum(
        self, layer: int, first: tuple[Tensor, Tensor, Tensor], second: tuple[Tensor, Tensor, float, Tensor, Tensor],
        times: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The scale ``[1]`` of a layer's dz and the factors ``[2]`` of the two terms that make it up."""
        from aire_nerfstudio.ops import triton_sums as sums

        grads, norms, before = first
        mixed, mixed_norms, gain, scale, other = second
        found, factors, sizes = self.rows.new_empty(1), self.rows.new_empty(2), self.sizes(layer)
        sums.scale_of_sum[(1,)](
            grads, grads.numel(), norms, norms.numel(), before, mixed, mixed.numel(), mixed_norms,
            mixed_norms.numel(), gain, scale, other, times, sizes, sizes.numel(), self.omegas[layer], found, factors,
            KIND=self.kind, BLOCK=sums.SCALE_BLOCK, num_warps=8,
        )  # fmt: skip
        return found, factors
