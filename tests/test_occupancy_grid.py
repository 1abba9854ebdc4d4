"""The grid must never lose a voxel that the density fills, and must clear the others."""

import pytest
import torch

from aire_nerfstudio.fields.occupancy_grid import OccupancyGrid
from aire_nerfstudio.ops.occupancy import voxel_indices


def _ball(x):
    return torch.where(x.norm(dim=-1) < 0.6, 50.0, 0.0)


@pytest.mark.parametrize("size", [7, 16])
def test_a_ball_is_found_and_the_rest_cleared(size):
    torch.manual_seed(0)
    grid = OccupancyGrid(size, threshold=10.0)
    assert grid.occupied.all()
    for _ in range(3):
        grid.update(_ball, everywhere=True)
    points = torch.rand(5000, 3) * 2 - 1
    voxel = 2 / size
    inside = points.norm(dim=-1) < 0.6 - 2 * voxel
    outside = points.norm(dim=-1) > 0.6 + 2 * voxel
    occupied = grid.occupied.view(-1)[voxel_indices(points, size)]
    assert occupied[inside].all()
    assert not occupied[outside].any()


def test_what_vanishes_is_forgotten_and_what_appears_is_found():
    torch.manual_seed(0)
    grid = OccupancyGrid(8, threshold=10.0)
    grid.update(_ball, everywhere=True)
    for _ in range(60):
        grid.update(lambda x: torch.where(x[:, 0] > 0.5, 50.0, 0.0), everywhere=False)
    assert grid.occupied[6:].all()
    assert not grid.occupied[:6].any()


def test_axes_are_x_y_z():
    torch.manual_seed(0)
    grid = OccupancyGrid(4, threshold=10.0)
    grid.update(lambda x: torch.where((x[:, 0] > 0.5) & (x[:, 2] < -0.5), 50.0, 0.0), everywhere=True)
    assert grid.occupied[3, :, 0].all()
    assert grid.occupied.sum() == 4


def test_state_dict_restores_what_the_marchers_read():
    torch.manual_seed(0)
    grid, other = OccupancyGrid(8, 10.0), OccupancyGrid(8, 10.0)
    grid.update(_ball, everywhere=True)
    other.load_state_dict(grid.state_dict())
    assert torch.equal(grid.occupied, other.occupied)
    assert torch.equal(grid.occupancy.bits, other.occupancy.bits)
    assert torch.equal(grid.occupancy.dilated, other.occupancy.dilated)


@pytest.mark.parametrize("arguments", [(1, 10.0), (8, 0.0), (8, 10.0, 1.0), (8, 10.0, 0.0)])
def test_bad_settings_are_refused(arguments):
    with pytest.raises(ValueError, match="must"):
        OccupancyGrid(*arguments)
