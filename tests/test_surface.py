"""Shapes: what is read is what was meant; what cannot be read says why; distances and samples are true."""

import numpy as np
import pytest
import torch
import trimesh

from aire_nerfstudio.data.distances import SignedDistance
from aire_nerfstudio.data.surface import HALF_SIDE, read_surface
from aire_nerfstudio.data.surface_samples import SurfaceSamples
from aire_nerfstudio.errors import InputError


@pytest.fixture(scope="module")
def sphere():
    return trimesh.creation.icosphere(subdivisions=5, radius=2.0)  # 10,242 vertices


def _saved(folder, mesh, name="a.ply"):
    mesh.export(folder / name)
    return folder / name


@pytest.mark.parametrize("suffix", ["ply", "obj", "stl", "off"])
def test_every_format_gives_the_same_sphere(tmp_path, sphere, suffix):
    moved = sphere.copy()
    moved.apply_translation([5, -3, 1])
    surface = read_surface(_saved(tmp_path, moved, f"a.{suffix}"))
    assert surface.is_closed
    assert surface.faces.shape == sphere.faces.shape
    assert np.allclose(surface.centre, [5, -3, 1], atol=1e-5)
    assert surface.scale == pytest.approx(2 / HALF_SIDE, rel=1e-5)
    assert np.allclose(np.linalg.norm(surface.points, axis=1), HALF_SIDE, atol=1e-5)
    assert np.allclose((surface.points / HALF_SIDE * surface.normals).sum(1), 1, atol=1e-3)  # outwards


def test_inward_faces_duplicates_and_loose_vertices_are_repaired(tmp_path, sphere):
    vertices = np.concatenate([sphere.vertices, [[9.0, 9, 9]]])
    faces = np.concatenate([sphere.faces[:, ::-1], sphere.faces[:50, ::-1]])
    surface = read_surface(_saved(tmp_path, trimesh.Trimesh(vertices, faces, process=False)))
    assert surface.is_closed
    assert surface.faces.shape == sphere.faces.shape
    assert (surface.points * surface.normals).sum(1).min() > 0
    assert np.abs(surface.points).max() == pytest.approx(HALF_SIDE)
    assert any("duplicate" in note for note in surface.notes)
    assert any("pointed inwards" in note for note in surface.notes)


def test_a_coarse_mesh_gets_points_from_its_faces(tmp_path):
    surface = read_surface(_saved(tmp_path, trimesh.creation.box([2.0, 1.0, 1.0])))
    assert len(surface.points) == 100_000
    extent = np.abs(surface.points) - np.array([HALF_SIDE, HALF_SIDE / 2, HALF_SIDE / 2])
    assert np.allclose(extent.max(1), 0, atol=1e-9)
    again = read_surface(tmp_path / "a.ply")
    assert np.array_equal(surface.points, again.points)


def test_two_components_stay(tmp_path, sphere):
    other = sphere.copy()
    other.apply_translation([7, 0, 0])
    surface = read_surface(_saved(tmp_path, trimesh.util.concatenate([sphere, other])))
    distance = SignedDistance(surface.vertices, surface.faces)
    inside = np.array([[-3.5, 0, 0], [3.5, 0, 0], [0, 0, 0]]) / surface.scale
    assert np.array_equal(np.sign(distance(inside)), [-1, -1, 1])


