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
    assert trimesh.Trimesh(surface.vertices, surface.faces, process=False).is_watertight
    assert surface.faces.shape == sphere.faces.shape
    assert np.allclose(surface.centre, [5, -3, 1], atol=1e-5)
    assert surface.scale == pytest.approx(2 / HALF_SIDE, rel=1e-5)
    assert np.allclose(np.linalg.norm(surface.points, axis=1), HALF_SIDE, atol=1e-5)
    assert np.allclose((surface.points / HALF_SIDE * surface.normals).sum(1), 1, atol=1e-3)  # outwards


def test_inward_faces_duplicates_and_loose_vertices_are_repaired(tmp_path, sphere):
    vertices = np.concatenate([sphere.vertices, [[9.0, 9, 9]]])
    faces = np.concatenate([sphere.faces[:, ::-1], sphere.faces[:50, ::-1]])
    surface = read_surface(_saved(tmp_path, trimesh.Trimesh(vertices, faces, process=False)))
    assert trimesh.Trimesh(surface.vertices, surface.faces, process=False).is_watertight
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
    assert {(len(b.on), len(b.off)) for b in batches} == {(3000, 700)}
    drawn = torch.cat([b.on for b in batches])[: len(surface.points)]
    assert torch.equal(drawn.sort(0).values, torch.tensor(surface.points).float().sort(0).values)
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
        ("a.xyz", lambda p: np.savetxt(p, np.abs(_points(500, True))), "they are colours, or the surface is open"),
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


def _signs(surface, at):
    """Signed distances at points of the file, in its units."""
    at = (np.asarray(at, dtype=np.float64) - surface.centre) / surface.scale
    return SignedDistance(surface.vertices, surface.faces)(at) * surface.scale


@pytest.mark.parametrize("size", [1e-8, 1e-5, 1e6])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_units_and_places_do_not_matter(tmp_path, sphere, size, offset):
    plain = read_surface(_saved(tmp_path, sphere, "plain.obj"))
    moved = sphere.copy()
    moved.apply_scale(size)
    moved.apply_translation([offset * size] * 3)
    (tmp_path / "moved.obj").write_text(trimesh.exchange.obj.export_obj(moved, digits=17))
    surface = read_surface(tmp_path / "moved.obj")
    assert surface.points.shape == plain.points.shape
    assert np.allclose(surface.points, plain.points, atol=2e-5)
    assert np.allclose(surface.normals, plain.normals, atol=2e-3)
    assert surface.scale == pytest.approx(plain.scale * size)
    assert np.allclose(surface.centre, offset * size, atol=2e-5 * size, rtol=1e-9)
    assert not surface.notes


def _spheres(tmp_path, *balls):
    """Of each ball: centre, radius, whether its faces point inwards."""
    made = []
    for centre, radius, is_inward in balls:
        ball = trimesh.creation.icosphere(subdivisions=4, radius=radius)
        ball.apply_translation([centre, 0, 0])
        if is_inward:
            ball.invert()
        made.append(ball)
    return read_surface(_saved(tmp_path, trimesh.util.concatenate(made)))


@pytest.mark.parametrize("inward", [(False, True), (True, False), (True, True), (False, False)])
def test_each_part_is_turned_outwards(tmp_path, inward):
    surface = _spheres(tmp_path, (0, 1.0, inward[0]), (3, 0.5, inward[1]))
    assert np.allclose(_signs(surface, [[0, 0, 0], [3, 0, 0], [1.75, 0, 0]]), [-1, -0.5, 0.75], atol=0.01)
    assert sum("turned inside out" in note for note in surface.notes) == any(inward)


def test_a_hollow_stays_one_and_what_is_in_it_is_turned_outwards(tmp_path):
    for is_inward in (False, True):
        surface = _spheres(tmp_path, (0, 2.0, False), (0, 1.5, True), (0, 0.5, is_inward))
        at = [[0, 0, 0], [1, 0, 0], [1.75, 0, 0], [2.5, 0, 0]]
        assert np.allclose(_signs(surface, at), [-0.5, 0.5, -0.25, 0.5], atol=0.01)


def test_an_open_part_that_points_inwards_is_turned(tmp_path):
    ball = trimesh.creation.icosphere(subdivisions=5, radius=1.0)
    open_ball = trimesh.Trimesh(ball.vertices, ball.faces[ball.triangles_center[:, 2] < 0.6], process=False)
    assert not any("inwards" in note for note in read_surface(_saved(tmp_path, open_ball)).notes)
    open_ball.invert()
    surface = read_surface(_saved(tmp_path, open_ball))
    assert any("turned inside out" in note for note in surface.notes)
    assert _signs(surface, [[0, 0, 0]])[0] < 0
    assert (surface.points * surface.normals).sum(1).min() > 0


