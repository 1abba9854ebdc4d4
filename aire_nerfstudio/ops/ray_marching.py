"""Ray marching through an occupancy grid, in PyTorch, on CPU and CUDA.

Names follow torch-ngp's ``raymarching``; the layout is packed: samples of ray 0, then ray 1, ..., in order of distance.
A sample is an interval ``[t_start, t_end)`` of constant length; its colour and density are taken at the middle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Samples(NamedTuple):
    """Packed samples along rays.

    Attributes:
        starts: interval starts in units of the ray directions' length, ``[M]``.
        ends: interval ends, ``[M]``.
        ray_indices: which ray, ascending, int64 ``[M]``.
    """

    starts: Tensor
    ends: Tensor
    ray_indices: Tensor

    def select(self, index: Tensor) -> Samples:
        """The samples at ``index`` (int64 or bool)."""
        return Samples(self.starts[index], self.ends[index], self.ray_indices[index])

    def positions(self, origins: Tensor, directions: Tensor) -> Tensor:
        """Middle of each interval, ``[M, 3]``, for ``origins`` and ``directions`` of shape ``[N, 3]``."""
        middle = (0.5 * (self.starts + self.ends)).unsqueeze(-1)
        return origins[self.ray_indices] + middle * directions[self.ray_indices]


def near_far_from_aabb(
    origins: Tensor, directions: Tensor, aabb: Tensor, min_near: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Distances at which rays enter and leave a box.

    Args:
        origins: ``[N, 3]``.
        directions: ``[N, 3]``; distances are in units of their length. Zero components are allowed.
        aabb: ``[6]``: lower corner, upper corner.
        min_near: the near distance is at least this.

    Returns:
        ``near [N], far [N]``. A ray that misses the box has ``far == near``.
    """
    # A zero component makes 0/0 on a face; a tiny one decides it and keeps the rest finite.
    safe = torch.where(directions.abs() < 1e-12, torch.full_like(directions, 1e-12), directions)
    to_lower = (aabb[:3] - origins) / safe
    to_upper = (aabb[3:] - origins) / safe
    near = torch.minimum(to_lower, to_upper).amax(-1).clamp_min(min_near)
    far = torch.maximum(to_lower, to_upper).amin(-1)
    return near, torch.maximum(far, near)


def voxel_indices(positions: Tensor, resolution: int) -> Tensor:
    """Flat index (x slowest) of the voxel of each position in ``[-1, 1]^3``, ``[..., 3] -> [...]``, clamped inside."""
    index = ((positions + 1) * (0.5 * resolution)).long().clamp_(0, resolution - 1)
    return (index[..., 0] * resolution + index[..., 1]) * resolution + index[..., 2]


