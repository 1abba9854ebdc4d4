"""Lengths and directions of vectors that may vanish."""

from __future__ import annotations

import torch
from torch import Tensor

from aire_nerfstudio.shapes import AnyPoints, AnyRows, Points3


def safe_norm(vectors: AnyPoints) -> AnyRows:
    """Euclidean norms ``[N]`` of ``[N, d]``, with gradient 0 where a vector is 0 rather than NaN."""
    return torch.sqrt(vectors.square().sum(-1) + 1e-20)


def across(normals: Points3) -> Tensor:
    """Two unit vectors at right angles to each unit vector ``[N, 3]`` and to each other, ``[2, N, 3]``.

    Source: Duff et al. 2017, "Building an orthonormal basis, revisited". Of a vector that is 0, the first two axes.
    """
    x, y, z = normals.unbind(-1)
    sign = torch.where(z < 0, -1.0, 1.0).to(z)
    a = -1 / (sign + z)
    b = x * y * a
    first = torch.stack([1 + sign * x.square() * a, sign * b, -sign * x], -1)
    return torch.stack([first, torch.stack([b, sign + y.square() * a, -y], -1)])
