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
