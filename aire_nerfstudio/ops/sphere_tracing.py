"""Sphere tracing: walking along rays by the distance that a field tells, until the surface is met."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aire_nerfstudio.shapes import PerRay, RayMask, Rays3

# A ray that is not done after all steps counts as meeting the surface within so many tolerances.
GRAZING = 10.0


@torch.no_grad()
def sphere_trace(
    field: Callable[[Tensor], Tensor],
    origins: Rays3,
    directions: Rays3,
    near: PerRay,
    far: PerRay,
    max_steps: int = 96,
    tolerance: float = 1e-3,
    relaxation: float = 0.9,
) -> tuple[PerRay, RayMask]:
    """Where rays first meet ``field = 0``, coming from outside.

    A trained distance is not exact: steps are shortened by ``relaxation``, and where one jumps to the inside the
    crossing is found by bisection.

    Args:
        field: ``[N, 3] -> [N]``, negative inside.
        origins: ``[N, 3]``.
        directions: ``[N, 3]``, unit.
        near: where each ray enters the volume, ``[N]``.
        far: where it leaves it, ``[N]``; a ray with ``far <= near`` misses.
        max_steps: evaluations along a ray at most, before the bisection.
        tolerance: distance at which the surface counts as met.
        relaxation: share of the distance to walk, in (0, 1].

    Returns:
        Distances along the rays ``[N]`` (``far`` where nothing is met) and whether the surface is met ``[N]``.
    """
    t = near.clone()
    before = near.clone()
    is_met = torch.zeros_like(near, dtype=torch.bool)
    has_crossed = torch.zeros_like(is_met)
    active = (far > near).nonzero().squeeze(1)
    for _ in range(max_steps):
        if len(active) == 0:
            break
        value = field(origins[active] + t[active, None] * directions[active])
        close = value.abs() < tolerance
        crossed = (value < 0) & ~close
        is_met[active[close | crossed]] = True
        has_crossed[active[crossed]] = True
        going = ~(close | crossed)
        active, value = active[going], value[going]
        before[active] = t[active]
        t[active] = t[active] + (relaxation * value).clamp_min(tolerance / 2)
        active = active[t[active] < far[active]]
    if len(active):
        # Rays that graze the surface creep along it; without this a white seam runs beside every outline.
        near_by = field(origins[active] + t[active, None] * directions[active]) < GRAZING * tolerance
        is_met[active[near_by]] = True
    inside = has_crossed.nonzero().squeeze(1)
    low, high = before[inside], t[inside]
    for _ in range(12 if len(inside) else 0):
        middle = (low + high) / 2
        is_outside = field(origins[inside] + middle[:, None] * directions[inside]) > 0
        low, high = torch.where(is_outside, middle, low), torch.where(is_outside, high, middle)
    t[inside] = (low + high) / 2
    return torch.where(is_met, t, far), is_met
