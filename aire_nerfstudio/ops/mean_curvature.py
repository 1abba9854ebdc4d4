"""Gradient and mean-curvature motion of a sine network in one call: what losses on flows need.

``laplace f - n H n`` is ``u H u + v H v`` for unit vectors u, v across the normal n, and of a network of one output
that needs no second-order stream: with ``a = df/dh`` of a layer's values and ``s = dz/du`` of its pre-activations, it
is the sum over layers and neurons of ``a act''(z) (s_u^2 + s_v^2)``. Equivalent PyTorch: :func:`reference`.
Derivatives of :func:`gradient_and_motion`:

=================  ==============  ================================================================
derivative         compiled        remark
=================  ==============  ================================================================
weights, biases    yes             of both outputs, through the normal as well
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

from aire_nerfstudio.ops import triton_curvature, triton_passes
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
from aire_nerfstudio.ops.backend import MEAN_CURVATURE
from aire_nerfstudio.ops.create_graph import network_gradients_by_reference
from aire_nerfstudio.ops.vectors import across, safe_norm


def reference(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation, omegas: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The specification: values, the adjoint back to the gradient, then tangents along two directions across it.

    The two are smooth in the normal, and only their span matters: derivatives of any order are right.

    Args:
        x: ``[N, d]``, the first three coordinates space.
        weights: ``[n_1, d], ..., [1, n_k]``.
        biases: ``[n_1], ..., [1]``.
        activation: ``siren`` or ``finer``.
        omegas: ``w0`` of each sine layer.

    Returns:
        ``df/dx [N, d]`` and ``laplace f - n H n [N]`` in the first three coordinates; where the gradient vanishes, and
        there is no normal, across the third axis.
    """
    h, slopes, bends, adjoints = x, [], [], []
    for weight, bias, omega in zip(weights, biases, omegas, strict=False):
        h, slope, bend = derivatives(torch.nn.functional.linear(h, weight, bias), activation, omega, order=2)
        slopes.append(slope)
        bends.append(bend)
    a = weights[-1].expand_as(slopes[-1])
    for weight, slope in zip(weights[-2::-1], slopes[::-1], strict=True):
        adjoints.append(a)
        a = (a * slope) @ weight
    gradient = a
    length = safe_norm(gradient[:, :3])[:, None]
    normal = gradient[:, :3] / length
    # Where there is no normal its derivative, which is divided by that length, says nothing.
    normal = torch.where(length > 1e-9, normal, normal.detach())
    tangents = torch.nn.functional.pad(across(normal), (0, x.shape[-1] - 3))
    motion = gradient.new_zeros(len(x))
    for weight, slope, bend, adjoint in zip(weights, slopes, bends, adjoints[::-1], strict=False):
        s = tangents @ weight.T
        motion = motion + (adjoint * bend * s.square().sum(0)).sum(-1)
        tangents = slope * s
    return gradient, motion


def gradient_and_motion(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation, omegas: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """As :func:`reference`, compiled where that is possible: float32, no autocast.

    On CPU from 64 rows on; on CUDA through Triton where ``torch.set_float32_matmul_precision`` is ``medium``.

    Raises:
        ValueError: biases or omegas that are not as many as the layers, or an activation other than SIREN and FINER.
    """
    check_network(weights, biases, activation, omegas)
    check_sine_layers(weights)
    if activation not in SMOOTH:
        raise ValueError("SPDER's second derivative is not bounded near 0; take siren or finer")
    fits = activation in SMOOTH and not x.requires_grad and x.dim() == 2 and x.shape[1] in (3, 4)
    fits = fits and weights[-1].shape[0] == 1
    if fits and triton_passes.is_possible(x, weights, biases, activation):
        return triton_curvature.gradient_and_motion(x, weights, biases, activation, omegas)
    if not fits or not can_compile(MEAN_CURVATURE, x, weights, biases):
        return reference(x, weights, biases, activation, omegas)
    settings = (activation, tuple(map(float, omegas)), torch.is_grad_enabled())
    return _MeanCurvature.apply(x, settings, *weights, *biases)


class _MeanCurvature(torch.autograd.Function):
    """What is dear to compute again is kept between the two; nothing but the points where products are cheap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: tuple, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        activation, omegas, is_grad_enabled = settings
        count = len(parameters) // 2
        rows = solid(x)
        arguments = Arguments(parameters[:count], parameters[count:], omegas)
        gradient, motion = torch.empty_like(rows), rows.new_empty(len(rows))
        library, kept = MEAN_CURVATURE.loaded(), None
        if is_grad_enabled and any(ctx.needs_input_grad):
            library.aire_mean_curvature_floats.restype = ctypes.c_int64
            floats = library.aire_mean_curvature_floats(arguments.layers, arguments.sizes, ctypes.c_int64(len(rows)))
            kept = rows.new_empty(floats) if floats else None
        checked(
            library.aire_mean_curvature(
                ctypes.c_int(SMOOTH[activation]), *arguments.network, pointer(rows), ctypes.c_int64(len(rows)),
                pointer(gradient), pointer(motion), pointer(kept), threads(),
            )
        )  # fmt: skip
        ctx.settings, ctx.library, ctx.shapes = settings, library, shapes_of(parameters)
        ctx.save_for_backward(rows, kept, *parameters)
        return gradient, motion

    @staticmethod
    def backward(ctx: Any, grad_gradient: Tensor, grad_motion: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, kept, *parameters = ctx.saved_tensors
        activation, omegas, _ = ctx.settings
        check_unchanged(ctx.shapes, parameters)
        count = len(parameters) // 2
        if torch.is_grad_enabled():
            return network_gradients_by_reference(reference, ctx, rows, parameters, (grad_gradient, grad_motion))
        arguments = Arguments(parameters[:count], parameters[count:], omegas)
        gradients = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in parameters]
        gg, gm = solid(grad_gradient), solid(grad_motion)
        checked(
            ctx.library.aire_mean_curvature_backward(
                ctypes.c_int(SMOOTH[activation]), *arguments.network, pointer(rows), pointer(gg), pointer(gm),
                ctypes.c_int64(len(rows)), pointer(kept), pointers(gradients[:count]), pointers(gradients[count:]),
                threads(),
            )
        )  # fmt: skip
        wanted = ctx.needs_input_grad[2:]
        return None, None, *(g if need else None for g, need in zip(gradients, wanted, strict=True))
