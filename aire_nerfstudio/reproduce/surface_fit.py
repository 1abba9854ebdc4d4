"""One fit of one surface, without nerfstudio around it: what the tables of distances are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.base import Probe
from aire_nerfstudio.adaptation.budget import count_parameters
from aire_nerfstudio.adaptation.variants import LATTICE_LIMITS, Variant, make_strategy, starting_widths
from aire_nerfstudio.analysis.iso_surface import extract_mesh, steepness_of
from aire_nerfstudio.analysis.surface_metrics import compare_surfaces
from aire_nerfstudio.data.surface import HALF_SIDE, Surface, read_surface
from aire_nerfstudio.data.surface_samples import SurfaceSamples
from aire_nerfstudio.fields.differential import value_and_gradient
from aire_nerfstudio.fields.sine_layers import Activation
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.losses import SurfaceWeights, surface_loss
from aire_nerfstudio.ops.host_memory import keep_freed_memory
from aire_nerfstudio.reproduce.averaged import Averaged
from aire_nerfstudio.reproduce.fit import Fit, Progress, settings_key
from aire_nerfstudio.reproduce.surface_record import save_surface
from aire_nerfstudio.reproduce.training import train

if TYPE_CHECKING:
    from aire_nerfstudio.reproduce.store import Store

PROBE_POINTS = 4096
SCORED_POINTS = 50_000
CHUNK = 1 << 15
# Our lengths times this are the paper's, whose shapes reach from -1 to 1.
IN_PAPERS_UNIT = 1 / HALF_SIDE


@dataclass(frozen=True)
class SurfaceFit:
    """Everything that decides the outcome of a fit on a given machine."""

    shape: str
    """Name of the file, without its folder."""
    activation: Activation = "siren"
    """Sine variant; FINER with its exact derivative."""
    widths: tuple[int, ...] = (256, 256, 256)
    """Widths of the large network."""
    epochs: float = 1000.0
    """Passes over the surface's points, ``points / on_surface`` steps each (the paper's count)."""
    on_surface: int = 10_000
    """Points of the surface a step."""
    off_surface: int = 10_000
    """Points of the cube a step."""
    pool: int = 1_000_000
    """Points of the cube whose distances are computed beforehand."""
    learning_rate: float = 1e-4
    """Adam's, at the beginning."""
    final_ratio: float = 1.0
    """Learning rate at the end over that at the beginning."""
    omega: float = 60.0
    """w0 of all layers."""
    seed: int = 0
    """Of initialisation, samples and order."""
    variant: Variant = "aire"
    """Who decides about the network's size."""
    adaptation: AireConfig = field(default_factory=AireConfig)
    """AIRe's schedule, from which the other variants take their final size."""
    resolution: int = 512
    """Grid points a side of the mesh that is scored."""

    @property
    def source(self) -> str:
        """The shape."""
        return self.shape

    @property
    def label(self) -> str:
        """Shape, variant, activation and seed."""
        return f"{self.shape} {self.variant} {self.activation} seed {self.seed}"

    def key(self) -> str:
        """A name that is the same for the same settings and no others."""
        # 2: all batches are full. 3: an average of the weights is scored as well.
        return settings_key(self, "surface 3")

    def cost(self) -> float:
        """Epochs and weights: how many points a shape has is not known without reading it."""
        return self.epochs * count_parameters(3, self.widths, 1)

    def needs(self) -> tuple[Fit, ...]:
        """Nothing."""
        return ()

    def check(self, folder: Path) -> None:
        """Read the shape."""
        read_surface(folder / self.shape)

    def run(
        self, folder: Path, device: str, store: Store, progress: Progress | None, is_recorded: bool
    ) -> dict[str, Any]:
        """Train; see :func:`fit_surface` for the figures."""
        if device == "cpu":
            keep_freed_memory()
        surface = read_surface(folder / self.shape)
        done = fit_surface(self, surface, device, progress, store.cuda_graph)
        if is_recorded:
            save_surface(store.record_path(self), surface, done.vertices, done.faces, done.network)
        return done.figures


@dataclass
class FittedSurface:
    """A finished fit: its figures as JSON, the network, and its surface in the cube."""

    figures: dict[str, Any]
    network: SineMLP
    vertices: np.ndarray
    faces: np.ndarray


