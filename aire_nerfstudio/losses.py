"""What a distance and a flow should satisfy: point by point, and as the weighted means that are trained on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from aire_nerfstudio.fields.differential import gradient_and_motion, value_and_gradient
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops.vectors import safe_norm
from aire_nerfstudio.shapes import OtherRows, PartPoints3, PerRow, Points3


def eikonal(gradient: Points3) -> PerRow:
    """``(|grad f| - 1)^2`` of ``gradient [N, 3]``, ``[N]``: a distance grows by one a unit."""
    return (safe_norm(gradient) - 1).square()


def normal_mismatch(gradient: Points3, normals: Points3) -> PerRow:
    """``1 - cos(grad f, n)`` in [0, 2], ``[N]``, of ``gradient [N, 3]`` and unit ``normals [N, 3]``."""
    return 1 - (gradient * normals).sum(-1) / safe_norm(gradient)


def flow_residual(rate: PerRow, motion: PerRow, alpha: float) -> PerRow:
    """``f_t - alpha |grad f| div(grad f / |grad f|)``, ``[N]``: 0 where level sets move by their mean curvature.

    Args:
        rate: ``f_t``, ``[N]``.
        motion: :func:`~aire_nerfstudio.fields.differential.motion`, ``[N]``.
        alpha: speed; the divergence is the sum of the principal curvatures.
    """
    return rate - alpha * motion


@dataclass(frozen=True)
class SurfaceWeights:
    """Weights of a distance's loss; the defaults are the reference implementation's."""

    surface: float = 3e3
    """Of the mean of f^2 on the surface."""
    distance: float = 2e2
    """Of the mean of (f - distance)^2 off it."""
    normal: float = 1e2
    """Of the mean of 1 - cos(grad f, n) on it."""
    eikonal: float = 5e1
    """Of the mean of (|grad f| - 1)^2 everywhere."""


def surface_loss(
    sdf: PerRow, gradient: Points3, normals: PartPoints3, distances: OtherRows, weights: SurfaceWeights
) -> dict[str, Tensor]:
    """The four weighted means whose sum a signed distance minimises, each ``[]``.

    Args:
        sdf: network's values, ``[N + M]``: first on the surface, then off it.
        gradient: of them, ``[N + M, 3]``.
        normals: of the surface, unit, ``[N, 3]``.
        distances: true ones, ``[M]``.
        weights: of the terms.
    """
    count = len(normals)
    return {
        "surface_loss": weights.surface * sdf[:count].square().mean(),
        "distance_loss": weights.distance * (sdf[count:] - distances).square().mean(),
        "normal_loss": weights.normal * normal_mismatch(gradient[:count], normals).mean(),
        "eikonal_loss": weights.eikonal * eikonal(gradient).mean(),
    }


@dataclass(frozen=True)
class FlowWeights:
    """Weights of a flow's loss; the defaults are the reference implementation's."""

    data: float = 2e3
    """Of the mean squared errors at time 0, on the surface and off it."""
    normal: float = 1e1
    """Of the mean of 1 - cos(grad f, n) on the surface at time 0."""
    flow: float = 1e3
    """Of the mean squared residual of the equation."""


def flow_loss(
    network: SineMLP, points: Tensor, normals: Tensor, distances: Tensor, alpha: float, weights: FlowWeights
) -> dict[str, Tensor]:
    """The three weighted means whose sum a flow minimises, each ``[]``.

    Args:
        network: ``(x, y, z, t) -> f``.
        points: ``[N + M + P, 4]``: on the surface and off it at time 0, then anywhere in space-time.
        normals: of the surface, unit, ``[N, 3]``.
        distances: true ones at time 0, ``[M]``.
        alpha: speed.
        weights: of the terms.
    """
    n_on, n_off = len(normals), len(distances)
    on, off, anywhere = points.split([n_on, n_off, len(points) - n_on - n_off])
    value, gradient = value_and_gradient(network, on)
    off_error = network(off).squeeze(-1) - distances
    slope, motion = gradient_and_motion(network, anywhere)
    residual = flow_residual(slope[:, 3], motion, alpha)
    return {
        "data_loss": weights.data * (value.square().mean() + off_error.square().mean()),
        "normal_loss": weights.normal * normal_mismatch(gradient[:, :3], normals).mean(),
        "flow_loss": weights.flow * residual.square().mean(),
    }
