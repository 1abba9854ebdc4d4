"""Writing a mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np

from aire_nerfstudio.files import write_whole


def write_mesh(vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray, path: Path) -> None:
    """Write a mesh with normals at its vertices (STL: of its faces); the file appears only when whole.

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

    def write(name: str) -> None:
        exported = cast(Any, mesh).export(file_type=kind, **options)
        Path(name).write_bytes(exported if isinstance(exported, bytes) else exported.encode())

    write_whole(path, write)
