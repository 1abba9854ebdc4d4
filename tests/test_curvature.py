"""More points where a surface bends: curvature as on paper, draws in proportion to it, the batch's size unchanged."""

import numpy as np
import pytest
import torch
import trimesh

from aire_nerfstudio.data.curvature import WeightedOrder, point_curvatures
from aire_nerfstudio.data.mesh_view import pinhole_rays, ring_poses, view_mesh
from aire_nerfstudio.data.space_time import SpaceTimePoints
from aire_nerfstudio.data.surface import HALF_SIDE, read_surface
from aire_nerfstudio.data.surface_samples import SurfaceSamples
from aire_nerfstudio.data.surface_views import ring_cameras
from aire_nerfstudio.errors import InputError


@pytest.fixture(scope="module")
def capsule(tmp_path_factory):
    """Two half spheres of radius r and a cylinder between them: |k1| + |k2| is 2 / r there and 1 / r here."""
    path = tmp_path_factory.mktemp("capsule") / "a.ply"
    mesh = trimesh.creation.capsule(height=4.0, radius=1.0, count=[64, 64])
    for _ in range(2):
        mesh = mesh.subdivide_to_size(0.05)
    mesh.export(path)
    return read_surface(path)


def test_curvature_of_a_sphere(tmp_path):
    trimesh.creation.icosphere(subdivisions=5, radius=7.0).export(tmp_path / "a.ply")
    surface = read_surface(tmp_path / "a.ply")
    assert np.median(point_curvatures(surface)) == pytest.approx(2 / HALF_SIDE, rel=0.05)


def test_caps_get_more_points_than_the_cylinder(capsule):
    samples = SurfaceSamples(capsule, 4_000, 10, 10, 0, "cpu", curvature_share=1.0)
    plain = SurfaceSamples(capsule, 4_000, 10, 10, 0, "cpu")
    assert len(samples.batch(3).on) == len(plain.batch(3).on) == 4_000
    axis = int(np.ptp(capsule.points, axis=0).argmax())
    ends = HALF_SIDE - HALF_SIDE * 1.0 / 3.0  # the caps' share of the half length: 1 of 3

    def share(batch):
        return float((batch.on[:, axis].abs() > ends).float().mean())

    assert share(samples.batch(0)) > 1.2 * share(plain.batch(0))
    assert torch.equal(samples.batch(5).on, samples.batch(5).on)
    with pytest.raises(InputError, match=r"curvature_share is 1\.5"):
        SurfaceSamples(capsule, 10, 10, 10, 0, "cpu", curvature_share=1.5)


@pytest.mark.parametrize("weights", [[1.0, 0.0, 3.0], [0.0, 0.0, 0.0], [2.0]])
def test_draws_follow_the_weights(weights):
    values = np.array(weights)
    drawn = WeightedOrder(values, 20_000, 1, "cpu").at(7)
    expected = values / values.sum() if values.sum() else np.full(len(values), 1 / len(values))
    got = np.bincount(drawn.numpy(), minlength=len(values)) / len(drawn)
    assert np.allclose(got, expected, atol=0.02)
    assert (got[expected == 0] == 0).all()
    assert len(WeightedOrder(values, 0, 1, "cpu").at(0)) == 0


def test_space_time_points_are_a_function_of_the_step():
    points = SpaceTimePoints(1001, 0.3, 4, "cpu")
    first, other = points.at(3).clone(), points.at(4)
    assert torch.equal(first, points.at(3))
    assert not torch.equal(first, other)
    assert first.shape == (1001, 4)
    assert first[:, :3].abs().max() <= 1
    assert 0 <= first[:, 3].min() < first[:, 3].max() <= 0.3


@pytest.mark.parametrize("up", ["y", "z"])
def test_our_rays_are_nerfstudios(up):
    cameras, poses = ring_cameras(3, 17, up), ring_poses(3, up)
    for index in range(3):
        rays = cameras.generate_rays(camera_indices=index, keep_shape=True)
        origins, directions = pinhole_rays(poses[index], 17)
        assert np.allclose(rays.origins.reshape(-1, 3).numpy(), origins, atol=1e-6)
        assert np.allclose(rays.directions.reshape(-1, 3).numpy(), directions, atol=1e-6)


def test_a_view_shows_a_sphere_as_a_disc():
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.5)
    pose = ring_poses(1, "y")[0]
    image = view_mesh(ball.vertices, ball.faces, *pinhole_rays(pose, 101)).reshape(101, 101, 3)
    is_seen = (image < 0.999).any(-1)
    # A sphere of radius r at distance d covers a disc of focal * r / sqrt(d^2 - r^2) pixels.
    from aire_nerfstudio.data.mesh_view import CAMERA_DISTANCE, focal_length

    radius = focal_length(101) * 0.5 / np.sqrt(CAMERA_DISTANCE**2 - 0.25)
    assert is_seen.sum() == pytest.approx(np.pi * radius**2, rel=0.02)
    painted = view_mesh(
        ball.vertices, ball.faces, *pinhole_rays(pose, 101), np.tile([1.0, 0, 0], (len(ball.vertices), 1))
    )
    middle = painted.reshape(101, 101, 3)[50, 50]
    assert middle[0] > 0.9
    assert middle[1] == middle[2] == 0
