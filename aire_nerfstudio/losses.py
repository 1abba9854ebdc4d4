"""What an SDF should satisfy, point by point; weights and means are the model's business."""

from __future__ import annotations

import torch
from torch import Tensor


def eikonal(gradient: Tensor) -> Tensor:
    """``(|grad f| - 1)^2`` of ``gradient [N, 3]``, ``[N]``: a distance grows by one a unit."""
    return (safe_norm(gradient) - 1).square()


def normal_mismatch(gradient: Tensor, normals: Tensor) -> Tensor:
    """``1 - cos(grad f, n)`` in [0, 2], ``[N]``, of ``gradient [N, 3]`` and unit ``normals [N, 3]``."""
    return 1 - (gradient * normals).sum(-1) / safe_norm(gradient)


def safe_norm(vectors: Tensor) -> Tensor:
    """Euclidean norms ``[N]`` of ``[N, d]``, with gradient 0 where a vector is 0 rather than NaN."""
    return torch.sqrt(vectors.square().sum(-1) + 1e-20)


def flow_residual(rate: Tensor, gradient: Tensor, hessian: Tensor, alpha: float) -> Tensor:
    """``f_t - alpha |grad f| div(grad f / |grad f|)``, ``[N]``: 0 where level sets move by their mean curvature.

    Args:
        rate: ``f_t``, ``[N]``.
        gradient: spatial, ``[N, 3]``.
        hessian: spatial, ``[N, 3, 3]``.
        alpha: speed; the divergence is the sum of the principal curvatures.
    """
    # |grad f| div(grad f / |grad f|) = laplace f - n H n, without a division by a gradient that may vanish.
    n = gradient / safe_norm(gradient)[:, None]
    along = torch.einsum("ni,nij,nj->n", n, hessian, n)
    return rate - alpha * (hessian.diagonal(dim1=-2, dim2=-1).sum(-1) - along)