def dilate(occupied: Tensor) -> Tensor:
    """Occupied voxels and their 26 neighbours, bool ``[G, G, G]``."""
    return torch.nn.functional.max_pool3d(occupied[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0


@torch.no_grad()
def march_rays_train(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    occupied: Tensor,
    dilated: Tensor,
    step: float,
    jitter: Tensor | None = None,
) -> Samples:
    """Samples of constant length in the occupied voxels of a grid over ``[-1, 1]^3``.

    Stretches of several steps are tested first against ``dilated``, so that empty space costs one look-up a stretch.

    Args:
        origins: ``[N, 3]``, in the grid's frame.
        directions: unit vectors, ``[N, 3]``.
        near: ``[N]``.
        far: ``[N]``; no samples where ``far <= near``.
        occupied: bool ``[G, G, G]``, indexed x, y, z.
        dilated: :func:`dilate` of ``occupied``.
        step: length of a sample.
        jitter: shift of each ray's samples in steps, ``[N]`` in ``[0, 1)``; None: no shift.

    Returns:
        Packed samples; those whose middle lies at or behind ``far`` are left out.
    """
    resolution = occupied.shape[0]
    # A stretch's points are at most one voxel away from its middle: the dilated grid then misses none of them.
    per_stretch = max(1, math.floor(2 * (2.0 / resolution) / step))
    if len(near) == 0:
        return Samples(near.new_zeros(0), near.new_zeros(0), near.new_zeros(0, dtype=torch.long))
    longest = float((far - near).amax())
    n_stretches = math.ceil(longest / (per_stretch * step)) if longest > 0 else 0
    first = near if jitter is None else near + (jitter - 1) * step
    device = near.device
    stretch = torch.arange(n_stretches + 1, device=device, dtype=near.dtype) * (per_stretch * step)
    begin = first[:, None] + stretch  # [N, S]
    middle = begin + 0.5 * per_stretch * step
    points = origins[:, None] + middle[..., None] * directions[:, None]
    lookup = dilated if per_stretch > 1 else occupied
    maybe = lookup.view(-1)[voxel_indices(points, resolution)] & (begin < far[:, None])
    rays, stretches = maybe.nonzero(as_tuple=True)

    t = begin[rays, stretches][:, None] + torch.arange(per_stretch, device=device, dtype=near.dtype) * step  # [P, k]
    t_middle = t + 0.5 * step
    points = origins[rays, None] + t_middle[..., None] * directions[rays, None]
    keep = occupied.view(-1)[voxel_indices(points, resolution)]
    keep &= (t_middle < far[rays, None]) & (t_middle >= near[rays, None])
    starts = t[keep]
    return Samples(starts, starts + step, rays[:, None].expand_as(keep)[keep])


def exclusive_sum(values: Tensor, ray_indices: Tensor) -> Tensor:
    """For each sample the sum of ``values`` over the samples before it on its ray; packed, ``[M] -> [M]``.

    Summed in float64: a running sum over all rays would lose the small terms in float32.
    """
    if len(values) == 0:
        return values
    total = values.double().cumsum(0)
    before = total - values.double()
    is_first = torch.ones_like(ray_indices, dtype=torch.bool)
    is_first[1:] = ray_indices[1:] != ray_indices[:-1]
    first = is_first.nonzero().squeeze(1)
    segment = is_first.long().cumsum(0) - 1
    return (before - before[first][segment]).to(values.dtype)


@torch.no_grad()
def early_stop(
    samples: Samples, n_rays: int, density: Callable[[Samples], Tensor], epsilon: float, first_chunk: int = 16
) -> tuple[Tensor, Tensor]:
    """Find the samples that light reaches, evaluating the density front to back and stopping each ray when opaque.

    Args:
        samples: packed, ``M`` of them.
        n_rays: ``N``.
        density: samples ``[m] -> [m]``, in inverse units of the intervals.
        epsilon: a sample counts where the transmittance in front of it is more than this, in (0, 1).
        first_chunk: samples a ray evaluated in the first round; each further round takes twice as many.

    Returns:
        ``index [V]`` of the samples that light reaches, ascending, and their densities ``[V]``.
    """
    indices = samples.ray_indices
    limit = -math.log(epsilon)
    if len(indices) == 0:
        return indices, samples.starts
    counts = torch.bincount(indices, minlength=n_rays)
    offsets = counts.cumsum(0) - counts
    rank = torch.arange(len(indices), device=indices.device) - offsets[indices]
    depth = samples.starts.new_zeros(n_rays)
    is_open = torch.ones(n_rays, dtype=torch.bool, device=indices.device)
    kept: list[Tensor] = []
    densities: list[Tensor] = []
    begin, size, longest = 0, first_chunk, int(counts.max())
    while begin < longest:
        chosen = ((rank >= begin) & (rank < begin + size) & is_open[indices]).nonzero().squeeze(1)
        if len(chosen) == 0:
            break
        part = samples.select(chosen)
        sigma = density(part)
        thickness = sigma * (part.ends - part.starts)
        reached = depth[part.ray_indices] + exclusive_sum(thickness, part.ray_indices) < limit
        kept.append(chosen[reached])
        densities.append(sigma[reached])
        depth.index_add_(0, part.ray_indices, thickness)
        is_open = depth < limit
        begin, size = begin + size, 2 * size
    index = torch.cat(kept)
    order = index.argsort()
    return index[order], torch.cat(densities)[order]


def composite_rays_train(
    sigmas: Tensor, rgbs: Tensor, samples: Samples, n_rays: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Volume rendering of packed samples, without background; differentiable in ``sigmas`` and ``rgbs``.

    Args:
        sigmas: densities, ``[M]``, in inverse units of the intervals.
        rgbs: colours, ``[M, C]``.
        samples: packed.
        n_rays: ``N``.

    Returns:
        ``weights [M]``, colour ``[N, C]`` (premultiplied), accumulation ``[N]`` in [0, 1], and depth ``[N]``, the sum
        of weight times middle of the interval (divide by the accumulation for the expected distance).
    """
    thickness = sigmas * (samples.ends - samples.starts)
    weights = torch.exp(-exclusive_sum(thickness, samples.ray_indices)) * -torch.expm1(-thickness)
    middle = 0.5 * (samples.starts + samples.ends)
    colour = rgbs.new_zeros(n_rays, rgbs.shape[-1]).index_add(0, samples.ray_indices, weights[:, None] * rgbs)
    accumulation = weights.new_zeros(n_rays).index_add(0, samples.ray_indices, weights)
    depth = weights.new_zeros(n_rays).index_add(0, samples.ray_indices, weights * middle)
    return weights, colour, accumulation, depth