def test_points_whose_normals_point_inwards_are_turned(tmp_path, sphere):
    np.savetxt(tmp_path / "in.xyz", np.concatenate([sphere.vertices, -sphere.vertex_normals], axis=1))
    surface = read_surface(tmp_path / "in.xyz")
    assert any("normals pointed inwards" in note for note in surface.notes)
    assert (surface.points * surface.normals).sum(1).min() > 0
    assert _signs(surface, [[0, 0, 0]])[0] < 0


def test_a_hollow_in_what_is_turned_or_open_stays_one(tmp_path):
    surface = _spheres(tmp_path, (0, 2.0, True), (0, 1.0, False))
    at = [[0, 0, 0], [1.5, 0, 0], [2.5, 0, 0]]
    assert np.allclose(_signs(surface, at), [1, -0.5, 0.5], atol=0.01)
    outer, inner = (trimesh.creation.icosphere(subdivisions=4, radius=r) for r in (2.0, 1.0))
    inner.invert()
    bottle = trimesh.Trimesh(outer.vertices, outer.faces[outer.triangles_center[:, 2] < 1.8], process=False)
    surface = read_surface(_saved(tmp_path, trimesh.util.concatenate([bottle, inner])))
    assert np.allclose(_signs(surface, at), [1, -0.5, 0.5], atol=0.01)


def test_many_parts_are_all_turned(tmp_path):
    balls = []
    for place in np.ndindex(10, 10, 6):
        balls.append(trimesh.creation.icosphere(subdivisions=1, radius=0.3))
        balls[-1].apply_translation(place)
        if sum(place) % 3:
            balls[-1].invert()
    surface = read_surface(_saved(tmp_path, trimesh.util.concatenate(balls)))
    at = [[0, 0, 0], [1, 0, 0], [9, 9, 5], [3, 7, 2], [4, 4, 4], [4.5, 4.5, 4.5]]
    assert (np.sign(_signs(surface, at)) == [-1, -1, -1, -1, -1, 1]).all()
    assert any("400 of 600 parts turned" in note for note in surface.notes)


def test_shapes_that_mirror_each_other_and_thin_ones_have_an_inside(tmp_path):
    ball = trimesh.creation.icosphere(subdivisions=4)
    bowl = trimesh.Trimesh(ball.vertices, ball.faces[ball.triangles_center[:, 2] < 0.2], process=False)
    other = bowl.copy()
    other.apply_translation([3, 0, 0])
    other.invert()
    assert read_surface(_saved(tmp_path, trimesh.util.concatenate([bowl, other])))
    assert read_surface(_saved(tmp_path, trimesh.creation.box([1, 1e-4, 1e-4])))


@pytest.mark.parametrize("corners", [[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]])
def test_what_encloses_nothing_is_refused(tmp_path, corners):
    faces = [[0, i, i + 1] for i in range(1, len(corners) - 1)]
    with pytest.raises(InputError, match="has no inside"):
        read_surface(_saved(tmp_path, trimesh.Trimesh(corners, faces, process=False), "flat.obj"))


def test_points_with_colours_and_normals(tmp_path):
    points = _points(500, True)
    np.savetxt(tmp_path / "a.xyz", points)
    np.savetxt(tmp_path / "b.xyz", np.hstack([points[:, :3], np.full((500, 3), 200), points[:, 3:]]))
    plain, coloured = (read_surface(tmp_path / name) for name in ("a.xyz", "b.xyz"))
    assert np.array_equal(plain.normals, coloured.normals)


def test_parts_that_lie_within_others_are_told_of(tmp_path):
    ball = trimesh.creation.icosphere(subdivisions=4)
    other = ball.copy().apply_translation((1.0, 0.1, 0))
    for name, parts, is_said in (("one", [ball], False), ("two", [ball, other], True)):
        trimesh.util.concatenate(parts).export(tmp_path / f"{name}.ply")
        notes = [note for note in read_surface(tmp_path / f"{name}.ply").notes if "unite the parts" in note]
        assert bool(notes) is is_said
    # A cap of height h is h / 2 of a sphere's area; here the other sphere's middle is 1.005 away.
    share = float(notes[0].split("about ")[1].split(" %")[0])
    assert share == pytest.approx(100 * (1 - 1.005 / 2) / 2, abs=2)
