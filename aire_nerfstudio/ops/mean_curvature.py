"""Gradient and mean-curvature motion of a sine network in one compiled call; the reference is in
:func:`aire_nerfstudio.fields.differential.gradient_and_motion`, which asks :func:`gradient_and_motion` where it can.

=================  ==============  ================================================================
derivative         compiled        remark
=================  ==============  ================================================================
weights, biases    yes             of both outputs, through the normal as well
x                  refused         where ``x`` asks for it, the reference is used
second             refused         with ``create_graph``: an error says so
=================  ==============  ================================================================
"""  # noqa: D205

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aire_nerfstudio.ops import triton_curvature, triton_passes
from aire_nerfstudio.ops.activations import Activation
from aire_nerfstudio.ops.arguments import Arguments, can_compile, checked, pointer, pointers, threads
from aire_nerfstudio.ops.backend import MEAN_CURVATURE

KINDS = {"siren": 0, "finer": 1}


def is_possible(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation) -> bool:
    """Whether :func:`gradient_and_motion` can be had: ``x [N, 3]`` or ``[N, 4]``, float32, rows enough.

    On CPU, and through Triton on CUDA where ``torch.set_float32_matmul_precision`` is ``medium``.
    """
    fits = activation in KINDS and not x.requires_grad and x.dim() == 2 and x.shape[1] in (3, 4)
    if not fits or weights[-1].shape[0] != 1:
        return False
    return triton_passes.is_possible(x, weights, biases, activation) or can_compile(MEAN_CURVATURE, x, weights, biases)


def gradient_and_motion(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation, omegas: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """``df/dx [N, d]`` and ``laplace f - n H n [N]`` in the first three coordinates.

    Args:
        x: ``[N, d]``, for which :func:`is_possible`.
        weights: ``[n_1, d], ..., [1, n_k]``.
        biases: ``[n_1], ..., [1]``.
        activation: ``siren`` or ``finer``.
        omegas: ``w0`` of each sine layer.
    """
    if triton_passes.is_possible(x, weights, biases, activation):
        return triton_curvature.gradient_and_motion(x, weights, biases, activation, omegas)
    return _MeanCurvature.apply(x, (activation, tuple(map(float, omegas))), *weights, *biases)


class _MeanCurvature(torch.autograd.Function):
    """Nothing is kept but the points: backward computes each tile again, which costs less than bringing it back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: tuple, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        activation, omegas = settings
        count = len(parameters) // 2
        rows = x.detach().contiguous()
        arguments = Arguments(parameters[:count], parameters[count:], omegas)
        gradient, motion = torch.empty_like(rows), rows.new_empty(len(rows))
        library = MEAN_CURVATURE.loaded()
        checked(
            library.aire_mean_curvature(
                ctypes.c_int(KINDS[activation]), *arguments.network, pointer(rows), ctypes.c_int64(len(rows)),
                pointer(gradient), pointer(motion), threads(),
            )
        )  # fmt: skip
        ctx.settings, ctx.library = settings, library
        ctx.save_for_backward(rows, *parameters)
        return gradient, motion

    @staticmethod
    def backward(ctx: Any, grad_gradient: Tensor, grad_motion: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, *parameters = ctx.saved_tensors
        activation, omegas = ctx.settings
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the compiled mean curvature cannot be differentiated twice (create_graph=True); set AIRE_OPS=off to "
                "use PyTorch's operations, which can"
            )
        count = len(parameters) // 2
        arguments = Arguments(parameters[:count], parameters[count:], omegas)
        gradients = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in parameters]
        gg, gm = grad_gradient.contiguous(), grad_motion.contiguous()
        checked(
            ctx.library.aire_mean_curvature_backward(
                ctypes.c_int(KINDS[activation]), *arguments.network, pointer(rows), pointer(gg), pointer(gm),
                ctypes.c_int64(len(rows)), pointers(gradients[:count]), pointers(gradients[count:]), threads(),
            )
        )  # fmt: skip
        wanted = ctx.needs_input_grad[2:]
        return None, None, *(g if need else None for g, need in zip(gradients, wanted, strict=True))
