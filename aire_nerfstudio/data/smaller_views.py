"""Views at fewer pixels: camera and picture keep to the same field, whatever size rounding gives."""

from __future__ import annotations

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor


def shrink_camera(camera: Cameras, longest_side: int | None) -> None:
    """Give a camera fewer pixels, in place, if its longer side has more than ``longest_side``.

    nerfstudio's own rescaling keeps pixels square and rounds the size, so that the field grows or loses up to a pixel
    at the far edges; here both focal lengths follow the rounded sides.

    Args:
        camera: of shape ``[1]``; gets new tensors, so that those it may share stay as they are.
        longest_side: pixels, at least 1. None: left as it is.
    """
    height, width = int(camera.height.max()), int(camera.width.max())
    if longest_side is None or max(height, width) <= longest_side:
        return
    share = longest_side / max(height, width)
    rows, columns = (max(1, round(share * side)) for side in (height, width))
    camera.fx, camera.cx = (value * (columns / width) for value in (camera.fx, camera.cx))
    camera.fy, camera.cy = (value * (rows / height) for value in (camera.fy, camera.cy))
    camera.height, camera.width = torch.full_like(camera.height, rows), torch.full_like(camera.width, columns)


def shrink_picture(image: Float[Tensor, "H W C"], size: tuple[int, int]) -> Float[Tensor, "h w C"]:
    """Means over the pixels of a smaller picture, by the area that each old one shares with it.

    Args:
        image: ``[H, W, C]``; with four channels, the last is alpha, by which colours count.
        size: rows and columns, no more than those of the image.
    """
    if tuple(image.shape[:2]) == size:
        return image
    alpha = image[..., 3:]
    weighted = torch.cat([image[..., :3] * alpha, alpha], -1) if alpha.shape[-1] else image
    down, across = (_shares(old, new).to(image) for old, new in zip(image.shape[:2], size, strict=True))
    mean = torch.einsum("hH,HWc,wW->hwc", down, weighted, across)
    if alpha.shape[-1]:
        mean = torch.cat([mean[..., :3] / mean[..., 3:].clamp_min(1e-6), mean[..., 3:]], -1)
    return mean


def _shares(old: int, new: int) -> Tensor:
    """``[new, old]``: which share of a new pixel each old one makes up."""
    edges = torch.arange(new + 1, dtype=torch.float64) * old / new
    pixels = torch.arange(old, dtype=torch.float64)
    begin = torch.maximum(edges[:-1, None], pixels)
    end = torch.minimum(edges[1:, None], pixels + 1)
    return (end - begin).clamp_min(0) * (new / old)