def fit_surface(
    fit: SurfaceFit, surface: Surface, device: str = "cpu", progress: Progress | None = None, cuda_graph: bool = False
) -> FittedSurface:
    """Train one network on one surface.

    Args:
        fit: what to do.
        surface: the shape that ``fit`` names.
        device: where to train.
        progress: called with (step, steps) now and then.
        cuda_graph: each step is a CUDA graph.

    Returns:
        ``figures``: those of :func:`~aire_nerfstudio.reproduce.training.train` (the curve is log10 of the loss), and
        ``chamfer_x100``, ``hausdorff``, ``normal_consistency`` of the extracted mesh (None where there is none),
        ``on_surface_error``, ``eikonal_error``, all of the last state, ``averaged_chamfer_x100`` and
        ``averaged_hausdorff`` of the weights' average, ``parameters``, ``reduction`` in percent, ``widths``.
    """
    samples = SurfaceSamples(surface, fit.on_surface, fit.off_surface, fit.pool, fit.seed, device)
    torch.manual_seed(fit.seed)
    limit = LATTICE_LIMITS[3]
    start = starting_widths(fit.variant, fit.adaptation, fit.widths, 3, limit)
    network = SineMLP(3, start, 1, fit.activation, fit.omega, fit.omega)
    network.to(device)
    strategy = make_strategy(fit.variant, fit.adaptation, fit.widths, 3, 1, limit, fit.omega)

    def probe(step: int) -> Probe:
        def outputs() -> list[Tensor]:
            batch = samples.batch(step)
            return network.layer_outputs(torch.cat([batch.on[:PROBE_POINTS], batch.off[:PROBE_POINTS]]))

        return Probe(outputs)

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        drawn = samples.batch(step)
        return torch.cat([drawn.on, drawn.off]), drawn.normals, drawn.distances

    total = surface_steps(fit.epochs, len(surface.points), fit.on_surface)
    averaged = Averaged(network, total)
    state, figures = train(
        network, strategy, samples.steps_per_epoch, total, fit.learning_rate, fit.final_ratio, batch, _terms,
        None, probe, lambda value: math.log10(value) if value > 0 else math.nan, device, averaged, progress, cuda_graph,
    )  # fmt: skip
    kept = strategy.parameters_kept(network.neuron_groups(), state)
    vertices, faces = surface_of(network, fit.resolution, device)
    average = score_surface(averaged.network, surface, *surface_of(averaged.network, fit.resolution, device), device)
    figures |= score_surface(network, surface, vertices, faces, device) | {
        "averaged_chamfer_x100": average["chamfer_x100"],
        "averaged_hausdorff": average["hausdorff"],
        "parameters": kept,
        "reduction": round(100 * (1 - kept / count_parameters(3, fit.widths, 1)), 2),
        "widths": network.widths,
    }
    return FittedSurface(figures, network, vertices, faces)


def _terms(network: SineMLP, points: Tensor, normals: Tensor, distances: Tensor) -> dict[str, Tensor]:
    """The loss of a batch: points on the surface first, with ``normals``, then off it, with ``distances``."""
    return surface_loss(*value_and_gradient(network, points), normals, distances, SurfaceWeights())


def surface_of(network: SineMLP, resolution: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Its mesh, ``(vertices [V, 3], faces [F, 3])``, found among ``resolution`` grid points a side."""
    steepness = steepness_of(lambda x: value_and_gradient(network, x)[1], device)
    return extract_mesh(lambda x: network(x).squeeze(-1), resolution, device, steepness=steepness)


def surface_steps(epochs: float, points: int, on_surface: int) -> int:
    """The paper's count: ``epochs * points / on_surface``, rounded, at least 20 (a schedule needs room)."""
    return max(20, round(epochs * points / on_surface))


@torch.no_grad()
def score_surface(
    network: SineMLP, surface: Surface, vertices: np.ndarray, faces: np.ndarray, device: str
) -> dict[str, float | None]:
    """Distances of a mesh ``(vertices [V, 3], faces [F, 3])`` to the surface, and the network's errors on it."""
    points = torch.from_numpy(surface.points[:: max(1, len(surface.points) // SCORED_POINTS)]).float().to(device)
    parts = [value_and_gradient(network, part) for part in points.split(CHUNK)]
    figures: dict[str, float | None] = {
        "on_surface_error": float(torch.cat([value for value, _ in parts]).abs().mean()),
        "eikonal_error": float((torch.cat([gradient for _, gradient in parts]).norm(dim=-1) - 1).abs().mean()),
        "chamfer_x100": None, "hausdorff": None, "normal_consistency": None,
    }  # fmt: skip
    if len(faces):
        found = compare_surfaces((vertices, faces), (surface.vertices, surface.faces))
        figures |= {
            "chamfer_x100": 100 * found.chamfer,
            "hausdorff": found.hausdorff,
            "normal_consistency": found.normal_consistency,
        }
    return figures
