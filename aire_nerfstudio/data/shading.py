"""One look for surfaces, true and learned: hue from the normal, a light beside the camera."""

from __future__ import annotations

import torch
from torch import Tensor

AMBIENT = 0.35


def shade(normals: Tensor, directions: Tensor) -> Tensor:
    """Colours in [0, 1] of a surface.

    Args:
        normals: unit, ``[..., 3]``.
        directions: unit, from the eye, ``[..., 3]``.

    Returns:
        ``[..., 3]``.
    """
    facing = -(normals * directions).sum(-1, keepdim=True)
    light = AMBIENT + (1 - AMBIENT) * facing.clamp_min(0)
    return ((0.62 + 0.33 * normals) * light).clamp(0, 1)


def heat(values: Tensor, largest: float) -> Tensor:
    """Signed values as colours: blue below 0, white at 0, red above, ``[..., 1] -> [..., 3]``."""
    share = (values / largest).clamp(-1, 1)
    red, blue = share.clamp_min(0), (-share).clamp_min(0)
    return torch.cat([1 - blue, 1 - red - blue, 1 - red], dim=-1)
