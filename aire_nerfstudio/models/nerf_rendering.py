"""Rendering of rays: front to back, round by round, until nothing shines through; and what depth means."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from nerfstudio.utils import colormaps
from torch import Tensor

from aire_nerfstudio.fields.radiance_field import SineRadianceField
from aire_nerfstudio.ops.compositing import Rendered, composite_rays, visibility
from aire_nerfstudio.ops.occupancy import Occupancy
from aire_nerfstudio.ops.ray_marching import ENDED, Samples, march_rays
from aire_nerfstudio.ops.sample_places import places

# Samples that weigh less add next to nothing to a pixel's normal, and most samples do.
NORMAL_WEIGHT = 0.02
# Samples a ray in the first round, and at most in later ones, which take twice as many each: rays that are still open
# meet little, and a round has its price.
FIRST_ROUND, LARGEST_ROUND = 16, 128


@torch.no_grad()
def render_rays(
    field: SineRadianceField, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, occupancy: Occupancy,
    step: float, epsilon: float, dt_gamma: float = 0.0,
) -> tuple[Rendered, Tensor]:  # fmt: skip
    """Each sample that light reaches is evaluated once; colours of those behind are not.

    Args:
        field: density and colour.
        origins: ``[N, 3]``, in the grid's frame.
        directions: unit vectors, ``[N, 3]``.
        near: ``[N]``.
        far: ``[N]``.
        occupancy: the grid.
        step: least length of a sample.
        epsilon: samples behind this transmittance are left out, in (0, 1).
        dt_gamma: growth of the samples with the distance, 0 or more.

    Returns:
        What was rendered, and the weighted mean of the samples' normals, made unit again, ``[N, 3]``, zero where a ray
        meets nothing. (Not the normal at the expected depth: behind the densest point of a surface the gradient points
        inwards.)
    """
    limit = -math.log(epsilon)
    n_rays = len(origins)
    rendered = Rendered.nothing(n_rays, 3, origins)
    normals = origins.new_zeros(n_rays, 3)
    following = torch.zeros(n_rays, device=origins.device)
    alive = (far > near).nonzero().squeeze(1)
    most = FIRST_ROUND
    while len(alive):
        samples = march_rays(alive, following, origins, directions, near, far, occupancy, step, most, dt_gamma)
        if len(samples.starts):
            positions, ways = places(samples, origins, directions)
            sigmas, features = field.features(positions)
            reached = visibility(sigmas, samples, rendered.thickness.clone(), epsilon).nonzero().squeeze(1)
            samples = samples.select(reached)
            rgbs = field.colour(ways[reached], features[reached])
            weights = composite_rays(sigmas[reached], rgbs, samples, rendered)
            seen = (weights > NORMAL_WEIGHT).nonzero().squeeze(1)
            if len(seen):
                found = field.normals(positions[reached[seen]])
                normals.index_add_(0, samples.ray_indices[seen], weights[seen, None] * found)
        is_open = (following[alive] < ENDED) & (rendered.thickness[alive] < limit)
        alive = alive[is_open]
        most = min(2 * most, LARGEST_ROUND)
    return rendered, torch.nn.functional.normalize(normals, dim=-1)


def density_at(field: SineRadianceField, origins: Tensor, directions: Tensor) -> Callable[[Samples], Tensor]:
    """The field's density at samples of rays ``[N, 3]``."""
    return lambda samples: field.density(places(samples, origins, directions)[0])


def depth_picture(outputs: dict[str, Tensor]) -> Tensor:
    """Distances as colours ``[H, W, 3]``, scaled by where something is met: elsewhere they end at the far plane."""
    depth, accumulation = outputs["depth"], outputs["accumulation"]
    is_met = accumulation > 0.5
    farthest = float(depth[is_met].max()) if bool(is_met.any()) else None
    return colormaps.apply_depth_colormap(depth, accumulation=accumulation, far_plane=farthest)


def expected_depth(accumulation: Tensor, depth: Tensor, far: Tensor) -> Tensor:
    """Expected distance ``[N]``, and ``far`` where a ray meets nothing."""
    return torch.where(accumulation < 1e-3, far, depth / accumulation.clamp_min(1e-6))
