"""Where a residual has most energy: frequencies that ``densify_from="residual"`` adds."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from aire_nerfstudio.shapes import Channels, Points

Densify = Literal["harmonics", "residual"]
# Closer together than this, in radians per unit, two waves look alike on [-1, 1].
SEPARATION = math.pi / 2
CANDIDATES_A_FREQUENCY = 16


@torch.no_grad()
def residual_frequencies(points: Points, residual: Channels, limit: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Frequencies at which a residual has most energy, and the phases with which ``sin(<w, x> + phi)`` meets it.

    A periodogram over random candidates in a box, the strongest first, each at least :data:`SEPARATION` from those
    before it where the box has room for that.

    Args:
        points: ``[N, d]``, anywhere in ``[-1, 1]^d``; they need not lie on a grid.
        residual: truth minus prediction, ``[N, C]``.
        limit: largest frequency of the box in each dimension, in radians per unit, ``[d]``.
        count: how many, ``K``.

    Returns:
        Frequencies ``[K, d]`` and phases ``[K]`` in radians, of plain sines.
    """
    n_candidates = CANDIDATES_A_FREQUENCY * count
    candidates = (2 * torch.rand(n_candidates, points.shape[1], device=points.device) - 1) * limit
    centred = residual - residual.mean(0)
    in_phase, quadrature = [], []
    for part in candidates.split(256):
        angle = points @ part.T
        in_phase.append(torch.sin(angle).T @ centred)
        quadrature.append(torch.cos(angle).T @ centred)
    s, c = torch.cat(in_phase), torch.cat(quadrature)  # [M, C]
    energy = (s.square() + c.square()).sum(1)
    # Each channel has its own phase; that of the strongest one serves.
    channel = (s.square() + c.square()).argmax(1, keepdim=True)
    phases = torch.atan2(c.gather(1, channel), s.gather(1, channel)).squeeze(1)
    # A wave and its mirror image are one: sin(-a) = -sin(a).
    signs = torch.where(candidates[:, :1] < 0, -1.0, 1.0)
    folded = candidates * signs
    chosen: list[int] = []
    passed_over: list[int] = []
    for index in energy.argsort(descending=True).tolist():
        if len(chosen) == count:
            break
        is_free = not chosen or float((folded[chosen] - folded[index]).norm(dim=1).min()) >= SEPARATION
        (chosen if is_free else passed_over).append(index)
    chosen += passed_over[: count - len(chosen)]
    return candidates[chosen], phases[chosen]
