"""A sine network in one call: compiled on CPU where that is possible, PyTorch's operations elsewhere.

Equivalent PyTorch: :func:`reference`. Derivatives of :func:`sine_network`:

=================  ==============  ================================================================
derivative         compiled        remark
=================  ==============  ================================================================
weights, biases    yes             sums over rows in a fixed order: the same bits for the same threads
x                  yes             where ``x`` asks for it
second (all)       by reference    with ``create_graph`` the backward is that of :func:`reference`
many at once       no              ``is_grads_batched``, ``jacobian(vectorize=True)``: take ``AIRE_OPS=off``
=================  ==============  ================================================================
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aire_nerfstudio.ops import triton_network
from aire_nerfstudio.ops.activations import Activation, activate
from aire_nerfstudio.ops.arguments import (
    Arguments,
    can_compile,
    check_network,
    check_unchanged,
    checked,
    pointer,
    pointers,
    shapes_of,
    solid,
    threads,
)
from aire_nerfstudio.ops.backend import SINE_NETWORK
from aire_nerfstudio.ops.create_graph import gradients_by_reference
from aire_nerfstudio.ops.triton_mean_square import triton_mean_square
from aire_nerfstudio.ops.triton_network import KINDS


def reference(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation, omegas: Sequence[float],
    detach_finer_scale: bool = False,
) -> Tensor:  # fmt: skip
    """The specification: ``h -> activate(W h + b)`` for each layer but the last, then ``W h + b``.

    Args:
        x: ``[..., d]``.
        weights: ``[n_1, d], [n_2, n_1], ..., [out, n_k]``.
        biases: ``[n_1], ..., [out]``.
        activation: ``siren``, ``finer`` or ``spder``.
        omegas: ``w0`` of each sine layer, ``k`` numbers.
        detach_finer_scale: FINER's published backward.

    Returns:
        ``[..., out]``.
    """
    for weight, bias, omega in zip(weights, biases, omegas, strict=False):
        x = activate(torch.nn.functional.linear(x, weight, bias), activation, omega, detach_finer_scale)
    return torch.nn.functional.linear(x, weights[-1], biases[-1])


def sine_network(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation, omegas: Sequence[float],
    detach_finer_scale: bool = False,
) -> Tensor:  # fmt: skip
    """As :func:`reference`, compiled where that is possible: float32, no autocast.

    On CPU from 64 rows on; on CUDA through Triton where ``torch.set_float32_matmul_precision`` is ``medium``.

    Raises:
        ValueError: biases or omegas that are not as many as the layers, or an unknown activation.
    """
    check_network(weights, biases, activation, omegas)
    if triton_network.is_possible(x, weights, biases):
        return triton_network.triton_network(x, weights, biases, activation, omegas, detach_finer_scale)
    if not can_compile(SINE_NETWORK, x, weights, biases):
        return reference(x, weights, biases, activation, omegas, detach_finer_scale)
    kind = KINDS[activation, detach_finer_scale and activation == "finer"]
    settings = (activation, tuple(map(float, omegas)), detach_finer_scale, kind, torch.is_grad_enabled())
    return _SineNetwork.apply(x, settings, *weights, *biases)


def mean_square_step(
    x: Tensor, target: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation,
    omegas: Sequence[float], detach_finer_scale: bool = False,
) -> Tensor:  # fmt: skip
    """Mean squared error ``[]`` of a sine network at ``x [N, d]`` against ``target [N, out]``, ready for one backward.

    Compiled for a processor, value and gradients come in one pass, in which nothing is kept: the gradients of weights
    and biases are there before ``backward`` asks for them. On CUDA through Triton the error and its gradient are one
    launch, and maybe so are all gradients but their sums. ``x`` and ``target`` get none.
    """
    check_network(weights, biases, activation, omegas)
    out = weights[-1].shape[0]
    if x.dim() != 2 or target.shape != (len(x), out):
        raise ValueError(f"x must be [N, d] and target [N, {out}]; got {tuple(x.shape)} and {tuple(target.shape)}")
    needs_none = not (x.requires_grad or target.requires_grad) and target.dtype == x.dtype and target.device == x.device
    is_step = needs_none and torch.is_grad_enabled() and any(p.requires_grad for p in (*weights, *biases))
    if is_step and out <= triton_network.NARROW and triton_network.is_possible(x, weights, biases):
        return triton_mean_square(x, target, weights, biases, activation, omegas, detach_finer_scale)
    if not (is_step and can_compile(SINE_NETWORK, x, weights, biases)):
        y = sine_network(x, weights, biases, activation, omegas, detach_finer_scale)
        return (y - target).square().mean()
    kind = KINDS[activation, detach_finer_scale and activation == "finer"]
    settings = (activation, tuple(map(float, omegas)), detach_finer_scale, kind)
    return _MeanSquareStep.apply(x, target, settings, *weights, *biases)


class _SineNetwork(torch.autograd.Function):
    """Forward and backward, tile by tile; pre-activations are kept between the two where that is faster."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: tuple, *parameters: Tensor) -> Tensor:
        _, omegas, _, kind, is_grad_enabled = settings
        weights, biases = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]
        rows = solid(x).reshape(-1, x.shape[-1])
        arguments = Arguments(weights, biases, omegas)
        y = rows.new_empty(len(rows), weights[-1].shape[0])
        kept, library = None, SINE_NETWORK.loaded()
        if is_grad_enabled and any(ctx.needs_input_grad):
            library.aire_kept_floats.restype = ctypes.c_int64
            count = library.aire_kept_floats(arguments.layers, arguments.sizes, ctypes.c_int64(len(rows)))
            kept = rows.new_empty(count) if count else None
        checked(
            library.aire_forward(
                ctypes.c_int(kind), *arguments.network, pointer(rows), ctypes.c_int64(len(rows)), pointer(y),
                pointer(kept), threads(),
            )
        )  # fmt: skip
        ctx.settings, ctx.library, ctx.shapes = settings, library, shapes_of(parameters)
        ctx.save_for_backward(x, kept, *parameters)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, kept, *parameters = ctx.saved_tensors
        omegas = ctx.settings[1]
        count = len(parameters) // 2
        check_unchanged(ctx.shapes, parameters)
        if torch.is_grad_enabled():
            return backward_by_reference(ctx, x, parameters, grad)
        rows = solid(x).reshape(-1, x.shape[-1])
        gy = solid(grad).reshape(len(rows), -1)
        arguments = Arguments(parameters[:count], parameters[count:], omegas)
        gradients = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in parameters]
        dx = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        checked(
            ctx.library.aire_backward(
                ctypes.c_int(ctx.settings[3]), *arguments.network, pointer(rows), pointer(gy),
                ctypes.c_int64(len(rows)), pointer(kept),
                pointers(gradients[:count]), pointers(gradients[count:]), pointer(dx), threads(),
            )
        )  # fmt: skip
        wanted = [g if need else None for g, need in zip(gradients, ctx.needs_input_grad[2:], strict=True)]
        return None if dx is None else dx.view(x.shape), None, *wanted


