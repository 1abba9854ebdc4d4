"""What an SDF should satisfy, point by point; weights and means are the model's business."""

from __future__ import annotations

from torch import Tensor

from aire_nerfstudio.fields.differential import safe_norm


def eikonal(gradient: Tensor) -> Tensor:
    """``(|grad f| - 1)^2`` of ``gradient [N, 3]``, ``[N]``: a distance grows by one a unit."""
    return (safe_norm(gradient) - 1).square()


def normal_mismatch(gradient: Tensor, normals: Tensor) -> Tensor:
    """``1 - cos(grad f, n)`` in [0, 2], ``[N]``, of ``gradient [N, 3]`` and unit ``normals [N, 3]``."""
    return 1 - (gradient * normals).sum(-1) / safe_norm(gradient)


def flow_residual(rate: Tensor, motion: Tensor, alpha: float) -> Tensor:
    """``f_t - alpha |grad f| div(grad f / |grad f|)``, ``[N]``: 0 where level sets move by their mean curvature.

    Args:
        rate: ``f_t``, ``[N]``.
        motion: :func:`~aire_nerfstudio.fields.differential.motion`, ``[N]``.
        alpha: speed; the divergence is the sum of the principal curvatures.
    """
    return rate - alpha * motion
