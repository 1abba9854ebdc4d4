"""What an SDF trains on: points of the surface with normals, and points of space with their distances."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aire_nerfstudio.data.curvature import WeightedOrder, point_curvatures
from aire_nerfstudio.data.distances import SignedDistance
from aire_nerfstudio.data.epochs import EpochOrder
from aire_nerfstudio.data.surface import Surface
from aire_nerfstudio.errors import InputError


class SurfaceBatch(NamedTuple):
    """One step's samples, float32 on the device.

    Attributes:
        on: points of the surface, ``[N, 3]``.
        normals: unit, outwards, ``[N, 3]``.
        off: points of the cube, ``[M, 3]``.
        distances: to the surface from ``off``, negative inside, ``[M]``.
    """

    on: Tensor
    normals: Tensor
    off: Tensor
    distances: Tensor


class SurfaceSamples:
    """All samples resident on the device; a batch is a function of the step.

    The points off the surface are a pool, uniform in the cube, whose distances are computed once: no step waits for
    them.

    Args:
        surface: the shape.
        on_surface: points of the surface a step, at least 1.
        off_surface: points of the cube a step, at least 1.
        pool: points of the cube in all, at least ``off_surface``.
        seed: of pool and order.
        device: where everything lives.
        progress: called with the number of distances known so far.
        curvature_share: share of the points of the surface that are drawn where it bends, in proportion to
            ``|k1| + |k2|``, in [0, 1]; the others are every point once an epoch.

    Raises:
        InputError: a number out of range.
    """

    def __init__(
        self,
        surface: Surface,
        on_surface: int,
        off_surface: int,
        pool: int,
        seed: int,
        device: torch.device | str,
        progress: Callable[[int], None] | None = None,
        curvature_share: float = 0.0,
    ) -> None:
        for name, value, least in (
            ("on_surface", on_surface, 1),
            ("off_surface", off_surface, 1),
            ("pool", pool, off_surface),
        ):
            if value < least:
                raise InputError(f"{name} is {value}; it must be at least {least}")
        if not 0 <= curvature_share <= 1:
            raise InputError(f"curvature_share is {curvature_share}; it must lie in [0, 1]")
        points = np.random.default_rng(seed).uniform(-1, 1, (pool, 3))
        distances = SignedDistance(surface.vertices, surface.faces)(points, progress)

        def resident(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)

        self._on, self._normals = resident(surface.points), resident(surface.normals)
        self._off, self._distances = resident(points), resident(distances)
        self._on_order = EpochOrder(len(surface.points), on_surface, seed, device, fills=True)
        self._n_bent = round(curvature_share * self._on_order.batch_size)
        self._bent_order: WeightedOrder | None = None
        if self._n_bent:
            self._bent_order = WeightedOrder(point_curvatures(surface), self._n_bent, seed + 2, device)
        # Another stream: else pool and surface would be shuffled by the same numbers.
        self._off_order = EpochOrder(pool, off_surface, seed + 1, device, fills=True)

    @property
    def steps_per_epoch(self) -> int:
        """``ceil(surface points / points a step)``."""
        return self._on_order.steps_per_epoch

    @property
    def batch_size(self) -> int:
        """Points a step, on the surface and off it."""
        return self._on_order.batch_size + self._off_order.batch_size

    def batch(self, step: int) -> SurfaceBatch:
        """The samples of a step, 0 or later."""
        on, off = self._on_order.at(step), self._off_order.at(step)
        if self._bent_order is not None:
            on = torch.cat([on[: len(on) - self._n_bent], self._bent_order.at(step)])
        return SurfaceBatch(self._on[on], self._normals[on], self._off[off], self._distances[off])
