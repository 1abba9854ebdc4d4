"""Reading a shape, checked and repaired before use: a mesh, or points with normals."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch

from aire_nerfstudio.data.orientation import enclosed_volume, signed_volume, turn_outwards
from aire_nerfstudio.errors import InputError, first_line
from aire_nerfstudio.files import OF_A_RUN, check_file

EXTENSIONS = (".ply", ".obj", ".stl", ".off", ".xyz")
FEWEST_POINTS = 100
# Points at which it is looked whether parts of a mesh lie within others, and the share of them that is told.
LOOKED_AT, WORTH_A_WORD = 2000, 0.01
# Reading, repairing and the tree for distances, with room to spare; a byte of a file is worth at most that many.
BYTES_PER_FACE_IN_USE = 1000
# Half the longest side, after normalisation: the cube [-1, 1]^3 is where distances are learned, and needs a rim.
HALF_SIDE = 0.9
# Below so many vertices they are too few to stand for the surface, and points are drawn from its faces.
FEW_VERTICES = 10_000
DRAWN_POINTS = 100_000
POISSON_DEPTH = 8
# Of the normalised shape: what encloses less has no inside.
LEAST_VOLUME = 1e-12
# Bytes of a PLY file among which its header ends.
LONGEST_HEADER = 1 << 16


@dataclass(frozen=True)
class Surface:
    """A shape in the cube [-1, 1]^3.

    Attributes:
        vertices: ``[V, 3]`` float64.
        faces: ``[F, 3]`` int64, wound so that normals point outwards.
        points: ``[N, 3]`` float64 on the surface: what is trained on.
        normals: ``[N, 3]`` float64, unit, outwards, at the points.
        centre: of the file's shape, in the file's units, ``[3]``.
        scale: units of the file for one of ours; ``file = centre + scale * ours``.
        notes: what was changed, one line each.
    """

    vertices: np.ndarray
    faces: np.ndarray
    points: np.ndarray
    normals: np.ndarray
    centre: np.ndarray
    scale: float
    notes: tuple[str, ...] = ()


def read_surface(path: Path, seed: int = 0) -> Surface:
    """Read PLY, OBJ, STL, OFF (meshes, PLY also points with normals) or XYZ (points with normals).

    Duplicate and flat faces, loose vertices and small holes are repaired, parts are turned outwards, several
    parts stay. Points with normals get a mesh by screened Poisson reconstruction, from which distances are taken;
    they themselves stay what is trained on.

    Args:
        path: the file.
        seed: of the points drawn from a mesh of few vertices.

    Raises:
        InputError: no such file, another format, nothing in it, coordinates that are not finite, no extent, no volume,
            no normals on points without faces, too few points, or too much for the memory that is free.
    """
    vertices, faces, normals = _read(path)
    if len(vertices) == 0:
        raise InputError(f"{path} holds no vertices; give a mesh, or points with normals")
    if vertices.shape[1:] != (3,) or faces.shape[1:] != (3,):
        found = f"vertices of {vertices.shape[-1]} coordinates and faces of {faces.shape[-1]} corners"
        raise InputError(f"{path} has {found}; both must have 3: repair or triangulate it")
    bad = ~np.isfinite(vertices).all(1)
    if bad.any():
        raise InputError(
            f"{path} has {int(bad.sum())} vertices that are not finite, the first is number {bad.argmax()}"
        )
    extent = np.ptp(vertices, axis=0)
    if extent.max() == 0 or not np.isfinite(extent).all():
        raise InputError(f"{path} has no extent: all {len(vertices)} vertices are one point")
    needed, free = BYTES_PER_FACE_IN_USE * len(faces), psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"{path} has {len(faces):,} faces; that takes about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB "
            "are free; simplify it"
        )
    if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
        raise InputError(f"{path} has a face with vertex {faces.max()}; it has {len(vertices)} vertices; repair it")
    # What is small or far away in the file's units is not to anybody below, who have tolerances of their own.
    used = vertices[np.unique(faces)] if len(faces) else vertices
    middle, size = (used.min(0) + used.max(0)) / 2, float(np.ptp(used, axis=0).max())
    if size == 0:
        raise InputError(f"{path} has no extent: all vertices of its faces are one point")
    unit = (vertices - middle) / size
    surface = _from_points(path, unit, normals) if len(faces) == 0 else _from_mesh(path, unit, faces, seed)
    surface = _normalised(surface)
    if enclosed_volume(surface.vertices, surface.faces) < LEAST_VOLUME:
        raise InputError(f"{path} has no inside: its faces enclose no volume; give a closed surface, or one with holes")
    return replace(surface, centre=middle + size * surface.centre, scale=size * surface.scale)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Vertices, faces (none of points) and, of points, normals where the file has them."""
    import trimesh

    suffix = path.suffix.lower()
    check_file(path, "the shape", f"give a mesh with --data{OF_A_RUN}")
    if suffix not in EXTENSIONS:
        raise InputError(f"{path} is not one of {', '.join(EXTENSIONS)}; convert the shape")
    if suffix == ".ply":
        _check_ply_header(path)
    try:
        if suffix == ".xyz":
            table = np.loadtxt(path, dtype=np.float64, ndmin=2)
            # x y z normal, or x y z colour normal.
            normals = table[:, 6:9] if table.shape[1] >= 9 else table[:, 3:6] if table.shape[1] >= 6 else None
            return table[:, :3], np.empty((0, 3), np.int64), normals
        with path.open("rb") as file:  # not by its name, by which it could ask for textures and other files
            loaded = trimesh.load(file, file_type=suffix[1:], process=False)
    except Exception as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}: {first_line(error)}); replace it") from error
    if isinstance(loaded, trimesh.Scene):
        meshes = [g for g in loaded.dump() if isinstance(g, trimesh.Trimesh)]
        if not meshes:
            raise InputError(f"{path} holds no mesh; give one, or points with normals")
        loaded = trimesh.util.concatenate(meshes)
    vertices = np.asarray(getattr(loaded, "vertices", np.empty((0, 3))), dtype=np.float64)
    faces = np.asarray(getattr(loaded, "faces", np.empty((0, 3))), dtype=np.int64)
    normals = None
    if len(faces) == 0:
        # What trimesh drops: normals of points, a dictionary of a text file, a structured array of a binary one.
        raw = loaded.metadata.get("_ply_raw", {}).get("vertex", {}).get("data", {}) if len(vertices) else {}
        if {"nx", "ny", "nz"} <= set(raw if isinstance(raw, dict) else raw.dtype.names or ()):
            normals = np.stack([raw[name] for name in ("nx", "ny", "nz")], axis=-1).reshape(-1, 3).astype(np.float64)
    return vertices, faces, normals


