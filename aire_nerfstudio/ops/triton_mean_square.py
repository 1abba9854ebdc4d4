"""Mean squared error of a sine network on CUDA through Triton, with its gradients: of two ways the faster.

A launch a layer (:mod:`~aire_nerfstudio.ops.triton_network`) is for every network; a SIREN of common form may also be
taken through all of its layers block by block of rows (:mod:`~aire_nerfstudio.ops.triton_step`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from aire_nerfstudio.ops import triton_step
from aire_nerfstudio.ops.activations import Activation
from aire_nerfstudio.ops.fastest import fastest
from aire_nerfstudio.ops.triton_launches import Measured, measure, on_device, plain
from aire_nerfstudio.ops.triton_network import KINDS, Kept, backward_layers, forward_layers


def triton_mean_square(
    x: Tensor, target: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation,
    omegas: Sequence[float], detach_finer_scale: bool = False,
) -> Tensor:  # fmt: skip
    """Mean squared error ``[]`` of a sine network at ``x [N, d]`` against ``target [N, out]``, ``out <= 4``.

    Where :func:`~aire_nerfstudio.ops.triton_network.is_possible`. ``x`` and ``target`` get no gradients.
    """
    kind = KINDS[activation, detach_finer_scale and activation == "finer"]
    settings = (activation, tuple(map(float, omegas)), detach_finer_scale, kind)
    with on_device(x):
        tile = _tile(x, target, weights, biases, settings)
        way = _LayerByLayer if tile is None else _BlockByBlock
        return way.apply(x, target, settings, tile, *weights, *biases)


def _tile(
    x: Tensor, target: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], settings: tuple
) -> triton_step.Tile | None:
    """How blocks of rows go through all layers; None where a launch a layer is faster, or the only way."""
    omegas, kind = settings[1], settings[3]
    if not triton_step.is_possible(x, weights, kind):
        return None
    parameters = [*weights, *biases]

    def layer_by_layer() -> object:
        rows, w, b = plain(x, parameters)
        shares, kept = forward_layers(rows, w, b, omegas, kind, True)
        measured, squares = measure(shares, b[-1], target.detach().contiguous())
        return squares, backward_layers(measured, w, b, kept, settings, False, x.new_ones(()), 1.0)

    def block_by_block(tile: triton_step.Tile) -> object:
        _, w, b = plain(x, parameters)
        step = triton_step.Step(x, target, parameters, omegas, tile)
        return step.squares, step.gradients_of(w, b, x.new_ones(()))

    tiles = triton_step.tiles_for(triton_step.width_of(weights))
    ways: list[Callable[[], object]] = [layer_by_layer, *(functools.partial(block_by_block, tile) for tile in tiles)]
    # Batches of about a size are alike. w0 lies on the device once a way was measured, as a capture wants it.
    key = ("mean square", len(x).bit_length(), omegas, *(tuple(w.shape) for w in weights))
    chosen = fastest(key, ways)
    return None if chosen == 0 else tiles[chosen - 1]


class _LayerByLayer(torch.autograd.Function):
    """The error, and the outputs' distances from their targets, which are its gradient up to a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, settings: tuple, _: None, *parameters: Tensor) -> Tensor:
        rows, weights, biases = plain(x, parameters)
        shares, kept = forward_layers(rows, weights, biases, settings[1], settings[3], True)
        measured, squares = measure(shares, biases[-1], target.detach().contiguous())
        ctx.settings, ctx.count = settings, len(weights)
        ctx.save_for_backward(x, target, *parameters, *measured, *kept.flat())
        return squares.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, target, parameters, saved = _saved(ctx)
        if torch.is_grad_enabled():
            return _by_reference(ctx, x, target, parameters, grad)
        measured, kept = Measured(*saved[:3]), Kept.of(saved[3:])
        _, weights, biases = plain(x, parameters)
        gain = 2 / max(1, measured.grad.numel())
        _, gradients = backward_layers(measured, weights, biases, kept, ctx.settings, False, grad.detach(), gain)
        return _wanted(ctx, gradients)


class _BlockByBlock(torch.autograd.Function):
    """The error; of its gradients all but their sums is there with it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, target: Tensor, settings: tuple, tile: triton_step.Tile, *parameters: Tensor
    ) -> Tensor:
        step = triton_step.Step(x, target, parameters, settings[1], tile)
        ctx.settings, ctx.count = settings, len(parameters) // 2
        ctx.save_for_backward(x, target, *parameters, *step.flat())
        return step.squares.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, target, parameters, saved = _saved(ctx)
        if torch.is_grad_enabled():
            return _by_reference(ctx, x, target, parameters, grad)
        _, weights, biases = plain(x, parameters)
        return _wanted(ctx, triton_step.Step.of(saved).gradients_of(weights, biases, grad.detach()))


def _wanted(ctx: Any, gradients: list[Tensor]) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[4:]
    return None, None, None, None, *(g if need else None for g, need in zip(gradients, needs, strict=True))


def _saved(ctx: Any) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Points, target, parameters, and what forward left; asked for once, as checkpointing wants it."""
    x, target, *saved = ctx.saved_tensors
    return x, target, saved[: 2 * ctx.count], saved[2 * ctx.count :]


def _by_reference(
    ctx: Any, x: Tensor, target: Tensor, parameters: list[Tensor], grad: Tensor
) -> tuple[Tensor | None, ...]:
    from aire_nerfstudio.ops.sine_network import mean_square_by_reference

    needs = ctx.needs_input_grad[4:]
    return None, None, None, None, *mean_square_by_reference(ctx.settings, needs, x, target, parameters, grad)
