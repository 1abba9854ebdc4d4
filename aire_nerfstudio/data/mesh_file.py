"""Writing a mesh."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np

from aire_nerfstudio.files import write_whole

# Of a shape's size: coordinates less exact than so are warned of.
LEAST_EXACT = 1e-5


def write_mesh(vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray, path: Path) -> None:
    """Write a mesh with normals at its vertices (STL: of its faces); the file appears only when whole.

    Only OBJ holds more than float32's digits: where they are too few, far from the origin, a warning says how exact
    the others are.

    Raises:
        InputError: it cannot be written.
    """
    import trimesh

    mesh = trimesh.Trimesh(vertices, faces, vertex_normals=normals, process=False)
    kind = path.suffix.lower()[1:]
    options: dict[str, Any] = {}
    if kind == "ply":
        options["vertex_normal"] = True
    elif kind in ("obj", "glb"):
        options["include_normals"] = True

    largest = float(np.abs(vertices).max(initial=0))
    error, size = largest * 2.0**-24, float(np.ptp(vertices, axis=0).max()) if len(vertices) else 0.0
    if kind == "obj" and size > 0:
        # So many decimals that a coordinate is exact to 1e-9 of the shape's size; trimesh's own are 8 at any size.
        options["digits"] = max(8, math.ceil(9 - math.log10(size)))
    if kind != "obj" and error > LEAST_EXACT * size:
        warnings.warn(
            f"{path}: coordinates of up to {largest:.3g} are exact to {error:.1g} in {kind.upper()}, which is "
            f"{error / size:.1g} of the shape's size; OBJ holds all digits",
            stacklevel=2,
        )

    def write(name: str) -> None:
        exported = cast(Any, mesh).export(file_type=kind, **options)
        Path(name).write_bytes(exported if isinstance(exported, bytes) else exported.encode())

    write_whole(path, write)