def _check_ply_header(path: Path) -> None:
    """Refuse a header that announces more elements than the file has bytes, before anyone makes room for them."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header, end, _ = file.read(LONGEST_HEADER).partition(b"end_header")
    if not end:
        raise InputError(f"{path} has no end_header in its first {LONGEST_HEADER:,} bytes; replace it")
    for name, count in re.findall(rb"^\s*element\s+(\S+)\s+(\S+)", header, re.MULTILINE):
        if not count.isdigit() or int(count) > size:
            announced = (count[:24] + b" " + name[:24]).decode("ascii", "replace")
            raise InputError(f"{path} announces {announced} elements and has {size:,} bytes; replace it")


def _from_points(path: Path, points: np.ndarray, normals: np.ndarray | None) -> Surface:
    import pymeshlab

    if normals is None:
        raise InputError(
            f"{path} holds {len(points)} points without faces or normals; distances need an inside: give normals (nx "
            "ny nz), or a mesh"
        )
    if len(normals) and not (normals < 0).any():
        raise InputError(
            f"{path}: none of its normals points down, left or back, so that they are colours, or the surface is open; "
            "give x y z nx ny nz"
        )
    length = np.linalg.norm(normals, axis=1)
    usable = np.isfinite(normals).all(1) & (length > 0)
    notes = [] if usable.all() else [f"{int((~usable).sum())} points without a usable normal left out"]
    points, normals = points[usable], normals[usable] / length[usable, None]
    if len(points) < FEWEST_POINTS:
        raise InputError(f"{path} holds {len(points)} points with normals; at least {FEWEST_POINTS} are needed")
    meshes = pymeshlab.MeshSet(verbose=False)
    meshes.add_mesh(pymeshlab.Mesh(vertex_matrix=points, v_normals_matrix=normals))
    try:
        # Its own choice is more threads than a small machine has cores, which wait for each other at the full rate.
        threads = torch.get_num_threads()
        meshes.generate_surface_reconstruction_screened_poisson(depth=POISSON_DEPTH, threads=threads)
    except pymeshlab.PyMeshLabException as error:
        raise InputError(f"{path}: no surface goes through its points ({first_line(error)}); give a mesh") from error
    mesh = meshes.current_mesh()
    vertices, faces = mesh.vertex_matrix(), mesh.face_matrix().astype(np.int64)
    if len(faces) == 0:
        raise InputError(f"{path}: no surface goes through its {len(points)} points; give more points, or a mesh")
    if signed_volume(vertices, faces) < 0:
        faces, normals = faces[:, ::-1].copy(), -normals
        notes.append("turned inside out: its normals pointed inwards")
    notes.append(f"points without faces: a mesh of {len(faces):,} faces by Poisson reconstruction gives the distances")
    return Surface(vertices, faces, points, normals, np.zeros(3), 1.0, tuple(notes))


def _from_mesh(path: Path, vertices: np.ndarray, faces: np.ndarray, seed: int) -> Surface:
    import trimesh

    vertices, faces, notes = _repair(vertices, faces)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    if len(faces) == 0 or mesh.area == 0:
        raise InputError(f"{path} has no area: all of its faces are flat; give a surface")
    faces, turned = turn_outwards(vertices, faces)
    notes += turned
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    if len(vertices) >= FEW_VERTICES:
        points, normals = vertices, np.asarray(mesh.vertex_normals)
    else:
        points, on_face = trimesh.sample.sample_surface(mesh, DRAWN_POINTS, seed=seed)
        points, normals = np.asarray(points), np.asarray(mesh.face_normals)[on_face]
        notes.append(f"{len(vertices)} vertices are few: {DRAWN_POINTS:,} points are drawn from its faces")
    usable = np.linalg.norm(normals, axis=1) > 0.5
    if not usable.all():
        notes.append(f"{int((~usable).sum()):,} points without a normal left out")
    if usable.sum() < FEWEST_POINTS:
        raise InputError(f"{path} has {int(usable.sum())} points with a normal; at least {FEWEST_POINTS} are needed")
    share = _share_inside(vertices, faces, points[usable], normals[usable])
    if share > WORTH_A_WORD:
        notes.append(
            f"about {100 * share:.0f} % of its points lie within other parts of it: walls that nobody sees are learned "
            "as well; unite the parts first (a boolean union)"
        )
    if not mesh.is_watertight:
        notes.append("has holes: what is inside is decided by the winding number")
    return Surface(vertices, faces, points[usable], normals[usable], np.zeros(3), 1.0, tuple(notes))


def _share_inside(vertices: np.ndarray, faces: np.ndarray, points: np.ndarray, normals: np.ndarray) -> float:
    """Which share of a surface's points has the inside of another part of it before it, by the winding number."""
    import igl

    some = slice(None, None, max(1, len(points) // LOOKED_AT))
    before = points[some] + 1e-3 * normals[some]
    winding = igl.fast_winding_number(vertices, faces, before)
    # Twice inside, or once: both are behind no wall that can be seen.
    return float((winding > 0.5).mean())


def _repair(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    import pymeshlab

    meshes = pymeshlab.MeshSet(verbose=False)
    meshes.add_mesh(pymeshlab.Mesh(vertex_matrix=vertices, face_matrix=faces.astype(np.int32)))
    notes = []

    def count() -> tuple[int, int]:
        mesh = meshes.current_mesh()
        return mesh.vertex_number(), mesh.face_number()

    try:
        for what, steps in (
            ("equal vertices merged", ("meshing_remove_duplicate_vertices",)),
            ("duplicate or flat faces removed", ("meshing_remove_duplicate_faces", "meshing_remove_null_faces")),
            ("faces on edges of more than two removed", ("meshing_repair_non_manifold_edges",)),
            ("loose vertices removed", ("meshing_remove_unreferenced_vertices",)),
        ):
            before = count()
            for step in steps:
                getattr(meshes, step)()
            after = count()
            changed = max(before[0] - after[0], before[1] - after[1])
            if changed:
                notes.append(f"{changed:,} {what}")
        if count()[1]:
            meshes.meshing_repair_non_manifold_vertices()
            before = count()
            meshes.meshing_close_holes(maxholesize=30)
            if count()[1] > before[1]:
                notes.append(f"holes of up to 30 edges closed with {count()[1] - before[1]:,} faces")
            meshes.meshing_re_orient_faces_coherently()
    except pymeshlab.PyMeshLabException as error:
        notes.append(f"repair stopped ({first_line(error)})")
    mesh = meshes.current_mesh()
    return mesh.vertex_matrix(), mesh.face_matrix().astype(np.int64).reshape(-1, 3), notes


def _normalised(surface: Surface) -> Surface:
    low, high = surface.points.min(0), surface.points.max(0)
    centre, scale = (low + high) / 2, float((high - low).max()) / (2 * HALF_SIDE)
    return replace(
        surface,
        vertices=(surface.vertices - centre) / scale,
        points=(surface.points - centre) / scale,
        centre=centre,
        scale=scale,
    )
