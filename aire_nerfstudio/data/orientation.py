"""Which way the faces of a mesh point: outwards, part by part, and inwards around what is hollow."""

from __future__ import annotations

import numpy as np

# Parts that are compared with each other, the largest; among so many fragments there are no cavities to be told.
MOST_PARTS = 200
# Vertices of a part that are looked for in another.
ASKED = 16
# An open part's faces point inwards where the volume before them is less than this share of its box's.
CLEARLY = -0.02


def turn_outwards(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Turn the closed parts of a mesh that point inwards and lie in no other part, or in a hollow of one.

    Args:
        vertices: ``[V, 3]``.
        faces: ``[F, 3]``, each part wound alike.

    Returns:
        Faces ``[F, 3]``, and what was done, or seen and left, one line each.
    """
    import trimesh

    mesh = trimesh.Trimesh(vertices, faces, process=False)
    labels = trimesh.graph.connected_component_labels(mesh.face_adjacency, node_count=len(faces))
    largest = np.argsort(-np.bincount(labels), kind="stable")[:MOST_PARTS]
    parts = [np.flatnonzero(labels == label) for label in largest]
    volumes = [signed_volume(vertices, faces[part]) for part in parts]
    closed = [trimesh.Trimesh(vertices, faces[part], process=False).is_watertight for part in parts]
    turned, inward = [], 0
    for index, (part, volume, is_closed) in enumerate(zip(parts, volumes, closed, strict=True)):
        if volume >= 0:
            continue
        if not is_closed:
            box = np.prod(np.ptp(vertices[np.unique(faces[part])], axis=0))
            inward += volume < CLEARLY * box
            continue
        others = [faces[o] for j, o in enumerate(parts) if j != index and closed[j]]
        depth = sum(_is_inside(vertices, faces[part], other) for other in others)
        if depth % 2 == 0:
            turned.append(part)
    if turned:
        faces = faces.copy()
        for part in turned:
            faces[part] = faces[part, ::-1]
    notes = []
    if turned and len(parts) == 1:
        notes.append("turned inside out: its faces pointed inwards")
    elif turned:
        notes.append(f"{len(turned)} of {len(parts)} parts turned inside out: their faces pointed inwards")
    if inward:
        notes.append(
            f"{inward} open parts seem to have faces that point inwards, as a room's do; if they should not, turn them"
        )
    return faces, notes


def signed_volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Volume before the faces of a mesh, positive where they point outwards, seen from its middle where it is open."""
    corners = vertices[faces] - vertices[np.unique(faces)].mean(0)
    return float(np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6)


def _is_inside(vertices: np.ndarray, faces: np.ndarray, other: np.ndarray) -> bool:
    """Whether most of a part lies within another."""
    import igl

    own, bounds = vertices[np.unique(faces)], vertices[np.unique(other)]
    if (own.min(0) < bounds.min(0)).any() or (own.max(0) > bounds.max(0)).any():
        return False
    asked = np.ascontiguousarray(own[:: -(-len(own) // ASKED)])
    winding = igl.fast_winding_number(np.ascontiguousarray(vertices), np.ascontiguousarray(other), asked)
    return bool((np.abs(winding) > 0.5).mean() > 0.5)
