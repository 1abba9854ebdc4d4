"""What figures of surfaces need from a fit: its mesh with the error at each vertex, and its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from aire_nerfstudio.data.distances import SignedDistance
from aire_nerfstudio.data.surface import Surface
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.reproduce.arrays import save_arrays

# The paper's colours end here: distances from the true surface, in its unit.
LARGEST_ERROR = 0.01


def save_surface(path: Path, surface: Surface, vertices: np.ndarray, faces: np.ndarray, network: SineMLP) -> None:
    """Write the mesh ``(vertices [V, 3], faces [F, 3])``, its errors, the true mesh and the weights as ``.npz``."""
    error = np.abs(SignedDistance(surface.vertices, surface.faces)(vertices)) if len(faces) else np.empty(0)
    arrays = {
        "vertices": vertices.astype(np.float32), "faces": faces.astype(np.int32), "error": error.astype(np.float32),
        "true_vertices": surface.vertices.astype(np.float32), "true_faces": surface.faces.astype(np.int32),
    }  # fmt: skip
    save_arrays(path, {**arrays, **arrays_of(network)})


def arrays_of(network: SineMLP) -> dict[str, np.ndarray]:
    """A network's weights, as :func:`weights_of` takes them."""
    return {f"network.{name}": value.detach().cpu().numpy() for name, value in network.state_dict().items()}


def weights_of(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The state dict of the network."""
    return {
        name.removeprefix("network."): torch.from_numpy(value.copy())
        for name, value in arrays.items()
        if name.startswith("network.")
    }


def error_colours(error: np.ndarray) -> np.ndarray:
    """Distances ``[V]`` as colours ``[V, 3]`` in [0, 1]: dark blue at 0, dark red from 0.01 on, as in the paper."""
    from matplotlib import colormaps

    return np.asarray(colormaps["jet"](np.clip(error / LARGEST_ERROR, 0, 1)))[:, :3]
