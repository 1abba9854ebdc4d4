"""Ray marching through an occupancy grid: compiled on processors and CUDA, in PyTorch elsewhere, with the same samples.

Names follow torch-ngp's ``raymarching``; the layout is packed: samples of ray 0, then ray 1, ..., in order of distance.
A sample is an interval ``[t_start, t_end)``, of constant length or growing with the distance; its colour and density
are taken at the middle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from aire_nerfstudio.ops.occupancy import Occupancy, voxel_indices
from aire_nerfstudio.ops.ray_library import Argument, RayLibrary, has_shapes, ray_library
from aire_nerfstudio.shapes import Box, PerRay, Rays3

# What march_rays writes as a ray's next sample, or as its distance, once it has ended.
ENDED = 1 << 24
# Candidates that march_rays looks at for each sample it may return, in PyTorch.
WINDOW = 8
# Candidates of each ray that PyTorch looks at in one go, where steps grow.
AT_ONCE = 64


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


@torch.no_grad()
def near_far_from_aabb(origins: Rays3, directions: Rays3, aabb: Box, min_near: float = 0.0) -> tuple[PerRay, PerRay]:
    """Distances at which rays enter and leave a box.

    Args:
        origins: ``[N, 3]``.
        directions: ``[N, 3]``; distances are in units of their length. Zero components are allowed.
        aabb: ``[6]``: lower corner, upper corner.
        min_near: the near distance is at least this.

    Returns:
        ``near [N], far [N]``. A ray that misses the box has ``far == near``.
    """
    library = ray_library(origins, directions, aabb)
    fits = has_shapes((origins, (len(origins), 3)), (directions, (len(origins), 3)), (aabb, (6,)))
    if library is not None and fits:
        near, far = origins.new_empty(len(origins)), origins.new_empty(len(origins))
        rays = origins.contiguous(), directions.contiguous()
        library.call("aire_near_far", len(origins), *rays, aabb.contiguous(), float(min_near), near, far)
        return near, far
    # A zero component makes 0/0 on a face; a tiny one decides it and keeps the rest finite.
    safe = torch.where(directions.abs() < 1e-12, torch.full_like(directions, 1e-12), directions)
    to_lower = (aabb[:3] - origins) / safe
    to_upper = (aabb[3:] - origins) / safe
    near = torch.minimum(to_lower, to_upper).amax(-1).clamp_min(min_near)
    far = torch.maximum(to_lower, to_upper).amin(-1)
    return near, torch.maximum(far, near)


@torch.no_grad()
def march_rays_train(
    origins: Rays3,
    directions: Rays3,
    near: PerRay,
    far: PerRay,
    occupancy: Occupancy,
    step: float,
    jitter: PerRay | None = None,
    dt_gamma: float = 0.0,
) -> Samples:
    """Samples in the occupied voxels of a grid, ``max(step, dt_gamma t)`` long at the distance ``t``.

    Of a contracted grid, at least ``step m^2 / (1 + step m)`` outside ``[-1, 1]^3``, ``m`` being the largest component
    of the point where the sample begins: towards the middle they are equally long in the contracted space, and none is
    longer than ``m``.

    Args:
        origins: ``[N, 3]``, in the frame of the grid, or of the space that it contracts.
        directions: unit vectors, ``[N, 3]``.
        near: 0 or more, ``[N]``.
        far: finite, ``[N]``; no samples where ``far <= near``.
        occupancy: the grid.
        step: least length of a sample, positive.
        jitter: shift of each ray's samples, in lengths of a sample that begins at ``near``, ``[N]`` in ``[0, 1)``;
            None: no shift.
        dt_gamma: growth of the steps, 0 or more; 0: all are ``step`` long.

    Returns:
        Packed samples; those whose middle lies at or behind ``far`` are left out.
    """
    _check(step, dt_gamma)
    if len(near) == 0:
        return Samples(near.new_zeros(0), near.new_zeros(0), near.new_zeros(0, dtype=torch.long))
    march = CountedMarch.of(origins, directions, near, far, occupancy, step, jitter, dt_gamma)
    if march is None:
        return march_by_torch(origins, directions, near, far, occupancy, step, jitter, dt_gamma)
    total = int(march.offsets[-1])
    samples = Samples(near.new_empty(total), near.new_empty(total), march.counts.new_empty(total))
    march.write(samples)
    return samples


@dataclass(frozen=True)
class CountedMarch:
    """Compiled marching whose samples have been counted, before memory is made for them.

    Attributes:
        counts: samples of each ray, int64 ``[N]``.
        offsets: their sums up to each ray, that one included, int64 ``[N]``.
    """

    _library: RayLibrary
    _scene: tuple[Argument, ...]
    counts: Tensor
    offsets: Tensor

    @classmethod
    def of(
        cls, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, occupancy: Occupancy, step: float,
        jitter: Tensor | None, dt_gamma: float,
    ) -> CountedMarch | None:  # fmt: skip
        """As :func:`march_rays_train` takes it; None where PyTorch's operations are to be used."""
        extra = [] if jitter is None else [jitter]
        library = ray_library(origins, directions, near, far, occupancy.occupied, *extra)
        if library is None or not _fit(origins, directions, near, far, *extra):
            return None
        rays = [t.contiguous() for t in (origins, directions, near, far)]
        shift = None if jitter is None else jitter.contiguous()
        scene = (len(near), *rays, shift, *_for_library(occupancy, step, dt_gamma))
        counts = torch.empty(len(near), dtype=torch.long, device=near.device)
        library.call("aire_march_count", *scene, counts)
        return cls(library, scene, counts, counts.cumsum(0))

    def write(self, samples: Samples) -> None:
        """Put the samples into memory ``[M]``, those of rays that do not fit in whole left out."""
        capacity = len(samples.starts)
        self._library.call("aire_march_fill", *self._scene, self.offsets, self.counts, capacity, *samples)


