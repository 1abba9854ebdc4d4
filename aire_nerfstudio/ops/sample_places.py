"""Where samples along rays are, and which way their rays go: compiled on processors and CUDA, in PyTorch elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from aire_nerfstudio.ops.ray_library import has_shapes, ray_library
from aire_nerfstudio.ops.ray_marching import Samples


def places(samples: Samples, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """The middle of each interval, and its ray's direction, ``[M, 3]`` each.

    Args:
        samples: packed, of ``N`` rays; those of ray ``N``, which does not exist, are at 0 and go nowhere.
        origins: ``[N, 3]``.
        directions: ``[N, 3]``.
    """
    count, rays = len(samples.starts), len(origins)
    shapes = (*((t, (count,)) for t in samples), (origins, (rays, 3)), (directions, (rays, 3)))
    moves = any(t.requires_grad for t in (origins, directions, samples.starts, samples.ends))
    library = None if moves or not has_shapes(*shapes) else ray_library(origins, directions, *samples)
    if library is None or samples.ray_indices.dtype != torch.long:
        return reference(samples, origins, directions)
    points, ways = origins.new_empty(count, 3), origins.new_empty(count, 3)
    parts = [t.contiguous() for t in (*samples, origins, directions)]
    library.call("aire_places", count, rays, *parts, points, ways)
    return points, ways


def reference(samples: Samples, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """The specification of :func:`places`."""
    origins, directions = (torch.nn.functional.pad(t, (0, 0, 0, 1)) for t in (origins, directions))
    ways = directions[samples.ray_indices]
    return origins[samples.ray_indices] + (0.5 * (samples.starts + samples.ends))[:, None] * ways, ways
