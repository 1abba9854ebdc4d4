"""One mean curvature flow of one surface, without nerfstudio around it, compared with the large network's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.base import Probe
from aire_nerfstudio.adaptation.budget import count_parameters
from aire_nerfstudio.adaptation.variants import LATTICE_LIMITS, Variant, make_strategy
from aire_nerfstudio.analysis.iso_surface import extract_mesh, steepness_of
from aire_nerfstudio.analysis.surface_metrics import compare_surfaces
from aire_nerfstudio.data.space_time import SpaceTimePoints
from aire_nerfstudio.data.surface import read_surface
from aire_nerfstudio.data.surface_samples import SurfaceSamples
from aire_nerfstudio.fields.differential import value_and_gradient
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.losses import FlowWeights, flow_loss
from aire_nerfstudio.ops.host_memory import keep_freed_memory
from aire_nerfstudio.reproduce.arrays import load_arrays, save_arrays
from aire_nerfstudio.reproduce.averaged import Averaged
from aire_nerfstudio.reproduce.fit import Fit, Progress, settings_key
from aire_nerfstudio.reproduce.surface_fit import PROBE_POINTS, SurfaceFit, surface_steps
from aire_nerfstudio.reproduce.surface_record import arrays_of, weights_of
from aire_nerfstudio.reproduce.training import train

if TYPE_CHECKING:
    from aire_nerfstudio.reproduce.store import Store

MOMENTS = (0.0, 0.1, 0.2)
"""Times at which the paper compares."""


@dataclass(frozen=True)
class FlowFit:
    """Everything that decides the outcome of a fit on a given machine."""

    start: SurfaceFit
    """The surface at time 0: a large network, whose widths and w0 the flow takes over."""
    epochs: float = 10_000.0
    """Passes over the surface's points, ``points / on_surface`` steps each (the reference's count)."""
    on_surface: int = 15_000
    """Points of the surface a step, at time 0."""
    off_surface: int = 15_000
    """Points of the cube a step, at time 0."""
    space_time: int = 30_000
    """Points of space and time a step."""
    alpha: float = 1e-3
    """Speed of the flow."""
    duration: float = 0.2
    """Times lie in [0, duration]."""
    learning_rate: float = 1e-4
    """Adam's, at the beginning."""
    final_ratio: float = 1.0
    """Learning rate at the end over that at the beginning."""
    variant: Variant = "aire"
    """Who decides about the network's size: large, or one of AIRe's."""
    adaptation: AireConfig = field(default_factory=AireConfig)
    """AIRe's schedule."""
    resolution: int = 512
    """Grid points a side of the meshes that are compared."""

    @property
    def source(self) -> str:
        """The shape."""
        return self.start.shape

    @property
    def seed(self) -> int:
        """Of samples and order."""
        return self.start.seed

    @property
    def label(self) -> str:
        """Shape, variant and seed."""
        return f"flow of {self.source} {self.variant} seed {self.seed}"

    def key(self) -> str:
        """A name that is the same for the same settings and no others."""
        # 2: all batches are full. 3: an average of the weights is compared as well.
        return settings_key(self, "flow 3")

    def cost(self) -> float:
        """A step of a flow carries about six times as much as one of a surface, for three times the points."""
        return 12 * self.epochs * count_parameters(4, self.start.widths, 1)

    def needs(self) -> tuple[Fit, ...]:
        """The surface it starts from; for what is compared with it, the large network's flow."""
        return (self.start,) if self.variant == "large" else (self.start, self.reference())

    def reference(self) -> FlowFit:
        """The large network's flow."""
        return replace(self, variant="large", adaptation=AireConfig())

    def check(self, folder: Path) -> None:
        """Read the shape."""
        self.start.check(folder)

    def run(
        self, folder: Path, device: str, store: Store, progress: Progress | None, is_recorded: bool
    ) -> dict[str, Any]:
        """Train, extract the surfaces at :data:`MOMENTS`, and compare.

        Returns:
            Figures of :func:`~aire_nerfstudio.reproduce.training.train`, and ``parameters``, ``reduction``, ``widths``,
            and for all but ``large`` ``chamfer_0``, ``chamfer_0.1``, ``chamfer_0.2`` and ``chamfer_mean`` to the large
            network's surfaces (None where one has no surface), ``averaged_...`` of both networks' averages.
        """
        if device == "cpu":
            keep_freed_memory()
        surface = read_surface(folder / self.source)
        network = self._starting_network(weights_of(load_arrays(store.record_path(self.start)))).to(device)
        samples = SurfaceSamples(surface, self.on_surface, self.off_surface, self.start.pool, self.seed, device)
        anywhere = SpaceTimePoints(self.space_time, self.duration, self.seed, device)
        strategy = make_strategy(
            self.variant, self.adaptation, self.start.widths, 4, 1, LATTICE_LIMITS[4], self.start.omega
        )
        torch.manual_seed(self.seed)

        def probe(step: int) -> Probe:
            def outputs() -> list[Tensor]:
                return network.layer_outputs(anywhere.at(step)[: 2 * PROBE_POINTS])

            return Probe(outputs)

        def terms_of(network: SineMLP, points: Tensor, normals: Tensor, distances: Tensor) -> dict[str, Tensor]:
            return flow_loss(network, points, normals, distances, self.alpha, FlowWeights())

        def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
            drawn = samples.batch(step)
            points = torch.cat([pad(torch.cat([drawn.on, drawn.off]), (0, 1)), anywhere.at(step)])
            return points, drawn.normals, drawn.distances

        total = surface_steps(self.epochs, len(surface.points), self.on_surface)
        averaged = Averaged(network, total)
        _, figures = train(
            network, strategy, samples.steps_per_epoch, total, self.learning_rate, self.final_ratio, batch,
            terms_of, None, probe, lambda value: math.log10(value) if value > 0 else math.nan, device, averaged,
            progress, store.cuda_graph,
        )  # fmt: skip
        meshes = {
            (prefix, moment): self._mesh(one, moment, device)
            for prefix, one in (("", network), ("averaged_", averaged.network))
            for moment in MOMENTS
        }
        figures |= {
            "parameters": network.num_parameters,
            "reduction": round(100 * (1 - network.num_parameters / count_parameters(4, self.start.widths, 1)), 2),
            "widths": network.widths,
        }
        if self.variant != "large":
            figures |= self._compare(meshes, load_arrays(store.record_path(self.reference())))
        if is_recorded or self.variant == "large":
            arrays = arrays_of(network)
            for (prefix, moment), (vertices, faces) in meshes.items():
                arrays[f"{prefix}vertices_{moment:g}"] = vertices.astype(np.float32)
                arrays[f"{prefix}faces_{moment:g}"] = faces.astype(np.int32)
            save_arrays(store.record_path(self), arrays)
        return figures

    def _starting_network(self, weights: dict[str, Tensor]) -> SineMLP:
        """The surface's network, for which time makes no difference."""
        start = self.start
        network = SineMLP(4, start.widths, 1, start.activation, start.omega, start.omega)
        weights["layers.0.weight"] = pad(weights["layers.0.weight"], (0, 1))
        network.load_state_dict(weights)
        return network

    def _mesh(self, network: SineMLP, moment: float, device: str) -> tuple[np.ndarray, np.ndarray]:
        def at_moment(points: Tensor) -> Tensor:
            return pad(points, (0, 1), value=moment)

        steepness = steepness_of(lambda x: value_and_gradient(network, at_moment(x))[1][:, :3], device)
        return extract_mesh(lambda x: network(at_moment(x)).squeeze(-1), self.resolution, device, steepness=steepness)

    def _compare(
        self, meshes: dict[tuple[str, float], tuple[np.ndarray, np.ndarray]], reference: dict[str, np.ndarray]
    ) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for (prefix, moment), mesh in meshes.items():
            name = f"{prefix}vertices_{moment:g}", f"{prefix}faces_{moment:g}"
            other = reference[name[0]].astype(np.float64), reference[name[1]]
            is_there = len(mesh[1]) > 0 and len(other[1]) > 0
            found[f"{prefix}chamfer_{moment:g}"] = compare_surfaces(mesh, other).chamfer if is_there else None
        for prefix in {prefix for prefix, _ in meshes}:
            values = [found[f"{prefix}chamfer_{moment:g}"] for moment in MOMENTS]
            there = [value for value in values if value is not None]
            found[f"{prefix}chamfer_mean"] = sum(there) / len(there) if len(there) == len(MOMENTS) else None
        return found
