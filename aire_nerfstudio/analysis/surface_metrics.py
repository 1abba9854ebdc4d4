"""How far two surfaces are apart: chamfer and Hausdorff distance, agreement of normals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from aire_nerfstudio.errors import InputError

SAMPLES = 100_000


class SurfaceDistance(NamedTuple):
    """Two surfaces compared, in their own units.

    Attributes:
        chamfer: mean distance from the one to the other plus the mean back.
        hausdorff: largest distance from a sample of either to the other.
        normal_consistency: mean ``|cos|`` between the normals of a sample and of the closest point, in [0, 1].
    """

    chamfer: float
    hausdorff: float
    normal_consistency: float


def compare_surfaces(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], samples: int = SAMPLES, seed: int = 0
) -> SurfaceDistance:
    """Compare two meshes, each ``(vertices [V, 3], faces [F, 3])``.

    Distances are from samples, uniform by area, to the other *surface* (libigl), not to samples of it: they have no
    floor that depends on the number of samples.

    Raises:
        InputError: a mesh without faces.
    """
    for name, (_, faces) in (("first", first), ("second", second)):
        if len(faces) == 0:
            raise InputError(f"the {name} surface has no faces; there is nothing to compare")
    one, other = _distances(first, second, samples, seed), _distances(second, first, samples, seed)
    return SurfaceDistance(
        chamfer=float(one[0].mean() + other[0].mean()),
        hausdorff=float(max(one[0].max(), other[0].max())),
        normal_consistency=float((one[1].mean() + other[1].mean()) / 2),
    )


def _distances(
    source: tuple[np.ndarray, np.ndarray], target: tuple[np.ndarray, np.ndarray], samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distances ``[N]`` of samples of one mesh to the other, and the ``|cos|`` of the normals there."""
    import igl
    import trimesh

    mesh, other = (trimesh.Trimesh(vertices, faces, process=False) for vertices, faces in (source, target))
    points, on_face = trimesh.sample.sample_surface(mesh, samples, seed=seed)
    tree = igl.AABB()
    vertices, faces = np.ascontiguousarray(target[0], np.float64), np.ascontiguousarray(target[1], np.int64)
    tree.init(vertices, faces)
    squared, closest, _ = tree.squared_distance(vertices, faces, np.ascontiguousarray(points, np.float64))
    here, there = np.asarray(mesh.face_normals)[on_face], np.asarray(other.face_normals)[closest]
    return np.sqrt(np.maximum(squared, 0)), np.abs((here * there).sum(1))
