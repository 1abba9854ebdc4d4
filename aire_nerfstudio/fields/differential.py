"""Derivatives of a sine network with respect to its coordinates, carried through the layers in closed form.

Everything here is built from differentiable operations, so that one ``backward`` gives the derivatives of a loss on
them with respect to the weights. Signs: a signed distance is negative inside, its gradient points outwards, and
curvature is positive where the surface bulges outwards (a sphere of radius r has the curvature sum ``2 / r``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops import mean_curvature
from aire_nerfstudio.ops import value_gradient as ops
from aire_nerfstudio.ops.activations import derivatives
from aire_nerfstudio.ops.vectors import safe_norm
from aire_nerfstudio.shapes import PerRow, Points, Points3


def value_and_gradient(network: SineMLP, x: Points) -> tuple[PerRow, Points]:
    """``f(x)`` and ``df/dx`` of a network with one output: forward once, then back through the transposed layers.

    FINER's exact derivative is used whatever ``detach_finer_scale`` says.

    Args:
        network: one output.
        x: ``[N, d]``.

    Returns:
        ``[N]`` and ``[N, d]``.

    Raises:
        ValueError: the network has more than one output.
    """
    _check(network)
    weights, biases, activation, omegas, _ = network.for_ops()
    return ops.value_and_gradient(x, weights, biases, activation, omegas)


def value_gradient_hessian(
    network: SineMLP, x: Tensor, axes: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``f``, its gradient and its Hessian, carried forward through the layers.

    Args:
        network: one output; SIREN or FINER (SPDER's second derivative has no bound near 0).
        x: ``[N, d]``.
        axes: coordinates of the Hessian, e.g. ``(0, 1, 2)`` for the spatial part of a space-time field; None: all.

    Returns:
        ``[N]``, ``[N, d]`` and ``[N, a, a]`` with ``a = len(axes)``.

    Raises:
        ValueError: the network has more than one output, or is a SPDER.
    """
    _check(network, second=True)
    d = x.shape[-1]
    axes = tuple(range(d)) if axes is None else tuple(axes)
    pairs = [(i, j) for i in range(len(axes)) for j in range(i, len(axes))]
    first = torch.tensor([axes[i] for i, _ in pairs], device=x.device)
    second = torch.tensor([axes[j] for _, j in pairs], device=x.device)
    h, jacobian, curvature = x, None, None  # [N, n], [d, N, n], [pairs, N, n]
    for layer, omega in network.sine_layers():
        weight = layer.weight
        value, slope, bend = derivatives(layer(h), network.activation, omega, order=2)
        if jacobian is None or curvature is None:
            dz = weight.T[:, None, :].expand(d, x.shape[0], -1)
            jacobian = slope * dz
            curvature = bend * dz[first] * dz[second]
        else:
            dz, ddz = jacobian @ weight.T, curvature @ weight.T
            jacobian = slope * dz
            curvature = slope * ddz + bend * dz[first] * dz[second]
        h = value
    assert jacobian is not None
    assert curvature is not None
    last = network.affines()[-1]
    gradient = (jacobian @ last.weight[0]).T
    entries = (curvature @ last.weight[0]).T  # [N, pairs]
    where = torch.empty(len(axes), len(axes), dtype=torch.long, device=x.device)
    for position, (i, j) in enumerate(pairs):
        where[i, j] = where[j, i] = position
    return last(h).squeeze(-1), gradient, entries[:, where.flatten()].view(-1, len(axes), len(axes))


def curvature_sum(gradient: Points, hessian: Float[Tensor, "n d d"]) -> PerRow:
    """``div(grad f / |grad f|)``: the sum of the principal curvatures of the level set through each point.

    Args:
        gradient: ``[N, d]``, not 0.
        hessian: ``[N, d, d]``.

    Returns:
        ``[N]``; ``2 / r`` on a sphere of radius r.
    """
    return motion(gradient, hessian) / gradient.norm(dim=-1)


def motion(gradient: Points3, hessian: Float[Tensor, "n 3 3"]) -> PerRow:
    """``|grad f| div(grad f / |grad f|) = laplace f - n H n``, ``[N]``: no division by a gradient that may vanish.

    Args:
        gradient: ``[N, d]``.
        hessian: ``[N, d, d]``.
    """
    n = gradient / safe_norm(gradient)[:, None]
    return hessian.diagonal(dim1=-2, dim2=-1).sum(-1) - torch.einsum("ni,nij,nj->n", n, hessian, n)


def gradient_and_motion(network: SineMLP, x: Points) -> tuple[Points, PerRow]:
    """Gradient and :func:`motion` in the first three coordinates, without a second-order stream.

    :mod:`aire_nerfstudio.ops.mean_curvature` says how.

    Args:
        network: one output, four inputs ``(x, y, z, t)`` or three; SIREN or FINER.
        x: ``[N, d]``.

    Returns:
        ``[N, d]`` and ``[N]``, both differentiable in the weights. Where the gradient vanishes, and there is no normal,
        the motion is that across the third axis.

    Raises:
        ValueError: the network has more than one output or fewer than three inputs, or is a SPDER.
    """
    _check(network, second=True)
    if network.in_features < 3:
        raise ValueError(
            f"the network has {network.in_features} inputs; mean curvature is of three coordinates in space"
        )
    weights, biases, activation, omegas, _ = network.for_ops()
    return mean_curvature.gradient_and_motion(x, weights, biases, activation, omegas)


def _check(network: SineMLP, second: bool = False) -> None:
    if network.out_features != 1:
        raise ValueError(f"the network has {network.out_features} outputs; derivatives are of one")
    if network.has_hooks():
        raise ValueError(
            "the layers have hooks, which derivatives in closed form go past; torch.nn.utils.prune: make it permanent "
            "with prune.remove"
        )
    if second and network.activation == "spder":
        raise ValueError("SPDER's second derivative is not bounded near 0; take siren or finer")
