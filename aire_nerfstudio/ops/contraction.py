"""All of space in a cube: what a scene without bounds needs to have a grid, and a network that knows its inputs.

Source: mip-NeRF 360 (Barron et al. 2022), equation 10, in the maximum norm that nerfacto takes, so that a cube is
filled; here scaled by a half, to ``[-1, 1]^3``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def contract(x: Tensor) -> Tensor:
    """``x / 2`` in ``[-1, 1]^3`` and ``(1 - 1 / (2 m)) x / m`` outside, ``m = max |x_i|``; ``[..., 3] -> [..., 3]``."""
    return x * _scale(x.abs().amax(-1, keepdim=True))


def expand(u: Tensor) -> Tensor:
    """The inverse of :func:`contract`, for ``u [..., 3]`` within ``(-1, 1)^3``; its edge is infinitely far away."""
    size = 2 * u.abs().amax(-1, keepdim=True)
    return torch.where(size > 1, 2 * u / (size * (2 - size)), 2 * u)


def pull_back(x: Tensor, gradient: Tensor) -> Tensor:
    """A gradient by ``contract(x)`` as one by ``x [..., 3]``: the transposed Jacobian times ``gradient [..., 3]``."""
    size, axis = x.abs().max(-1, keepdim=True)
    # Of the scale (1 - 1 / (2 m)) / m; zero within the cube.
    slope = torch.where(size > 1, (1 / size - 1) / size.square(), torch.zeros_like(size))
    along = slope * (x * gradient).sum(-1, keepdim=True) * x.gather(-1, axis).sign()
    return (_scale(size) * gradient).scatter_add(-1, axis, along)


def radial_scale(x: Tensor) -> Tensor:
    """``1 / max(1, m^2)``: how much shorter than in the middle a radial step is in contracted space, ``[...]``."""
    return 1 / x.abs().amax(-1).clamp_min(1).square()


def _scale(size: Tensor) -> Tensor:
    return 0.5 * torch.where(size > 1, (2 - 1 / size) / size, torch.ones_like(size))