@pytest.mark.parametrize("kind", ["text.ply", "binary.ply", "text.xyz"])
def test_points_with_normals(tmp_path, sphere, kind):
    points, normals = sphere.vertices * 3, sphere.vertices / 2
    table = np.concatenate([points, normals], axis=1)
    form = "ascii" if kind.startswith("text") else "binary_little_endian"
    lines = ["ply", f"format {form} 1.0", f"element vertex {len(points)}"]
    lines += [f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")] + ["end_header", ""]
    header = "\n".join(lines).encode()
    if kind == "text.xyz":
        np.savetxt(tmp_path / kind, table)
    elif kind == "text.ply":
        (tmp_path / kind).write_bytes(header + "\n".join(" ".join(map(str, row)) for row in table).encode())
    else:
        (tmp_path / kind).write_bytes(header + table.astype("<f4").tobytes())
    surface = read_surface(tmp_path / kind)
    assert len(surface.points) == len(points)
    assert "Poisson" in surface.notes[-1]
    query = np.random.default_rng(0).uniform(-1, 1, (500, 3))
    found = SignedDistance(surface.vertices, surface.faces)(query)
    assert np.abs(found - (np.linalg.norm(query, axis=1) - HALF_SIDE)).max() < 0.01


def test_distances_are_those_of_the_sphere_and_of_trimesh(tmp_path, sphere):
    query = np.random.default_rng(1).uniform(-3, 3, (700, 3))
    found = SignedDistance(np.asarray(sphere.vertices), np.asarray(sphere.faces))(query)
    assert np.abs(found - (np.linalg.norm(query, axis=1) - 2)).max() < 2e-3
    oracle = -trimesh.proximity.signed_distance(sphere, query[:40])
    assert np.allclose(found[:40], oracle, atol=1e-9)
    assert SignedDistance(np.asarray(sphere.vertices), np.asarray(sphere.faces))(np.empty((0, 3))).shape == (0,)


def test_a_hole_does_not_turn_the_inside_out(sphere):
    open_faces = np.asarray(sphere.faces)[60:]
    query = np.random.default_rng(1).uniform(-3, 3, (400, 3))
    whole = SignedDistance(np.asarray(sphere.vertices), np.asarray(sphere.faces))(query)
    holed = SignedDistance(np.asarray(sphere.vertices), open_faces)(query)
    assert (np.sign(whole) == np.sign(holed)).mean() > 0.99


def test_batches_follow_the_step_and_cover_everything(tmp_path, sphere):
    surface = read_surface(_saved(tmp_path, sphere))
    samples = SurfaceSamples(surface, 3000, 700, 5000, 0, "cpu")
    assert samples.steps_per_epoch == 4
    batches = [samples.batch(step) for step in range(4)]
    assert torch.equal(
        torch.cat([b.on for b in batches]).sort(0).values, torch.tensor(surface.points).float().sort(0).values
    )
    again = SurfaceSamples(surface, 3000, 700, 5000, 0, "cpu").batch(2)
    assert all(torch.equal(a, b) for a, b in zip(again, batches[2], strict=True))
    batch = batches[1]
    assert torch.allclose(batch.distances, batch.off.norm(dim=-1) - HALF_SIDE, atol=1e-3)
    assert torch.allclose((batch.on / HALF_SIDE * batch.normals).sum(-1), torch.ones(3000), atol=1e-3)
    assert batch.off.shape == (700, 3)
    for bad in ((0, 700, 5000), (3000, 0, 5000), (3000, 700, 699)):
        with pytest.raises(InputError, match="must be at least"):
            SurfaceSamples(surface, *bad, 0, "cpu")


def _points(count, normals):
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(size=(count, 3)), *([rng.normal(size=(count, 3))] if normals else [])], axis=1)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("no.ply", None, "does not exist"),
        ("a.txt", lambda p: p.write_text("1 2 3"), "is not one of .ply, .obj"),
        ("a.ply", lambda p: p.write_bytes(b""), r"is empty \(0 bytes\)"),
        ("a.ply", lambda p: p.write_text("ply\nrubbish"), "no end_header"),
        ("a.obj", lambda p: p.write_text("v 0 0\nv 1 0\nv 0 1\nf 1 2 3\n"), "vertices of 2 coordinates"),
        ("a.stl", lambda p: p.write_bytes(b"\0" * 90), "cannot be read|no vertices|no mesh"),
        ("a.obj", lambda p: p.write_text("# nothing\n"), "cannot be read|no vertices|no mesh"),
        ("a.xyz", lambda p: np.savetxt(p, _points(500, False)), "without faces or normals"),
        ("a.xyz", lambda p: np.savetxt(p, _points(10, True)), "holds 10 points with normals; at least 100"),
        ("a.obj", lambda p: p.write_text("v 0 0 0\nv 1 0 nan\nv 0 1 0\nf 1 2 3\n"), "1 vertices that are not finite"),
        ("a.obj", lambda p: p.write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n"), "has no area"),
        ("a.obj", lambda p: p.write_text("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n"), "has no extent"),
    ],
)
def test_bad_shapes_say_what_is_wrong(tmp_path, name, make, message):
    path = tmp_path / name
    if make is not None:
        make(path)
    with pytest.raises(InputError, match=message) as caught:
        read_surface(path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_too_many_faces_for_the_memory(tmp_path, sphere, monkeypatch):
    path = _saved(tmp_path, sphere)
    monkeypatch.setattr("aire_nerfstudio.data.surface.BYTES_PER_FACE_IN_USE", 1 << 40)
    with pytest.raises(InputError, match=r"20,480 faces; that takes about .* GiB"):
        read_surface(path)
