"""What a pinhole camera sees of a mesh: where its rays meet it, and in which colours."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch

from aire_nerfstudio.data.shading import shade

CAMERA_DISTANCE = 3.6
FIELD_OF_VIEW = math.radians(36.0)
ELEVATION = math.radians(15.0)


def ring_poses(count: int, up: Literal["y", "z"]) -> np.ndarray:
    """Cameras that look at the origin from a ring slightly above it: camera to world, ``[count, 3, 4]`` (OpenGL)."""
    poses = []
    for index in range(count):
        azimuth = 2 * math.pi * index / count + 0.4
        flat, height = math.cos(ELEVATION), math.sin(ELEVATION)
        back = np.array([flat * math.sin(azimuth), height, flat * math.cos(azimuth)])
        right = np.array([math.cos(azimuth), 0.0, -math.sin(azimuth)])
        pose = np.stack([right, np.cross(back, right), back, CAMERA_DISTANCE * back], axis=1)
        if up == "z":
            pose = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]) @ pose
        poses.append(pose)
    return np.stack(poses)


def focal_length(size: int) -> float:
    """In pixels, of a view ``size`` pixels a side."""
    return 0.5 * size / math.tan(0.5 * FIELD_OF_VIEW)


def pinhole_rays(pose: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rays through the pixels' centres of a camera ``pose [3, 4]``: origins and unit directions ``[size^2, 3]``."""
    y, x = np.mgrid[:size, :size] + 0.5
    focal = focal_length(size)
    local = np.stack([(x - size / 2) / focal, -(y - size / 2) / focal, -np.ones_like(x)], -1).reshape(-1, 3)
    directions = local @ pose[:, :3].T
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.broadcast_to(pose[:, 3], directions.shape).copy(), directions


def view_mesh(
    vertices: np.ndarray, faces: np.ndarray, origins: np.ndarray, directions: np.ndarray,
    colours: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Ray-cast a mesh over white.

    Args:
        vertices: ``[V, 3]``.
        faces: ``[F, 3]``.
        origins: ``[N, 3]``.
        directions: unit, ``[N, 3]``.
        colours: of the vertices in [0, 1], ``[V, 3]``; None: by the normal.

    Returns:
        ``[N, 3]`` float64 in [0, 1].
    """
    import trimesh

    mesh = trimesh.Trimesh(vertices, faces, process=False)
    image = np.ones((len(origins), 3))
    points, met, hit = mesh.ray.intersects_location(origins, directions, multiple_hits=False)
    if len(points) == 0:
        return image
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[hit], points)[..., None]
    corners = mesh.faces[hit]
    smooth = (np.asarray(mesh.vertex_normals)[corners] * weights).sum(1)
    normals = torch.nn.functional.normalize(torch.from_numpy(smooth), dim=-1)
    seen = torch.from_numpy(directions[met])
    if colours is None:
        image[met] = shade(normals, seen).numpy()
    else:
        light = 0.6 + 0.4 * -(normals * seen).sum(-1, keepdim=True).clamp_max(0).numpy()
        image[met] = (colours[corners] * weights).sum(1) * light
    return image
