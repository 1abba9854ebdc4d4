"""Samples along rays in memory of a fixed size, found without a wait of the host: what a CUDA graph can hold.

torch-ngp marches so as well: memory for so many points, and rays that find no more room are left out. Here these are
the last ones of a batch, whatever the order in which the device comes to them, and how many there are is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from aire_nerfstudio.ops.compositing import visibility
from aire_nerfstudio.ops.occupancy import Occupancy
from aire_nerfstudio.ops.ray_library import ray_library
from aire_nerfstudio.ops.ray_marching import CountedMarch, Samples, march_rays_train
from aire_nerfstudio.shapes import PerRay, PerRow, Rays3


class PaddedSamples(NamedTuple):
    """Samples of ``N`` rays in memory for ``M`` of them.

    Attributes:
        samples: packed, ``[M]``; behind the last one intervals from 0 to 0 of ray ``N``, which does not exist.
        total: how many there are, or would be with memory for all, int64 ``[]``.
        complete: how many of the first rays have all of theirs; the others may have none, int64 ``[]``.
    """

    samples: Samples
    total: Tensor
    complete: Tensor


@torch.no_grad()
def march_rays_padded(
    origins: Rays3,
    directions: Rays3,
    near: PerRay,
    far: PerRay,
    occupancy: Occupancy,
    step: float,
    capacity: int,
    jitter: PerRay | None = None,
    dt_gamma: float = 0.0,
) -> PaddedSamples:
    """The samples of :func:`~aire_nerfstudio.ops.ray_marching.march_rays_train`, in memory for ``capacity`` of them.

    Args:
        origins: see there, as all but:
        directions: see there.
        near: see there.
        far: see there.
        occupancy: see there.
        step: see there.
        capacity: ``M``, at least 1.
        jitter: see there.
        dt_gamma: see there.

    Raises:
        ValueError: there is to be memory for none.
    """
    _check(capacity)
    march = CountedMarch.of(origins, directions, near, far, occupancy, step, jitter, dt_gamma) if len(near) else None
    if march is None:
        return pad(
            march_rays_train(origins, directions, near, far, occupancy, step, jitter, dt_gamma), len(near), capacity
        )
    samples = _room(near, len(near), capacity)
    march.write(samples)
    return PaddedSamples(samples, march.offsets[-1], (march.offsets <= capacity).sum())


@torch.no_grad()
def early_stop_padded(
    padded: PaddedSamples, n_rays: int, density: Callable[[Samples], Tensor], epsilon: float, capacity: int
) -> PaddedSamples:
    """The samples that light reaches, in memory for ``capacity`` of them.

    As :func:`~aire_nerfstudio.ops.compositing.early_stop` finds them, but the density is evaluated once, of all.

    Args:
        padded: of ``N`` rays.
        n_rays: ``N``.
        density: samples ``[M] -> [M]``, in inverse units of the intervals; also of those that belong to no ray.
        epsilon: a sample counts where the transmittance in front of it is more than this, in (0, 1).
        capacity: at least 1.

    Raises:
        ValueError: there is to be memory for none.
    """
    _check(capacity)
    given = padded.samples
    sigmas = density(given)
    library = ray_library(sigmas, *given)
    if library is None or n_rays == 0:
        samples, reached = _visible(padded, n_rays, sigmas, epsilon)
        found = pad(samples.select(reached), n_rays, capacity)
        return found._replace(complete=torch.minimum(found.complete, padded.complete))
    counts = reached_padded(padded, n_rays, sigmas, epsilon)
    offsets = counts.cumsum(0)
    samples = _room(given.starts, n_rays, capacity)
    sizes = n_rays, len(given.starts)
    library.call("aire_compact", *sizes, *given, offsets, counts, capacity, *samples)
    complete = torch.minimum((offsets <= capacity).sum(), padded.complete)
    return PaddedSamples(samples, offsets[-1], complete)


def _visible(padded: PaddedSamples, n_rays: int, sigmas: Tensor, epsilon: float) -> tuple[Samples, Tensor]:
    """In PyTorch: the samples that belong to rays, and which of them light reaches."""
    there = padded.samples.ray_indices < n_rays
    samples = padded.samples.select(there)
    return samples, visibility(sigmas[there], samples, sigmas.new_zeros(n_rays), epsilon)


@torch.no_grad()
def reached_padded(padded: PaddedSamples, n_rays: int, sigmas: PerRow, epsilon: float) -> Tensor:
    """How many samples of each ray light reaches, which are its first ones, int64 ``[N]``.

    Args:
        padded: of ``N`` rays, ``M`` of them.
        n_rays: ``N``.
        sigmas: densities, ``[M]``, in inverse units of the intervals; those that belong to no ray are not looked at.
        epsilon: as :func:`~aire_nerfstudio.ops.compositing.visibility` takes it.
    """
    given = padded.samples
    library = ray_library(sigmas, *given)
    if library is None or n_rays == 0:
        samples, reached = _visible(padded, n_rays, sigmas, epsilon)
        return torch.bincount(samples.ray_indices[reached], minlength=n_rays)
    counts = torch.empty(n_rays, dtype=torch.long, device=sigmas.device)
    limit = -math.log(epsilon)
    library.call("aire_reached", n_rays, len(sigmas), sigmas.contiguous(), *given, limit, counts)
    return counts


def pad(samples: Samples, n_rays: int, capacity: int) -> PaddedSamples:
    """The specification: packed samples ``[K]`` of ``n_rays`` rays put into memory for ``capacity``; the host waits."""
    counts = torch.bincount(samples.ray_indices, minlength=n_rays)
    offsets = counts.cumsum(0)
    complete = (offsets <= capacity).sum()
    kept = samples.select(samples.ray_indices < complete)
    made = _room(samples.starts, n_rays, capacity)
    for place, values in zip(made, kept, strict=True):
        place[: len(values)] = values
    return PaddedSamples(made, counts.sum(), complete)


def _room(like: Tensor, n_rays: int, capacity: int) -> Samples:
    starts, ends = like.new_zeros(2, capacity).unbind()
    return Samples(starts, ends, torch.full((capacity,), n_rays, dtype=torch.long, device=like.device))


def _check(capacity: int) -> None:
    if capacity < 1:
        raise ValueError(f"capacity is {capacity}; it must be at least 1")