def march_by_torch(
    origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, occupancy: Occupancy, step: float,
    jitter: Tensor | None, dt_gamma: float = 0.0,
) -> Samples:  # fmt: skip
    """The specification of :func:`march_rays_train`."""
    far = _far(origins, directions, far)
    if _grows(occupancy, dt_gamma):
        return _march_growing(origins, directions, near, far, occupancy, step, jitter, dt_gamma)
    return _march_evenly(origins, directions, near, far, occupancy, step, jitter)


def _march_evenly(
    origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, occupancy: Occupancy, step: float,
    jitter: Tensor | None,
) -> Samples:  # fmt: skip
    """Stretches of several steps are tested first against the dilated grid: empty space costs one look-up a stretch."""
    resolution = occupancy.resolution
    # A stretch's points are at most one voxel away from its middle: the dilated grid then misses none of them.
    per_stretch = max(1, math.floor(2 * (2.0 / resolution) / step))
    reach = far - near
    longest = float(torch.where(reach > 0, reach, 0.0).amax())  # a ray whose limits are no numbers has none
    n_stretches = math.ceil(longest / (per_stretch * step))
    first = near if jitter is None else near + (jitter - 1) * step
    device = near.device
    stretch = torch.arange(n_stretches + 1, device=device) * per_stretch
    begin = first[:, None] + stretch * step  # [N, S]
    middle = begin + 0.5 * per_stretch * step
    points = origins[:, None] + middle[..., None] * directions[:, None]
    lookup = occupancy.dilated if per_stretch > 1 else occupancy.occupied
    maybe = lookup.view(-1)[voxel_indices(points, resolution)] & (begin < far[:, None])
    rays, stretches = maybe.nonzero(as_tuple=True)
    number = stretches[:, None] * per_stretch + torch.arange(per_stretch, device=device)  # [P, k]
    t, keep = _is_sample(origins, directions, near, far, first, occupancy, step, rays, number)
    starts = t[keep]
    return Samples(starts, starts + step, rays[:, None].expand_as(keep)[keep])


