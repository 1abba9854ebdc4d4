"""The level set of a field as a mesh: marching cubes over a grid that is evaluated only near the surface."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import psutil
import torch
from torch import Tensor

from aire_nerfstudio.errors import InputError

# Grid points a side of a block.
BLOCK = 16
# Points evaluated at once.
CHUNK = 1 << 17
# A trained distance changes by about one a unit; a block is skipped where its middle is this many times too far away.
STEEPNESS = 2.0
# Where steepness is measured, and how much steeper than all of these points the field may be.
MEASURED, MARGIN = 1 << 15, 1.5
# Grid, marching cubes' own copies and the mesh, per grid point.
BYTES_PER_POINT = 14

Field = Callable[[Tensor], Tensor]


def steepness_of(gradients: Field, device: torch.device | str = "cpu") -> float:
    """By how much a learned distance may be taken to change a unit, 2 or more; one that has diverged is far steeper.

    Args:
        gradients: of the field, ``[N, 3] -> [N, 3]``.
        device: where they are computed.

    Returns:
        1.5 times the steepest of 32,768 points of the cube, at least 2; infinite where one is not finite.
    """
    points = 2 * torch.rand(MEASURED, 3, generator=torch.Generator().manual_seed(0)) - 1
    parts = [gradients(part.to(device)).detach().norm(dim=-1) for part in points.split(CHUNK // 8)]
    steepest = float(torch.cat(parts).max())  # of parts, Python's max would miss what is no number
    return max(STEEPNESS, MARGIN * steepest) if math.isfinite(steepest) else math.inf


@torch.no_grad()
def extract_mesh(
    field: Field,
    resolution: int,
    device: torch.device | str = "cpu",
    level: float = 0.0,
    steepness: float | None = STEEPNESS,
    progress: Callable[[float], None] | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[np.ndarray, np.ndarray]:
    """The surface ``field = level`` in the cube [-1, 1]^3.

    Args:
        field: ``[N, 3] -> [N]``, negative inside.
        resolution: grid points a side, at least 2.
        device: where the field lives.
        level: which level set.
        steepness: the field changes by at most so much a unit, so that blocks far from the surface need no evaluation
            (:func:`steepness_of` measures it); None: every point is evaluated.
        progress: called with the share done, in [0, 1].
        dtype: of the points that the field is given.

    Returns:
        Vertices ``[V, 3]`` float64 and faces ``[F, 3]`` int64, normals outwards; both empty where there is no surface.

    Raises:
        InputError: a resolution below 2, or a grid too large for the memory that is free, or a field that gives another
            shape.
    """
    from skimage.measure import marching_cubes

    if resolution < 2:
        raise InputError(f"the resolution is {resolution}; it must be at least 2 grid points a side")
    needed, free = BYTES_PER_POINT * resolution**3, psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"a grid of {resolution}^3 points takes about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are "
            "free; lower the resolution"
        )

    def evaluated(points: Tensor) -> Tensor:
        values = field(points.to(device, dtype))
        if values.shape != points.shape[:1]:
            raise InputError(
                f"the field gives {list(values.shape)} for {len(points)} points; it must give one each, [N]"
            )
        return values.to("cpu", torch.float32)

    values = _sample(evaluated, resolution, level, steepness, progress)
    if not values.min() < 0 < values.max():
        return np.empty((0, 3)), np.empty((0, 3), np.int64)
    vertices, faces, _, _ = marching_cubes(values, 0.0, gradient_direction="descent")
    return vertices.astype(np.float64) * (2 / (resolution - 1)) - 1, faces.astype(np.int64)


def _sample(
    field: Field,
    resolution: int,
    level: float,
    steepness: float | None,
    progress: Callable[[float], None] | None,
) -> np.ndarray:
    """``field - level`` at the grid points, float32 ``[R, R, R]``; a constant of the right sign in skipped blocks."""
    axis = torch.linspace(-1, 1, resolution)
    count = math.ceil(resolution / BLOCK)
    starts = torch.arange(count) * BLOCK
    middles = axis[(starts + (BLOCK - 1) // 2).clamp_max(resolution - 1)]
    blocks = torch.cartesian_prod(*[torch.arange(count)] * 3)
    if steepness is not None:
        # A corner lies up to 9 grid steps a side from the middle, and the neighbour's first point one further.
        reach = math.sqrt(3) * (BLOCK // 2 + 2) * 2 / (resolution - 1)
        middle = torch.cat([field(middles[part]) - level for part in blocks.split(CHUNK)])
        is_near = middle.abs() <= steepness * reach
    else:
        middle, is_near = torch.zeros(len(blocks)), torch.ones(len(blocks), dtype=torch.bool)
    coarse = middle.view(count, count, count).numpy()
    values = coarse.repeat(BLOCK, 0).repeat(BLOCK, 1).repeat(BLOCK, 2)[:resolution, :resolution, :resolution]
    values = np.ascontiguousarray(values, dtype=np.float32)
    near = blocks[is_near]
    if len(near) == 0:
        return values
    at_once = max(1, CHUNK // BLOCK**3)
    offsets = torch.cartesian_prod(*[torch.arange(BLOCK)] * 3)
    for position, part in enumerate(near.split(at_once)):
        index = part[:, None] * BLOCK + offsets  # [B, BLOCK^3, 3]
        index = index[(index < resolution).all(-1)]
        result = torch.cat([field(axis[some]) for some in index.split(CHUNK)]) - level
        values[index[:, 0].numpy(), index[:, 1].numpy(), index[:, 2].numpy()] = result.numpy()
        if progress is not None:
            progress(min(1.0, (position + 1) * at_once / len(near)))
    return values
