"""Pictures of surfaces: each network's beside the truth, in the normals' colours and in those of the error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from aire_nerfstudio.data.mesh_view import pinhole_rays, ring_poses, view_mesh
from aire_nerfstudio.reproduce.flow_fit import MOMENTS
from aire_nerfstudio.reproduce.surface_fit import IN_PAPERS_UNIT
from aire_nerfstudio.reproduce.surface_record import LARGEST_ERROR, error_colours

# Pixels a side of a view.
SIZE = 360
# Networks beside each other.
PER_LINE = 5

Arrays = Mapping[str, np.ndarray]


def beside_the_truth(rows: Sequence[tuple[str, Arrays, float | None]], title: str) -> plt.Figure:
    """A view of the true surface and of each network's, and of its distance from the truth.

    Args:
        rows: label, what the fit recorded, and its chamfer distance times 100 (None: no surface).
        title: of the figure.
    """
    lines = math.ceil(len(rows) / PER_LINE)
    columns = math.ceil(len(rows) / lines) + 1
    figure, axes = plt.subplots(
        2 * lines, columns, figsize=(2.7 * columns, 5.8 * lines), layout="constrained", squeeze=False
    )
    figure.suptitle(title)
    for ax in axes.flat:
        ax.set_axis_off()
    truth = rows[0][1]
    _show(axes[0, 0], _view(truth["true_vertices"], truth["true_faces"]), "truth")
    for index, (label, arrays, chamfer) in enumerate(rows):
        line, column = divmod(index, columns - 1)
        vertices, faces = arrays["vertices"], arrays["faces"]
        score = "no surface" if chamfer is None else f"chamfer x 100: {IN_PAPERS_UNIT * chamfer:.3f}"
        _show(axes[2 * line, column + 1], _view(vertices, faces), f"{label}\n{score}")
        _show(
            axes[2 * line + 1, column + 1], _view(vertices, faces, error_colours(IN_PAPERS_UNIT * arrays["error"])), ""
        )
    scale = ScalarMappable(Normalize(0, LARGEST_ERROR), "jet")
    label = "distance from the truth (1: half of the longest side)"
    figure.colorbar(scale, ax=axes[1::2, 1:], shrink=0.6, label=label, extend="max")
    return figure


def moments(rows: Sequence[tuple[str, Arrays, Mapping[str, Any]]], title: str) -> plt.Figure:
    """The surfaces of flows, one row a network, one column a moment."""
    figure, axes = plt.subplots(
        len(rows),
        len(MOMENTS),
        figsize=(2.9 * len(MOMENTS), 3.1 * len(rows) + 0.4),
        layout="constrained",
        squeeze=False,
    )
    figure.suptitle(title)
    for line, (label, arrays, figures) in enumerate(rows):
        for column, moment in enumerate(MOMENTS):
            chamfer = figures.get(f"chamfer_{moment:g}")
            score = "" if chamfer is None else f"\nchamfer to large {IN_PAPERS_UNIT * chamfer:.4f}"
            view = _view(arrays[f"vertices_{moment:g}"], arrays[f"faces_{moment:g}"])
            _show(axes[line, column], view, f"{label}, t = {moment:g}{score}")
    return figure


def write_coloured(arrays: Arrays, path: Path) -> Path:
    """The recorded mesh as PLY with the error's colours at its vertices."""
    import trimesh

    colours = (255 * error_colours(IN_PAPERS_UNIT * arrays["error"])).astype(np.uint8)
    mesh = trimesh.Trimesh(arrays["vertices"], arrays["faces"], vertex_colors=colours, process=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(mesh.export(file_type="ply"))  # type: ignore[arg-type]
    return path


def _view(vertices: np.ndarray, faces: np.ndarray, colours: np.ndarray | None = None) -> np.ndarray:
    if len(faces) == 0:
        return np.ones((SIZE, SIZE, 3))
    origins, directions = pinhole_rays(ring_poses(1, "y")[0], SIZE)
    image = view_mesh(vertices.astype(np.float64), faces.astype(np.int64), origins, directions, colours)
    return image.reshape(SIZE, SIZE, 3)


def _show(axes: Any, image: np.ndarray, title: str) -> None:
    axes.set_axis_on()
    axes.imshow(image.clip(0, 1))
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)
