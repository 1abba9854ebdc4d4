"""Which way the faces of a mesh point: outwards, part by part, and inwards around what is hollow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The largest parts, among which hollows are looked for.
MOST_CONTAINERS = 1000
# Vertices of a part that are looked for in another.
ASKED = 16
# An open part's faces point inwards where the volume before them is less than this share of its box's.
CLEARLY = -0.02


@dataclass
class _Part:
    """Faces that hang together.

    Attributes:
        faces: their numbers, ``[F]``.
        low: lower corner of their box, ``[3]``.
        high: upper corner, ``[3]``.
        is_inward: whether they clearly point inwards.
        asked: some of their vertices, ``[V, 3]``.
    """

    faces: np.ndarray
    low: np.ndarray
    high: np.ndarray
    is_inward: bool
    asked: np.ndarray


def turn_outwards(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Turn the parts of a mesh that point inwards and lie in no other part, or in a hollow of one.

    What lies in a part that is turned is turned with it: a hollow of it stays one.

    Args:
        vertices: ``[V, 3]``.
        faces: ``[F, 3]``, each part wound alike.

    Returns:
        Faces ``[F, 3]``, and what was done, a line or none.
    """
    parts = _parts(vertices, faces)
    is_inward = [part.is_inward for part in parts]
    if not any(is_inward):
        return faces, []
    inside = _nesting(vertices, faces, parts)
    depth = [len(containers) for containers in inside]
    turned = [False] * len(parts)
    for index in sorted(range(len(parts)), key=depth.__getitem__):
        if is_inward[index] and depth[index] % 2 == 0:
            for other in (index, *(o for o, containers in enumerate(inside) if index in containers)):
                is_inward[other], turned[other] = not is_inward[other], not turned[other]
    if not any(turned):
        return faces, []
    faces = faces.copy()
    for part, is_turned in zip(parts, turned, strict=True):
        if is_turned:
            faces[part.faces] = faces[part.faces, ::-1]
    if all(turned):
        return faces, ["turned inside out: its faces pointed inwards"]
    return faces, [f"{sum(turned)} of {len(parts)} parts turned inside out: their faces pointed inwards"]


def enclosed_volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Sum over a mesh's parts of the volume before or behind their faces."""
    return sum(abs(signed_volume(vertices, faces[part])) for part in _connected(vertices, faces))


def signed_volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Volume before the faces of a mesh, positive where they point outwards, seen from its middle where it is open."""
    corners = vertices[faces] - vertices[faces].reshape(-1, 3).mean(0)
    return float(np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6)


def _connected(vertices: np.ndarray, faces: np.ndarray) -> list[np.ndarray]:
    """Numbers of the faces that hang together, the most first."""
    import trimesh

    mesh = trimesh.Trimesh(vertices, faces, process=False)
    labels = trimesh.graph.connected_component_labels(mesh.face_adjacency, node_count=len(faces))
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted(groups, key=len, reverse=True)


def _parts(vertices: np.ndarray, faces: np.ndarray) -> list[_Part]:
    """The largest first."""
    parts = []
    for group in _connected(vertices, faces):
        own = faces[group]
        corners = vertices[own].reshape(-1, 3)
        low, high = corners.min(0), corners.max(0)
        volume = signed_volume(vertices, own)
        is_clear = volume < CLEARLY * float(np.prod(high - low))
        is_inward = is_clear or (volume < 0 and _is_closed(own))
        parts.append(_Part(group, low, high, is_inward, corners[:: -(-len(corners) // ASKED)]))
    return parts


def _is_closed(faces: np.ndarray) -> bool:
    """Whether each edge is one of two faces."""
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    return bool((np.unique(edges, axis=0, return_counts=True)[1] == 2).all())


def _nesting(vertices: np.ndarray, faces: np.ndarray, parts: list[_Part]) -> list[set[int]]:
    """Of each part those that it lies in, by the winding numbers of most of the vertices that are asked for."""
    import igl

    vertices = np.ascontiguousarray(vertices)
    lows, highs = np.stack([part.low for part in parts]), np.stack([part.high for part in parts])
    inside: list[set[int]] = [set() for _ in parts]
    for index, container in enumerate(parts[:MOST_CONTAINERS]):
        may = (lows >= container.low).all(1) & (highs <= container.high).all(1)
        may[index] = False
        candidates = np.flatnonzero(may)
        if not len(candidates):
            continue
        asked = [parts[other].asked for other in candidates]
        winding = igl.fast_winding_number(
            vertices, np.ascontiguousarray(faces[container.faces]), np.ascontiguousarray(np.concatenate(asked))
        )
        is_in = np.split(np.abs(winding) > 0.5, np.cumsum([len(points) for points in asked])[:-1])
        for other, of_part in zip(candidates, is_in, strict=True):
            if of_part.mean() > 0.5:
                inside[other].add(index)
    return inside
