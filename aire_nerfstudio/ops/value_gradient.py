"""Value and spatial gradient of a sine network in one call: what losses on distances need.

Equivalent PyTorch: :func:`reference`. Derivatives of :func:`value_and_gradient`:

=================  ==============  ================================================================
derivative         compiled        remark
=================  ==============  ================================================================
weights, biases    yes             of both outputs; six products a hidden layer, as double backward, in fewer passes
x                  by reference    where ``x`` asks for it, the whole call is the reference's
second (weights)   by reference    with ``create_graph``
=================  ==============  ================================================================
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aire_nerfstudio.ops import triton_gradient, triton_passes
from aire_nerfstudio.ops.activations import Activation, derivatives
from aire_nerfstudio.ops.arguments import (
    SMOOTH,
    Arguments,
    can_compile,
    check_network,
    check_sine_layers,
    check_unchanged,
    checked,
    pointer,
    pointers,
    shapes_of,
    solid,
    threads,
)
from aire_nerfstudio.ops.backend import VALUE_GRADIENT
from aire_nerfstudio.ops.create_graph import network_gradients_by_reference

MOST_COORDINATES = 8


def reference(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation, omegas: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The specification: forward once, then back through the transposed layers; FINER's exact derivative.

    Args:
        x: ``[N, d]``.
        weights: ``[n_1, d], ..., [1, n_k]``.
        biases: ``[n_1], ..., [1]``.
        activation: ``siren``, ``finer`` or ``spder``.
        omegas: ``w0`` of each sine layer.

    Returns:
        ``f [N]`` and ``df/dx [N, d]``.
    """
    slopes = []
    h = x
    for weight, bias, omega in zip(weights, biases, omegas, strict=False):
        h, slope, _ = derivatives(torch.nn.functional.linear(h, weight, bias), activation, omega, order=1)
        slopes.append(slope)
    back = weights[-1] * slopes[-1]  # [N, n_k]
    for weight, slope in zip(weights[-2:0:-1], slopes[-2::-1], strict=True):
        back = (back @ weight) * slope
    return torch.nn.functional.linear(h, weights[-1], biases[-1]).squeeze(-1), back @ weights[0]


def value_and_gradient(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation, omegas: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """As :func:`reference`, compiled where that is possible: SIREN or FINER, float32, no autocast.

    On CPU from 64 rows on; on CUDA through Triton where ``torch.set_float32_matmul_precision`` is ``medium``.

    Raises:
        ValueError: biases or omegas that are not as many as the layers, or an unknown activation.
    """
    check_network(weights, biases, activation, omegas)
    check_sine_layers(weights)
    if triton_passes.is_possible(x, weights, biases, activation):
        return triton_gradient.value_and_gradient(x, weights, biases, activation, omegas)
    is_possible = activation in SMOOTH and not x.requires_grad and x.dim() == 2 and x.shape[1] <= MOST_COORDINATES
    is_possible = is_possible and weights[-1].shape[0] == 1
    if not is_possible or not can_compile(VALUE_GRADIENT, x, weights, biases):
        return reference(x, weights, biases, activation, omegas)
    settings = (activation, tuple(map(float, omegas)), torch.is_grad_enabled())
    return _ValueGradient.apply(x, settings, *weights, *biases)


class _ValueGradient(torch.autograd.Function):
    """Both outputs from one pass over the layers and back; what backward needs of the layers is kept between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: tuple, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        rows = solid(x)
        library = VALUE_GRADIENT.loaded()
        keeps = settings[-1] and any(ctx.needs_input_grad)
        value, gradient, kept = _forward(library, rows, settings, parameters, keeps)
        if keeps:
            ctx.settings, ctx.library, ctx.shapes = settings, library, shapes_of(parameters)
            ctx.save_for_backward(rows, kept, *parameters)
            ctx.set_materialize_grads(True)
        return value, gradient

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor, grad_gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, kept, *parameters = ctx.saved_tensors
        activation, omegas, _ = ctx.settings
        count = len(parameters) // 2
        needs = ctx.needs_input_grad[2:]
        check_unchanged(ctx.shapes, parameters)
        if torch.is_grad_enabled():
            return network_gradients_by_reference(reference, ctx, rows, parameters, (grad_value, grad_gradient))
        gf, gg = solid(grad_value), solid(grad_gradient)
        arguments = Arguments(parameters[:count], parameters[count:], omegas)
        gradients = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in parameters]
        checked(
            ctx.library.aire_value_gradient_backward(
                ctypes.c_int(SMOOTH[activation]), *arguments.network, pointer(rows), pointer(gf), pointer(gg),
                ctypes.c_int64(len(rows)), pointer(kept),
                pointers(gradients[:count]), pointers(gradients[count:]), threads(),
            )
        )  # fmt: skip
        return None, None, *(g if need else None for g, need in zip(gradients, needs, strict=True))


def _forward(
    library: ctypes.CDLL, rows: Tensor, settings: tuple, parameters: Sequence[Tensor], keeps: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    activation, omegas, _ = settings
    count = len(parameters) // 2
    arguments = Arguments(parameters[:count], parameters[count:], omegas)
    library.aire_value_gradient_floats.restype = ctypes.c_int64
    floats = library.aire_value_gradient_floats(arguments.layers, arguments.sizes, ctypes.c_int64(len(rows)))
    kept = rows.new_empty(floats) if keeps else None
    value, gradient = rows.new_empty(len(rows)), torch.empty_like(rows)
    checked(
        library.aire_value_gradient(
            ctypes.c_int(SMOOTH[activation]), *arguments.network, pointer(rows), ctypes.c_int64(len(rows)),
            pointer(value), pointer(gradient), pointer(kept), threads(),
        )
    )  # fmt: skip
    return value, gradient, kept
