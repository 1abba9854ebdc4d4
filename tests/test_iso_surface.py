"""Meshes of known fields, seams and skipped blocks, and the distances between known surfaces."""

import math

import numpy as np
import pytest
import torch
import trimesh

from aire_nerfstudio.analysis import iso_surface
from aire_nerfstudio.analysis.iso_surface import extract_mesh, steepness_of
from aire_nerfstudio.analysis.surface_metrics import compare_surfaces
from aire_nerfstudio.errors import InputError


def torus(p):
    return torch.hypot(torch.hypot(p[:, 0], p[:, 1]) - 0.6, p[:, 2]) - 0.2


@pytest.mark.parametrize("resolution", [33, 64, 67])
def test_a_torus_is_closed_outward_and_where_it_should_be(resolution):
    vertices, faces = extract_mesh(torus, resolution)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight
    assert mesh.euler_number == 0
    assert mesh.volume == pytest.approx(2 * np.pi**2 * 0.6 * 0.2**2, rel=200 / resolution**2)
    assert np.abs(torus(torch.from_numpy(vertices)).numpy()).max() < 1 / resolution
    assert (np.asarray(mesh.vertex_normals)[:, 2] * np.sign(vertices[:, 2]))[np.abs(vertices[:, 2]) > 0.1].min() > 0


def test_skipping_blocks_changes_nothing_and_saves_most(monkeypatch):
    asked = []

    def counted(p):
        asked.append(len(p))
        return torus(p)

    near = extract_mesh(counted, 160)
    few = sum(asked)
    asked.clear()
    everything = extract_mesh(counted, 160, steepness=None)
    assert all(np.array_equal(a, b) for a, b in zip(near, everything, strict=True))
    assert sum(asked) == 160**3
    assert few < 0.6 * 160**3
    # Fields as steep as the safety allows lose nothing either.
    steep = extract_mesh(lambda p: 2 * torus(p), 160)
    assert np.allclose(steep[0], everything[0], atol=1e-6)


def test_what_is_steeper_than_a_distance_is_measured():
    def rough(p):
        return p.norm(dim=-1) - 0.5 + 0.3 * torch.sin(60 * p).prod(-1)

    def gradients(p):
        p = p.clone().requires_grad_()
        return torch.autograd.grad(rough(p).sum(), p)[0]

    everything = extract_mesh(rough, 200, steepness=None)
    steepness = steepness_of(gradients)
    assert steepness > 10
    near = extract_mesh(rough, 200, steepness=steepness)
    assert all(np.array_equal(a, b) for a, b in zip(near, everything, strict=True))
    assert len(extract_mesh(rough, 200)[1]) < len(everything[1])
    assert steepness_of(lambda p: torch.nn.functional.normalize(p)) == 2
    assert steepness_of(lambda p: p / 0) == math.inf
    # Of the last point alone.
    spoiled = torch.nn.functional.pad(torch.full((1, 3), math.nan), (0, 0, 1, 0))
    assert steepness_of(lambda p: torch.cat([p[:-2], spoiled])) == math.inf


def test_levels_progress_and_nothing_to_find():
    shares = []
    vertices, _ = extract_mesh(lambda p: p.norm(dim=-1), 40, level=0.5, progress=shares.append)
    assert np.allclose(np.linalg.norm(vertices, axis=1), 0.5, atol=2e-3)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    vertices, faces = extract_mesh(lambda p: p.norm(dim=-1) + 1, 20)
    assert (len(vertices), len(faces)) == (0, 0)
    # So far from 0 everywhere that no block is looked into.
    assert len(extract_mesh(lambda p: p.norm(dim=-1) + 9, 80, progress=shares.append)[0]) == 0


def test_grids_that_cannot_be_are_refused(monkeypatch):
    with pytest.raises(InputError, match="at least 2"):
        extract_mesh(torus, 1)
    monkeypatch.setattr(iso_surface, "BYTES_PER_POINT", 1 << 40)
    with pytest.raises(InputError, match="lower the resolution"):
        extract_mesh(torus, 64)


def test_concentric_spheres_are_their_gap_apart():
    one = trimesh.creation.icosphere(5, 1.0)
    other = trimesh.creation.icosphere(5, 1.1)
    pair = [(np.asarray(m.vertices), np.asarray(m.faces)) for m in (one, other)]
    found = compare_surfaces(*pair, samples=5000)
    assert found.chamfer == pytest.approx(0.2, abs=2e-3)
    assert found.hausdorff == pytest.approx(0.1, abs=2e-3)
    assert found.normal_consistency > 0.999
    same = compare_surfaces(pair[0], pair[0], samples=5000)
    assert same.chamfer < 1e-7
    with pytest.raises(InputError, match="second surface has no faces"):
        compare_surfaces(pair[0], (pair[0][0], np.empty((0, 3), int)))


def test_a_field_may_be_of_another_type_and_must_give_a_number_a_point():
    sphere = lambda p: p.norm(dim=-1) - 0.5  # noqa: E731
    kinds = set()

    def double(points):
        kinds.add(points.dtype)
        return sphere(points)

    for a, b in zip(extract_mesh(double, 30, dtype=torch.float64), extract_mesh(sphere, 30), strict=True):
        assert np.allclose(a, b, atol=1e-5)
    assert kinds == {torch.float64}
    with pytest.raises(InputError, match=r"one each, \[N\]"):
        extract_mesh(lambda p: sphere(p)[:, None], 20)