def _is_sample(
    origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, first: Tensor, occupancy: Occupancy, step: float,
    rays: Tensor, number: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Starts ``[P, k]`` of the candidates ``number [P, k]`` of ``rays [P]``, and which of them are samples."""
    t = first[rays, None] + number.to(first) * step
    middle = t + 0.5 * step
    points = origins[rays, None] + middle[..., None] * directions[rays, None]
    return t, occupancy.at(points) & (middle < far[rays, None]) & (middle >= near[rays, None])


def _march_growing(
    origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, occupancy: Occupancy, step: float,
    jitter: Tensor | None, dt_gamma: float,
) -> Samples:  # fmt: skip
    """Where steps begin depends on those before, but not on the grid, which is asked for many at once."""
    t = near
    if jitter is not None:
        t = near + (jitter - 1) * _lengths(near, origins, directions, occupancy, step, dt_gamma)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    goes_on = True
    while goes_on:
        starts, ends, keep, there = _candidates(t, origins, directions, near, far, occupancy, step, dt_gamma, AT_ONCE)
        parts.append((starts, ends, keep))
        t, goes_on = ends[:, -1], bool(there[:, -1].any())
    starts, ends, keep = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    rays = torch.arange(len(near), device=near.device)[:, None].expand_as(keep)
    return Samples(starts[keep], ends[keep], rays[keep])


def _lengths(
    t: Tensor, origins: Tensor, directions: Tensor, occupancy: Occupancy, step: float, dt_gamma: float
) -> Tensor:
    """Lengths of the samples that begin at ``t [N]``, ``[N]``."""
    lengths = torch.full_like(t, step)
    if occupancy.is_contracted:
        beyond = (origins + t[:, None] * directions).abs().amax(-1).clamp_min(1)
        lengths = torch.maximum(lengths, step * (beyond * beyond) / (1 + step * beyond))
    return torch.maximum(lengths, dt_gamma * t)


def _candidates(
    t: Tensor, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, occupancy: Occupancy, step: float,
    dt_gamma: float, count: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The next candidates of each ray, of which the first begins at ``t [N]``.

    Returns:
        Starts and ends ``[N, count]``, whether each is a sample, and whether it lies on the ray.
    """
    edges, lengths = [t], []
    for _ in range(count):
        lengths.append(_lengths(edges[-1], origins, directions, occupancy, step, dt_gamma))
        edges.append(edges[-1] + lengths[-1])
    starts, ends = torch.stack(edges[:-1], 1), torch.stack(edges[1:], 1)
    middle = starts + 0.5 * torch.stack(lengths, 1)
    there = (middle < far[:, None]) & (ends > starts)
    points = origins[:, None] + torch.where(there, middle, near[:, None])[..., None] * directions[:, None]
    return starts, ends, there & (middle >= near[:, None]) & occupancy.at(points), there


@torch.no_grad()
def march_rays(
    alive: Tensor,
    following: Tensor,
    origins: Rays3,
    directions: Rays3,
    near: PerRay,
    far: PerRay,
    occupancy: Occupancy,
    step: float,
    most: int,
    dt_gamma: float = 0.0,
) -> Samples:
    """The next samples of some rays: what rendering front to back asks for, round by round.

    Args:
        alive: the rays to go on with, ascending, int64 ``[A]``.
        following: where each ray goes on, float32 ``[N]``, zero at first; changed in place, :data:`ENDED` where a ray
            has ended.
        origins: ``[N, 3]``, in the frame of the grid, or of the space that it contracts.
        directions: unit vectors, ``[N, 3]``.
        near: 0 or more, ``[N]``.
        far: finite and below :data:`ENDED`, ``[N]``.
        occupancy: the grid.
        step: least length of a sample, positive.
        most: samples a ray at most, at least 1. A ray may give fewer, or none, and not have ended.
        dt_gamma: growth of the steps, 0 or more.

    Returns:
        Packed samples, as :func:`march_rays_train` gives them without jitter.
    """
    _check(step, dt_gamma)
    if most < 1:
        raise ValueError(f"most is {most}; it must be at least 1")
    library = ray_library(origins, directions, near, far, occupancy.occupied, following, alive)
    fits = _fit(origins, directions, near, far, following) and has_shapes((alive, (len(alive),)))
    types = (alive.dtype, following.dtype) == (torch.long, torch.float32)
    if library is None or not (fits and types and following.is_contiguous()):
        if not following.is_floating_point():
            raise ValueError(f"following is {following.dtype}; it must be float32")
        scene = (alive, following, origins, directions, near, _far(origins, directions, far), occupancy, step, most)
        return _march_some_growing(*scene, dt_gamma) if _grows(occupancy, dt_gamma) else _march_some_evenly(*scene)
    if near.device.type == "cpu" and len(alive) and not 0 <= int(alive.min()) <= int(alive.max()) < len(near):
        raise IndexError(f"alive must lie in [0, {len(near)}); got {int(alive.min())} to {int(alive.max())}")
    starts, ends = (near.new_empty(len(alive), most) for _ in range(2))
    counts = torch.empty(len(alive), dtype=torch.long, device=near.device)
    rays = [t.contiguous() for t in (origins, directions, near, far)]
    grid = _for_library(occupancy, step, dt_gamma)
    library.call("aire_march_some", len(alive), alive.contiguous(), *rays, *grid, most, following, starts, ends, counts)
    is_there = torch.arange(most, device=near.device) < counts[:, None]
    return Samples(starts[is_there], ends[is_there], alive.repeat_interleave(counts))


def _march_some_evenly(
    alive: Tensor, following: Tensor, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor,
    occupancy: Occupancy, step: float, most: int,
) -> Samples:  # fmt: skip
    number = following[alive, None].long() + torch.arange(WINDOW * most, device=alive.device)
    t, keep = _is_sample(origins, directions, near, far, near, occupancy, step, alive, number)
    rank = keep.cumsum(1)
    is_full = rank[:, -1] > most
    # Where there were more than asked for, the next one is the first of those.
    after = torch.where(is_full, (rank <= most).sum(1), torch.full_like(alive, WINDOW * most))
    next_one = following[alive] + after
    has_ended = near[alive] + next_one.to(near) * step + 0.5 * step >= far[alive]
    following[alive] = torch.where(has_ended & ~is_full, ENDED, next_one).to(following.dtype)
    keep &= rank <= most
    found = t[keep]
    return Samples(found, found + step, alive[:, None].expand_as(keep)[keep])


def _march_some_growing(
    alive: Tensor, following: Tensor, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor,
    occupancy: Occupancy, step: float, most: int, dt_gamma: float,
) -> Samples:  # fmt: skip
    rays = origins[alive], directions[alive], near[alive], far[alive]
    t = torch.where(following[alive] == 0, near[alive], following[alive].to(near))
    count = min(WINDOW * most, AT_ONCE)
    starts, ends, keep, there = _candidates(t, *rays, occupancy, step, dt_gamma, count)
    rank = keep.cumsum(1)
    is_full = rank[:, -1] > most
    # Where there were more than asked for, the next one is the first of those.
    after = starts.gather(1, (rank <= most).sum(1, keepdim=True).clamp_max(count - 1)).squeeze(1)
    t = torch.where(is_full, after, torch.where(there[:, -1], ends[:, -1], torch.full_like(t, ENDED)))
    following[alive] = t.to(following.dtype)
    keep &= rank <= most
    return Samples(starts[keep], ends[keep], alive[:, None].expand_as(keep)[keep])


def march_rays_train_by_nerfacc(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    occupancy: Occupancy,
    step: float,
    jitter: Tensor | None = None,
) -> Samples:
    """As :func:`march_rays_train`, by nerfacc's ``traverse_grids``: CUDA only, where nerfacc can build its kernels.

    Its samples begin anew where a ray enters a voxel's run, so that they are not the same to the bit.

    Raises:
        ValueError: the tensors are not on CUDA.
    """
    if origins.device.type != "cuda":
        raise ValueError(f"nerfacc marches on CUDA only; the rays are on {origins.device}; use the marcher aire")
    import nerfacc

    begin = near if jitter is None else near + (jitter - 1) * step
    cube = torch.tensor([[-1.0, -1, -1, 1, 1, 1]], device=origins.device)
    # Later versions give a third result.
    intervals, samples = nerfacc.traverse_grids(
        origins, directions, occupancy.occupied[None], cube, near_planes=begin, far_planes=far, step_size=step
    )[:2]
    return Samples(intervals.vals[intervals.is_left], intervals.vals[intervals.is_right], samples.ray_indices)


def _far(origins: Tensor, directions: Tensor, far: Tensor) -> Tensor:
    """``far [N]``, and before everything of rays that are not finite: of these there are no samples."""
    is_ray = torch.isfinite(origins + directions).all(-1)
    return torch.where(is_ray, far, torch.full_like(far, -torch.inf))


def _grows(occupancy: Occupancy, dt_gamma: float) -> bool:
    """Whether samples differ in length."""
    return dt_gamma > 0 or occupancy.is_contracted


def _for_library(occupancy: Occupancy, step: float, dt_gamma: float) -> tuple[Tensor, int, int, float, float]:
    """A grid and the samples' lengths as the compiled marches take them."""
    return occupancy.bits, occupancy.resolution, int(occupancy.is_contracted), float(step), float(dt_gamma)


def _fit(origins: Tensor, directions: Tensor, *of_rays: Tensor) -> bool:
    """Whether rays are ``[N, 3]`` and all else ``[N]``."""
    count = len(origins)
    return has_shapes((origins, (count, 3)), (directions, (count, 3)), *((t, (count,)) for t in of_rays))


def _check(step: float, dt_gamma: float) -> None:
    if not step > 0:
        raise ValueError(f"step is {step}; it must be positive")
    if not dt_gamma >= 0:
        raise ValueError(f"dt_gamma is {dt_gamma}; it must be 0 or more")
