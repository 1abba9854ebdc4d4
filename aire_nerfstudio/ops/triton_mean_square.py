"""Mean squared error of a sine network on CUDA through Triton, with its gradients: one op, for one loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aire_nerfstudio.ops.activations import Activation
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
        return _MeanSquare.apply(x, target, settings, *weights, *biases)


class _MeanSquare(torch.autograd.Function):
    """The error, and the outputs' distances from their targets, which are its gradient up to a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, settings: tuple, *parameters: Tensor) -> Tensor:
        rows, weights, biases = plain(x, parameters)
        shares, kept, _ = forward_layers(rows, weights, biases, settings[1], settings[3], True)
        measured, squares = measure(shares, biases[-1], target.detach().contiguous())
        ctx.settings, ctx.count = settings, len(weights)
        ctx.save_for_backward(x, target, *parameters, *measured, *kept.flat())
        return squares.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        from aire_nerfstudio.ops.sine_network import mean_square_by_reference

        # Asked for once, as checkpointing wants it.
        x, target, *saved = ctx.saved_tensors
        parameters, saved = saved[: 2 * ctx.count], saved[2 * ctx.count :]
        needs = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():
            gradients = mean_square_by_reference(ctx.settings, needs, x, target, parameters, grad)
            return None, None, None, *gradients
        measured, kept = Measured(*saved[:3]), Kept.of(saved[3:])
        _, weights, biases = plain(x, parameters)
        gain = 2 / max(1, measured.grad.numel())
        _, found = backward_layers(measured, weights, biases, kept, ctx.settings, False, grad.detach(), gain)
        return None, None, None, *(g if need else None for g, need in zip(found, needs, strict=True))
