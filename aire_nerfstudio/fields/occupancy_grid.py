"""Which voxels of ``[-1, 1]^3`` may hold matter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from aire_nerfstudio.ops.occupancy import LARGEST_RESOLUTION, Occupancy, update_density_grid

# Voxels that are evaluated at once on a processor, and on CUDA, where launches take the host longer than the device.
CHUNKS = 1 << 18, 1 << 20


class OccupancyGrid(nn.Module):
    """A decayed maximum of the density in each voxel, thresholded.

    Source: instant-ngp (Mueller et al. 2022), as in torch-ngp: decay 0.95 an update, a voxel is occupied where the
    value exceeds ``min(threshold, mean)``.

    Args:
        resolution: voxels a side, ``G``.
        threshold: density above which a voxel counts, in the units of the density function.
        decay: factor of the stored value at each update.
        is_contracted: whether the cube holds all of space (:func:`~aire_nerfstudio.ops.contraction.contract`).
    """

    density: Tensor
    occupied: Tensor

    def __init__(self, resolution: int, threshold: float, decay: float = 0.95, is_contracted: bool = False) -> None:
        super().__init__()
        if not 2 <= resolution <= LARGEST_RESOLUTION:
            raise ValueError(f"grid resolution {resolution} must lie in [2, {LARGEST_RESOLUTION}]")
        if threshold <= 0:
            raise ValueError(f"density threshold {threshold} must be positive")
        if not 0 < decay < 1:
            raise ValueError(f"grid decay {decay} must lie in (0, 1)")
        self.resolution = resolution
        self.threshold = threshold
        self.decay = decay
        self.is_contracted = is_contracted
        shape = (resolution,) * 3
        self.register_buffer("density", torch.zeros(shape))
        self.register_buffer("occupied", torch.ones(shape, dtype=torch.bool))
        self._occupancy: Occupancy | None = None

    @property
    def occupancy(self) -> Occupancy:
        """The occupied voxels, for the marchers."""
        # Another tensor after an update, and after a move to another device.
        made = self._occupancy
        if made is None or made.occupied is not self.occupied or made.is_contracted != self.is_contracted:
            made = self._occupancy = Occupancy(self.occupied, self.is_contracted)
        return made

    @torch.no_grad()
    def update(self, density: Callable[[Tensor], Tensor], everywhere: bool) -> None:
        """Re-evaluate voxels at a random point in each.

        Args:
            density: positions ``[m, 3]`` in ``[-1, 1]^3`` -> ``[m]``.
            everywhere: all voxels; otherwise a quarter of them drawn uniformly and as many of the occupied ones.
        """
        n = self.resolution**3
        device = self.density.device
        if everywhere:
            index = torch.arange(n, device=device)
        else:
            uniform = torch.randint(n, (n // 4,), device=device)
            occupied = self.occupied.view(-1).nonzero().squeeze(1)
            if len(occupied) > n // 4:
                occupied = occupied[torch.randint(len(occupied), (n // 4,), device=device)]
            index = torch.cat([uniform, occupied]).unique()
        points = self._points_in(index)
        fresh = torch.cat([density(part) for part in points.split(CHUNKS[device.type == "cuda"])])
        update_density_grid(self.density, index, fresh.to(self.density), self.decay)
        self._threshold()

    def occupied_points(self, count: int) -> Tensor:
        """Uniform random points in occupied voxels, or in the whole cube where none is, ``[count, 3]``."""
        occupied = self.occupied.view(-1).nonzero().squeeze(1)
        device = occupied.device
        if len(occupied) == 0:
            return 2 * torch.rand(count, 3, device=device) - 1
        return self._points_in(occupied[torch.randint(len(occupied), (count,), device=device)])

    def _points_in(self, index: Tensor) -> Tensor:
        """A uniform random point in each voxel of ``index [N]``, ``[N, 3]``."""
        g = self.resolution
        corner = torch.stack([index // g**2, index // g % g, index % g], -1)
        return (corner + torch.rand(len(index), 3, device=index.device)) * (2 / g) - 1

    def _threshold(self) -> None:
        self.occupied = self.density > min(self.threshold, float(self.density.mean()))

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._occupancy = None