def backward_by_reference(ctx: Any, x: Tensor, parameters: list[Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
    """With ``create_graph``: through the reference, so that derivatives of derivatives are right."""
    activation, omegas, detach, *_ = ctx.settings
    count = len(parameters) // 2

    def network(x: Tensor, *parameters: Tensor) -> Tensor:
        return reference(x, parameters[:count], parameters[count:], activation, omegas, detach)

    needs = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2:]]
    first, *others = gradients_by_reference(network, [x, *parameters], needs, [grad])
    return first, None, *others


class _MeanSquareStep(torch.autograd.Function):
    """The error, with the gradients computed in the same pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, settings: tuple, *parameters: Tensor) -> Tensor:
        _, omegas, _, kind = settings
        count = len(parameters) // 2
        rows, wanted = solid(x), solid(target)
        arguments = Arguments(parameters[:count], parameters[count:], omegas)
        gradients = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in parameters]
        error = ctypes.c_double()
        checked(
            SINE_NETWORK.loaded().aire_fit(
                ctypes.c_int(kind), *arguments.network, pointer(rows), pointer(wanted), ctypes.c_int64(len(rows)),
                pointers(gradients[:count]), pointers(gradients[count:]), ctypes.byref(error), threads(),
            )
        )  # fmt: skip
        ctx.settings = settings
        ctx.save_for_backward(x, target, *parameters, *gradients)
        return rows.new_tensor(error.value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, target, *rest = ctx.saved_tensors
        parameters, gradients = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        needs = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():
            return None, None, None, *mean_square_by_reference(ctx.settings, needs, x, target, parameters, grad)
        is_one = bool(grad == 1)
        # Copies: whoever gets them may change them.
        scaled = [g.clone() if is_one else grad * g for g in gradients]
        return None, None, None, *(g if need else None for g, need in zip(scaled, needs, strict=True))


def mean_square_by_reference(
    settings: tuple, needs: Sequence[bool], x: Tensor, target: Tensor, parameters: list[Tensor], grad: Tensor
) -> list[Tensor | None]:
    """With ``create_graph``: the error's gradients through the reference, of the parameters that need one."""
    activation, omegas, detach, *_ = settings
    count = len(parameters) // 2

    def error(*parameters: Tensor) -> Tensor:
        y = reference(x, parameters[:count], parameters[count:], activation, omegas, detach)
        return (y - target).square().mean()

    return gradients_by_reference(error, parameters, needs, [grad])
