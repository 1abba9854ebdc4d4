"""Backward passes of compiled ops that are to be differentiated again (``create_graph=True``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def gradients_by_reference(
    function: Callable[..., Tensor | tuple[Tensor, ...]], tensors: Sequence[Tensor], needs: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of a function's outputs, as functions of the tensors that can be differentiated themselves.

    Args:
        function: the op's specification, of ``tensors``.
        tensors: its arguments, which may be computed from each other, or be one and the same.
        needs: which of them want a gradient.
        grads: of the outputs, None where nothing is asked.

    Returns:
        One a tensor, zeros where nothing depends on it, None where none is wanted.
    """
    # Names of their own: what one argument owes to another is the outer graph's, and would be counted twice.
    aliases = [t.view_as(t) for t in tensors]
    outputs = function(*aliases)
    outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    inputs = [alias for alias, need in zip(aliases, needs, strict=True) if need]
    pairs = [(y, grad) for y, grad in zip(outputs, grads, strict=True) if y.requires_grad and grad is not None]
    found = iter(
        torch.autograd.grad([y for y, _ in pairs], inputs, [g for _, g in pairs], create_graph=True, allow_unused=True)
    )
    given = [next(found) if need else None for need in needs]
    return [torch.zeros_like(t) if g is None and need else g for g, need, t in zip(given, needs, tensors, strict=True)]


def network_gradients_by_reference(
    reference: Callable[..., tuple[Tensor, ...]], ctx: Any, rows: Tensor, parameters: list[Tensor],
    grads: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """What the backward pass of an op ``(x, settings, *weights, *biases)`` returns, ``x`` asking for nothing.

    Args:
        reference: the op's specification, of ``x, weights, biases, activation, omegas``.
        ctx: autograd's, with the op's ``settings``: activation, omegas, and what else it has.
        rows: ``x``.
        parameters: weights, then biases.
        grads: of the outputs.
    """
    activation, omegas, *_ = ctx.settings
    count = len(parameters) // 2

    def outputs(*parameters: Tensor) -> tuple[Tensor, ...]:
        return reference(rows, parameters[:count], parameters[count:], activation, omegas)

    return None, None, *gradients_by_reference(outputs, parameters, ctx.needs_input_grad[2:], grads)
