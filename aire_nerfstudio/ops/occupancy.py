"""Occupied voxels of ``[-1, 1]^3`` as the marchers read them; names follow torch-ngp's ``raymarching``."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from aire_nerfstudio.ops.contraction import contract
from aire_nerfstudio.ops.ray_library import has_shapes, ray_library

# Ten bits a coordinate are what 32 bits hold of three.
LARGEST_RESOLUTION = 1024


def morton3D(coordinates: Tensor) -> Tensor:
    """Index along the Z-order curve, int32 ``[N]``, of ``coordinates [N, 3]`` in [0, 1023]; x has the lowest bit.

    Raises:
        ValueError: not of that shape.
    """
    if coordinates.dim() != 2 or coordinates.shape[1] != 3:
        raise ValueError(f"coordinates must be [N, 3]; got {tuple(coordinates.shape)}")
    whole = coordinates.to(torch.int32).contiguous()
    library = ray_library(whole)
    if library is None:
        return _spread(whole[:, 0]) | _spread(whole[:, 1]) << 1 | _spread(whole[:, 2]) << 2
    indices = whole.new_empty(len(whole))
    library.call("aire_morton", len(whole), whole, indices)
    return indices


def morton3D_invert(indices: Tensor) -> Tensor:
    """Coordinates, int32 ``[N, 3]``, of Z-order ``indices [N]``: the inverse of :func:`morton3D`."""
    whole = indices.to(torch.int32).contiguous()
    library = ray_library(whole)
    if library is None:
        return torch.stack([_gather(whole), _gather(whole >> 1), _gather(whole >> 2)], -1)
    coordinates = whole.new_empty(len(whole), 3)
    library.call("aire_morton_invert", len(whole), whole, coordinates)
    return coordinates


def packbits(grid: Tensor, threshold: float) -> Tensor:
    """A bit for each voxel in Z-order, set where ``grid`` is above ``threshold``.

    Args:
        grid: float ``[G, G, G]``, indexed x, y, z, ``G`` at most 1024.
        threshold: in the units of ``grid``.

    Returns:
        uint8 ``[S^3 / 8]``, lowest bit first, where ``S`` is the next power of two from ``G`` on, at least 4; voxels
        beyond ``G`` are empty.

    Raises:
        ValueError: not a cube, or larger.
    """
    size = grid.shape[0]
    if grid.shape != (size,) * 3 or not 1 <= size <= LARGEST_RESOLUTION:
        raise ValueError(f"grid must be [G, G, G] with G from 1 to {LARGEST_RESOLUTION}; got {tuple(grid.shape)}")
    side = max(4, 1 << (size - 1).bit_length())
    library = ray_library(grid)
    if library is not None:
        packed = torch.empty(side**3 // 8, dtype=torch.uint8, device=grid.device)
        library.call("aire_packbits", len(packed), grid.contiguous(), size, float(threshold), packed)
        return packed
    is_set = torch.zeros((side,) * 3, dtype=torch.bool, device=grid.device)
    is_set[:size, :size, :size] = grid > threshold
    x, y, z = morton3D_invert(torch.arange(side**3, device=grid.device)).long().unbind(-1)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], device=grid.device)
    return (is_set[x, y, z].view(-1, 8) * weights).sum(-1).to(torch.uint8)


@torch.no_grad()
def update_density_grid(density: Tensor, index: Tensor, fresh: Tensor, decay: float) -> None:
    """Let all densities fade, and raise those of some voxels to what was found there, in place.

    Args:
        density: ``[G, G, G]``.
        index: distinct flat indices, int64 ``[K]``.
        fresh: densities found, ``[K]``.
        decay: factor of what is remembered, in (0, 1).
    """
    is_on_cpu = density.device.type == "cpu"
    if is_on_cpu and len(index) and not 0 <= int(index.min()) <= int(index.max()) < density.numel():
        raise IndexError(f"index must lie in [0, {density.numel()}); got {int(index.min())} to {int(index.max())}")
    density *= decay
    library = ray_library(density, index, fresh)
    fits = index.dtype == torch.long and has_shapes((index, (len(index),)), (fresh, (len(index),)))
    if library is not None and fits and density.is_contiguous():
        library.call("aire_grid_raise", len(index), index.contiguous(), fresh.contiguous(), density)
        return
    stored = density.view(-1)
    # NaN is no density: it would stay for good.
    stored[index] = torch.fmax(stored[index], fresh.to(stored))


def voxel_indices(positions: Tensor, resolution: int) -> Tensor:
    """Flat index (x slowest) of the voxel of each position in ``[-1, 1]^3``, ``[..., 3] -> [...]``, clamped inside."""
    index = ((positions + 1) * (0.5 * resolution)).long().clamp_(0, resolution - 1)
    return (index[..., 0] * resolution + index[..., 1]) * resolution + index[..., 2]


def dilate(occupied: Tensor) -> Tensor:
    """Occupied voxels and their 26 neighbours, bool ``[G, G, G]``."""
    return torch.nn.functional.max_pool3d(occupied[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0


class Occupancy:
    """Which voxels may hold matter, with what the marchers derive from it, when first asked for.

    Args:
        occupied: bool ``[G, G, G]``, indexed x, y, z; not to be changed afterwards.
        is_contracted: whether the grid's cube holds all of space (:func:`~aire_nerfstudio.ops.contraction.contract`).
        bits: what the compiled marchers are to read, which may then change; None: made of ``occupied``.
    """

    def __init__(self, occupied: Tensor, is_contracted: bool = False, bits: Tensor | None = None) -> None:
        self.occupied, self.is_contracted = occupied, is_contracted
        if bits is not None:
            self.__dict__["bits"] = bits

    @property
    def resolution(self) -> int:
        """Voxels a side, ``G``."""
        return self.occupied.shape[0]

    def at(self, points: Tensor) -> Tensor:
        """Whether ``points [..., 3]`` lie in occupied voxels, bool ``[...]``."""
        places = contract(points) if self.is_contracted else points
        return self.occupied.view(-1)[voxel_indices(places, self.resolution)]

    @cached_property
    def dilated(self) -> Tensor:
        """:func:`dilate` of the voxels: what the marcher in PyTorch tests stretches of a ray against."""
        return dilate(self.occupied)

    @cached_property
    def bits(self) -> Tensor:
        """:func:`packbits` of the voxels: what the compiled marchers read, 64 voxels at a time."""
        return packbits(self.occupied.float(), 0.5)


def _spread(v: Tensor) -> Tensor:
    v = v & 0x3FF
    v = (v | v << 16) & 0x030000FF
    v = (v | v << 8) & 0x0300F00F
    v = (v | v << 4) & 0x030C30C3
    return (v | v << 2) & 0x09249249


def _gather(v: Tensor) -> Tensor:
    v = v & 0x09249249
    v = (v | v >> 2) & 0x030C30C3
    v = (v | v >> 4) & 0x0300F00F
    v = (v | v >> 8) & 0x030000FF
    return (v | v >> 16) & 0x3FF
