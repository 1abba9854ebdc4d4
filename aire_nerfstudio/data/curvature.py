"""How strongly a mesh bends at the points that are trained on, and drawing more of them where it does."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from aire_nerfstudio.data.epochs import seed_for
from aire_nerfstudio.data.surface import Surface

# Discrete curvature is large without meaning at a few vertices: above this percentile all count the same.
HIGHEST_PERCENTILE = 95.0


def point_curvatures(surface: Surface) -> np.ndarray:
    """Sums ``|k1| + |k2|`` of the principal curvatures at the surface's points, ``[N]`` float64, per unit of the cube.

    Discrete curvature of the closest vertex (pymeshlab), cut off at the 95th percentile; never negative.
    """
    import pymeshlab
    from scipy.spatial import cKDTree

    meshes = pymeshlab.MeshSet(verbose=False)
    meshes.add_mesh(pymeshlab.Mesh(vertex_matrix=surface.vertices, face_matrix=surface.faces.astype(np.int32)))
    meshes.compute_scalar_by_discrete_curvature_per_vertex(curvaturetype="ABS Curvature")
    values = np.nan_to_num(np.abs(meshes.current_mesh().vertex_scalar_array()), nan=0.0, posinf=0.0)
    values = np.minimum(values, np.percentile(values, HIGHEST_PERCENTILE))
    _, closest = cKDTree(surface.vertices).query(surface.points)
    return values[closest]


class WeightedOrder:
    """Indices drawn with replacement, with probabilities proportional to weights; a function of the step.

    Args:
        weights: not negative, ``[N]``; where all are 0 every index is as likely.
        count: indices a step, 0 or more.
        seed: of the order.
        device: where they are drawn.
    """

    def __init__(self, weights: np.ndarray, count: int, seed: int, device: torch.device | str) -> None:
        total = np.cumsum(weights if weights.sum() > 0 else np.ones_like(weights), dtype=np.float64)
        self._edges = torch.from_numpy(total / total[-1]).to(device)
        self._count, self._seed = count, seed
        self._generator = torch.Generator(device)

    def at(self, step: int) -> Tensor:
        """int64 ``[count]``."""
        self._generator.manual_seed(seed_for(self._seed, step))
        where = torch.rand(self._count, generator=self._generator, device=self._edges.device, dtype=torch.float64)
        return torch.searchsorted(self._edges, where, right=True).clamp_max(len(self._edges) - 1)
