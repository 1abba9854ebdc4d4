"""The demo scene: the bunny that the pymeshlab wheel ships, ray-cast into a small data set in Blender's format."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image

from aire_nerfstudio.errors import InputError, first_line

DEMO_NAME = "demo-bunny-2"
IMAGE_SIZE = 128
SAMPLES_PER_SIDE = 3
CAMERA_DISTANCE = 4.0
FIELD_OF_VIEW = math.radians(38.0)
SPLITS = {"train": 36, "val": 2, "test": 12}
LIGHT = np.array([0.45, -0.35, 0.82]) / np.linalg.norm([0.45, -0.35, 0.82])


def demo_path() -> Path:
    """Where the demo scene is cached: in ``$AIRE_CACHE``, ``$XDG_CACHE_HOME/aire-nerfstudio`` or ``~/.cache/...``."""
    base = os.environ.get("AIRE_CACHE")
    if base:
        return Path(base) / DEMO_NAME
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aire-nerfstudio" / DEMO_NAME


def ensure_demo_scene(path: Path | None = None) -> Path:
    """Make the demo scene unless it is there; two processes doing so at once do no harm.

    Args:
        path: target folder; None: :func:`demo_path`.

    Returns:
        The folder, holding ``transforms_{train,val,test}.json`` and RGBA images of 128 x 128.

    Raises:
        InputError: pymeshlab's bunny is not installed, or the folder cannot be written.
    """
    path = path or demo_path()
    if (path / "transforms_test.json").is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise InputError(
            f"the demo scene cannot be made in {path.parent} ({first_line(error)}); let AIRE_CACHE name a folder that "
            "can be written to, or give --data"
        ) from error
    CONSOLE.print(f"Making the demo scene in {path} (once, a few seconds)", markup=False)
    try:
        _write_scene(unfinished)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(path)
        except OSError:
            if not (path / "transforms_test.json").is_file():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return path


def bunny_path() -> Path:
    """The bunny in the installed pymeshlab wheel (without importing it, which needs OpenGL libraries).

    Raises:
        InputError: it is not there.
    """
    spec = importlib.util.find_spec("pymeshlab")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        candidate = Path(folder) / "tests" / "sample_meshes" / "bunny.obj"
        if candidate.is_file():
            return candidate
    raise InputError(
        "the demo scene needs the bunny of the pymeshlab wheel; run `pip install pymeshlab`, or give --data"
    )


def _write_scene(folder: Path) -> None:
    import trimesh

    mesh = trimesh.load_mesh(bunny_path(), process=True)
    # The file has y up, a scene of Blender's z.
    vertices = np.asarray(mesh.vertices)[:, [0, 2, 1]] * np.array([1.0, -1.0, 1.0])
    vertices -= (vertices.max(0) + vertices.min(0)) / 2
    vertices /= np.abs(vertices).max()
    mesh = trimesh.Trimesh(vertices, mesh.faces, process=False)
    for split, count in SPLITS.items():
        (folder / split).mkdir()
        frames = []
        for index in range(count):
            pose = _camera_pose(split, index, count)
            Image.fromarray(_render(mesh, pose)).save(folder / split / f"r_{index}.png")
            frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": pose.tolist()})
        # Written last of each split: transforms_test.json marks a scene that is whole.
        text = json.dumps({"camera_angle_x": FIELD_OF_VIEW, "frames": frames}, indent=1)
        (folder / f"transforms_{split}.json").write_text(text)


def _camera_pose(split: str, index: int, count: int) -> np.ndarray:
    """Camera to world, ``[4, 4]``, OpenGL axes: training on a spiral over the sphere, the others on a turntable."""
    if split == "train":
        height = -0.25 + 1.15 * (index + 0.5) / count  # sine of the elevation
        azimuth = index * math.pi * (3 - math.sqrt(5))
    else:
        height = math.sin(math.radians(22.0))
        azimuth = 2 * math.pi * index / count + 0.1
    flat = math.sqrt(1 - height**2)
    backward = np.array([flat * math.cos(azimuth), flat * math.sin(azimuth), height])
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2] = right, np.cross(backward, right), backward
    pose[:3, 3] = CAMERA_DISTANCE * backward
    return pose


def _render(mesh, pose: np.ndarray) -> np.ndarray:
    """Ray-cast one view with coverage as alpha, uint8 ``[S, S, 4]``, straight (not premultiplied) colours."""
    fine = IMAGE_SIZE * SAMPLES_PER_SIDE
    focal = 0.5 * fine / math.tan(0.5 * FIELD_OF_VIEW)
    pixel = np.arange(fine) + 0.5 - 0.5 * fine
    x, y = np.meshgrid(pixel / focal, -pixel / focal)
    directions = np.stack([x, y, -np.ones_like(x)], -1).reshape(-1, 3) @ pose[:3, :3].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    origins = np.broadcast_to(pose[:3, 3], directions.shape)
    points, rays, triangles = mesh.ray.intersects_location(origins, directions, multiple_hits=False)
    # Smooth normals: those of the corners, weighted by where the ray hit.
    import trimesh

    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[triangles], points)
    normals = (mesh.vertex_normals[mesh.faces[triangles]] * weights[..., None]).sum(1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-12

    image = np.zeros((fine * fine, 4))
    image[rays, :3] = _shade(points, normals)
    image[rays, 3] = 1.0
    s = SAMPLES_PER_SIDE
    image = image.reshape(IMAGE_SIZE, s, IMAGE_SIZE, s, 4).mean((1, 3))
    image[..., :3] /= np.maximum(image[..., 3:], 1e-9)
    return (image * 255 + 0.5).astype(np.uint8)


def _shade(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Colours in [0, 1], ``[n, 3]``: hue from the normal, a solid checker, one light from above and a soft fill."""
    hue = 0.5 + 0.4 * normals
    checker = (np.floor(points / 0.25).astype(int).sum(-1) % 2)[:, None]
    albedo = hue * np.where(checker == 1, 1.0, 0.72)
    diffuse = np.clip(normals @ LIGHT, 0, 1)[:, None]
    return np.clip(albedo * (0.55 + 0.6 * diffuse), 0, 1)
