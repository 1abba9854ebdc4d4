"""A signed distance function as an adaptive sine network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.model_components.renderers import RGBRenderer
from torch import Tensor, nn

from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.base import Probe
from aire_nerfstudio.adaptation.control import Refused
from aire_nerfstudio.analysis.iso_surface import extract_mesh, steepness_of
from aire_nerfstudio.analysis.surface_metrics import compare_surfaces
from aire_nerfstudio.data.distances import SignedDistance
from aire_nerfstudio.data.mesh_file import write_mesh
from aire_nerfstudio.data.shading import heat, shade
from aire_nerfstudio.data.surface import Surface
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.differential import curvature_sum, value_and_gradient, value_gradient_hessian
from aire_nerfstudio.fields.sine_layers import Activation
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.losses import SurfaceWeights, surface_loss
from aire_nerfstudio.models.adaptive import PROBE_POINTS, AdaptiveModel
from aire_nerfstudio.models.adaptive_config import AdaptiveModelConfig
from aire_nerfstudio.models.background import seen_behind
from aire_nerfstudio.models.image_metrics import image_metrics
from aire_nerfstudio.notices import warn
from aire_nerfstudio.ops.ray_marching import near_far_from_aabb
from aire_nerfstudio.ops.sphere_tracing import sphere_trace

BACKGROUNDS = {"white": 1.0, "black": 0.0}
# Colours saturate at these: a curvature sum (per unit), and a distance from the true surface (units).
CURVATURE_SHOWN, DISTANCE_SHOWN = 20.0, 0.01
NORMALS_AT_ONCE = 1 << 15
# Surface points over which the evaluation takes means.
SCORED_POINTS = 50_000


@dataclass
class SurfaceModelConfig(AdaptiveModelConfig):
    """What surfaces and flows share: the network, and how it is shown and scored."""

    sdf_field: ClassVar[str] = "SdfNetwork"
    """By its presence ``ns-export marching-cubes`` knows a distance."""
    adaptation: AireConfig = field(
        default_factory=lambda: AireConfig(
            unit="percent", decay_start=20.0, prune_at=70.0, prune_layers=(0, 1), prune_fraction=0.75
        )
    )
    """When and how much the network changes."""
    activation: Activation = "siren"
    """Sine variant; FINER always with its exact derivative."""
    widths: tuple[int, ...] = (256, 256, 256)
    """Widths of the sine layers."""
    first_omega: float = 60.0
    """w0 of the first layer."""
    hidden_omega: float = 60.0
    """w0 of the other layers."""
    first_bias_scale: float | None = None
    """FINER's k: first biases from U(-k, k); None: torch.nn.Linear's."""
    eval_resolution: int = 256
    """Grid points a side of the mesh that evaluations compare with the true surface."""
    shows_curvature: bool = True
    """Render the sum of the principal curvatures (not for SPDER, whose second derivative has no bound)."""
    shows_error: bool = False
    """Render the distance from the true surface, too; computed on the CPU, it takes longer than all else of a view. The
    viewer has a box for it, and reports show it anyway."""
    background_color: Literal["white", "black"] = "white"
    """Around the surface."""

    def check(self) -> None:
        """As every adaptive model's."""
        super().check()
        if self.adaptation.target_psnr is not None:
            raise InputError(
                f"target_psnr is {self.adaptation.target_psnr}, but a surface has no PSNR; name target_parameters or "
                "target_bytes"
            )


@dataclass
class SdfModelConfig(SurfaceModelConfig):
    """The paper's network, schedule (table 6: 200, 500 and 300 of 1,000 epochs) and loss."""

    _target: type = field(default_factory=lambda: SdfModel)
    surface_weight: float = SurfaceWeights.surface
    """Of the mean of f^2 on the surface."""
    distance_weight: float = SurfaceWeights.distance
    """Of the mean of (f - distance)^2 off the surface."""
    normal_weight: float = SurfaceWeights.normal
    """Of the mean of 1 - cos(grad f, n) on the surface."""
    eikonal_weight: float = SurfaceWeights.eikonal
    """Of the mean of (|grad f| - 1)^2 everywhere."""


class SdfNetwork(SineMLP):
    """A sine network under the name by which nerfstudio's ``ns-export marching-cubes`` asks for distances."""

    def forward_geonetwork(self, x: Tensor) -> Tensor:
        """Distances at ``x [N, 3]``, ``[N, 1]``."""
        return self(x)


class SdfModel(AdaptiveModel):
    """``(x, y, z) -> distance``, negative inside; rays are answered where they meet the surface."""

    config: SurfaceModelConfig
    field: SdfNetwork
    aabb: Tensor
    centre: Tensor
    scale: Tensor

    def populate_modules(self) -> None:
        """Make the network."""
        super().populate_modules()
        config, metadata = self.config, self.metadata()
        self._surface: Surface | None = metadata["surface"]
        self._steps_per_epoch = int(metadata.get("steps_per_epoch", 1))
        self._training_points: Callable[[int], Any] | None = metadata.get("training_points")
        self._distance: SignedDistance | None = None
        self._scored: tuple[Any, dict[str, float]] | None = None
        try:
            self.field = SdfNetwork(
                self.dims,
                self.starting_widths(config.widths, self.dims),
                1,
                config.activation,
                config.first_omega,
                config.hidden_omega,
                config.first_bias_scale,
            )
        except ValueError as error:
            raise InputError(str(error)) from error
        # Where the surface lies; a checkpoint knows the file's units without the file.
        known = self._surface
        self.register_buffer("centre", torch.tensor([0.0] * 3 if known is None else known.centre, dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(1.0 if known is None else known.scale, dtype=torch.float64))
        self.register_buffer("aabb", torch.tensor([-1.0, -1, -1, 1, 1, 1]), persistent=False)
        self.renderer_rgb = RGBRenderer(background_color=config.background_color)
        self.start_adaptation()

    network_name = "sdf"
    has_psnr = False

    def without_data(self) -> dict[str, Any]:
        """Nothing but that the shape is not there: the checkpoint has its place and size."""
        return {"surface": None}

    def _true_surface(self) -> Surface:
        if self._surface is None:
            raise InputError("the shape that was learned is not there, and only with it can errors be told")
        return self._surface

    def __getstate__(self) -> dict[str, Any]:
        """Without the tree of distances, which is made when it is asked for."""
        return {**super().__getstate__(), "_distance": None}

    dims = 3
    """Coordinates of the network."""
    reported: tuple[str, ...] = ("shows_parts", "shows_error")

    def adaptive_network(self, field: nn.Module) -> SineMLP:
        """The whole field."""
        return cast(SineMLP, field)

    def probe(self) -> Probe:
        """Outputs at training points, half of them on the surface."""

        def outputs() -> list[Tensor]:
            assert self._training_points is not None
            batch = self._training_points(self.adaptation.step)
            half = PROBE_POINTS // 2
            return self.field.layer_outputs(torch.cat([batch.on[:half], batch.off[:half]]))

        return Probe(outputs)

    def steps_per_epoch(self) -> int:
        """``ceil(surface points / points a step)``."""
        return self._steps_per_epoch

    # What rendering asks of the field; a flow answers for the moment that is shown.

    def network_inputs(self, points: Tensor) -> Tensor:
        """Coordinates of the network at ``points [N, 3]`` of the cube."""
        return points

    @torch.no_grad()
    def distances(self, points: Tensor) -> Tensor:
        """The learned distance at ``points [N, 3]`` of the cube, ``[N]``."""
        return self.evaluated_field(self.network_inputs(points)).squeeze(-1)

    def gradients(self, points: Tensor) -> Tensor:
        """Spatial gradients at ``points [N, 3]``, ``[N, 3]``."""
        network = cast(SineMLP, self.evaluated_field)
        return value_and_gradient(network, self.network_inputs(points))[1][:, :3]

    def normals(self, points: Tensor) -> Tensor:
        """Unit normals of the level sets through ``points [N, 3]``, outwards, ``[N, 3]``."""
        return torch.nn.functional.normalize(self.gradients(points), dim=-1)

    def curvatures(self, points: Tensor) -> Tensor:
        """Sums of the principal curvatures of the level sets through ``points [N, 3]``, ``[N]``."""
        network = cast(SineMLP, self.evaluated_field)
        _, gradient, hessian = value_gradient_hessian(network, self.network_inputs(points), (0, 1, 2))
        return curvature_sum(gradient[:, :3], hessian)

    # --- training --------------------------------------------------------------------------------------------------

    def get_outputs(self, ray_bundle: RayBundle | Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Where rays meet the surface, see :meth:`trace`; points ``[N, d]`` are handed through to the loss.

        Which derivatives the loss needs differs from point to point.
        """
        if isinstance(ray_bundle, Tensor):
            return {"points": ray_bundle}
        return self.trace(ray_bundle)

    def point_loss(self, network: SineMLP, points: Tensor, normals: Tensor, distances: Tensor) -> dict[str, Tensor]:
        """The loss's terms and what is measured beside them, each ``[]``; the former end in ``_loss``.

        Args:
            network: of distances.
            points: ``[N + M, 3]``: on the surface, then off it.
            normals: of the surface, ``[N, 3]``.
            distances: true ones, ``[M]``.
        """
        config = cast(SdfModelConfig, self.config)
        weights = SurfaceWeights(
            config.surface_weight, config.distance_weight, config.normal_weight, config.eikonal_weight
        )
        sdf, gradient = value_and_gradient(network, points)
        loss = surface_loss(sdf, gradient, normals, distances, weights)
        sdf, gradient, count = sdf.detach(), gradient.detach(), len(normals)
        return {
            **loss,
            "on_surface_error": sdf[:count].abs().mean(),
            "off_surface_error": (sdf[count:] - distances).abs().mean(),
            "eikonal_error": (gradient.norm(dim=-1) - 1).abs().mean(),
        }

    def _terms(self, outputs: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """:meth:`point_loss` of a batch, computed once."""
        if "terms" not in outputs:
            network = cast(SineMLP, self.evaluated_field)
            outputs["terms"] = self.point_loss(network, outputs["points"], batch["normals"], batch["distances"])
        return outputs["terms"]

    def get_loss_dict(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The terms, weighted, and the adaptation's penalty."""
        loss = {name: term for name, term in self._terms(outputs, batch).items() if name.endswith("_loss")}
        if self.training:
            loss["adaptation_loss"] = self.adaptation_loss()
        return loss

    def get_metrics_dict(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean errors of the batch: of the distance on and off the surface, and of the gradient's length."""
        return {name: term for name, term in self._terms(outputs, batch).items() if not name.endswith("_loss")}

    # --- rendering -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def trace(self, rays: RayBundle) -> dict[str, Tensor]:
        """Sphere-trace rays.

        Returns:
            ``rgb [..., 3]`` over the background, ``depth`` and ``accumulation [..., 1]``, ``normals [..., 3]`` in
            [0, 1]; ``curvature [..., 3]`` (red bulges, blue dents) and ``error [..., 3]`` (red lies outside the true
            surface, blue inside) where they are shown.
        """
        shape = rays.origins.shape[:-1]
        origins, directions = rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3)
        near, far = near_far_from_aabb(origins, directions, self.aabb)
        if rays.nears is not None and rays.fars is not None:
            near, far = torch.maximum(near, rays.nears.reshape(-1)), torch.minimum(far, rays.fars.reshape(-1))
        depth, is_met = sphere_trace(self.distances, origins, directions, near, far)
        points = origins[is_met] + depth[is_met, None] * directions[is_met]
        normals = self.normals(points)
        background = BACKGROUNDS[self.config.background_color]

        def spread(values: Tensor, elsewhere: float) -> Tensor:
            whole = values.new_full((len(origins), values.shape[-1]), elsewhere)
            whole[is_met] = values
            return whole.view(*shape, values.shape[-1])

        colour = spread(shade(normals, directions[is_met]), background)
        outputs = {
            "rgb": torch.where(is_met.view(*shape, 1), colour, seen_behind(torch.full_like(colour, background))),
            "depth": depth.view(*shape, 1),
            "accumulation": is_met.float().view(*shape, 1),
            "normals": spread(0.5 + 0.5 * normals, 0.5),
        }
        if self.config.shows_curvature and self.config.activation != "spder":
            outputs["curvature"] = spread(heat(self.curvatures(points)[:, None], CURVATURE_SHOWN), background)
        if self.config.shows_error:
            if self._distance is None:
                surface = self._true_surface()
                self._distance = SignedDistance(surface.vertices, surface.faces)
            error = torch.from_numpy(self._distance(points.double().cpu().numpy())).to(points)
            outputs["error"] = spread(heat(error[:, None], DISTANCE_SHOWN), background)
        return outputs

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """Colours and whether there is a surface, ``[..., 4]``; ``ns-export`` drops points by the latter."""
        return torch.cat([outputs[output_name], outputs["accumulation"]], -1)

    # --- evaluation ------------------------------------------------------------------------------------------------

    def mesh(self, resolution: int, progress: Callable[[float], None] | None = None):
        """The learned surface in the cube: vertices ``[V, 3]`` and faces ``[F, 3]`` as NumPy arrays."""
        steepness = steepness_of(self.gradients, self.device)
        return extract_mesh(self.distances, resolution, self.device, steepness=steepness, progress=progress)

    @torch.no_grad()
    def vertex_normals(self, vertices: np.ndarray) -> np.ndarray:
        """Unit normals ``[V, 3]`` from the network's gradient at ``vertices [V, 3]`` of the cube."""
        parts = torch.from_numpy(vertices).float().split(NORMALS_AT_ONCE)
        return torch.cat([self.normals(part.to(self.device)).cpu() for part in parts]).double().numpy()

    def in_file_units(self, vertices: np.ndarray) -> np.ndarray:
        """``vertices [V, 3]`` of the cube in the units of the file that was learned."""
        return self.centre.cpu().numpy() + float(self.scale) * vertices

    def adaptive_inputs(self, points: Tensor) -> Tensor:
        """As rendering takes them."""
        return self.network_inputs(points)

    def extra_pictures(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Normals, and curvature and error where they are shown."""
        captions = {
            "normals": "normals",
            "curvature": f"curvature (full colour: {CURVATURE_SHOWN:g})",
            "error": f"distance from the truth (full colour: {DISTANCE_SHOWN})",
        }
        return {caption: outputs[name] for name, caption in captions.items() if name in outputs}

    def export(self, stem: Path) -> Path:
        """The surface (of a flow: at the moment shown) as PLY, in the file's units, at ``eval_resolution``."""
        vertices, faces = self.mesh(self.config.eval_resolution)
        if len(faces) == 0:
            raise Refused("the network has no surface in the cube yet")
        path = stem.with_name(f"{stem.name}.ply")
        write_mesh(self.in_file_units(vertices), faces, self.vertex_normals(vertices), path)
        return path

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Scores of the surface and of a view of it, and the view beside the truth.

        ``chamfer_x100``: 100 times the mean distance there plus the mean distance back, of samples to the other
        surface, in the cube [-1, 1]^3; ``hausdorff``; ``normal_consistency`` in [0, 1]; ``on_surface_error``: mean |f|
        over points of the true surface; ``eikonal_error``: mean of ``| |grad f| - 1 |`` there.
        """
        truth, rgb = batch["image"].to(self.device), outputs["rgb"]
        return {**image_metrics(rgb, truth), **self._surface_scores()}, {"img": torch.cat([truth, rgb], dim=1)}

    def _surface_scores(self) -> dict[str, float]:
        """Those that no view changes; found once for the same weights."""
        field = self.evaluated_field
        key = (id(field), self.adaptation.step, self._moment(), tuple(p._version for p in field.parameters()))
        if self._scored is None or self._scored[0] != key:
            self._scored = (key, self._score_surface())
        return self._scored[1]

    def _moment(self) -> float:
        """What beside the weights says which surface it is: of a flow, the time."""
        return 0.0

    def _score_surface(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        surface = self._true_surface()
        points = torch.from_numpy(surface.points[:: max(1, len(surface.points) // SCORED_POINTS)]).float()
        parts = points.to(self.device).split(1 << 15)
        metrics["on_surface_error"] = float(torch.cat([self.distances(part) for part in parts]).abs().mean())
        with torch.no_grad():
            steepness = torch.cat([self.gradients(part) for part in parts]).norm(dim=-1)
        metrics["eikonal_error"] = float((steepness - 1).abs().mean())
        found = self.mesh(self.config.eval_resolution)
        if len(found[1]):
            compared = compare_surfaces(found, (surface.vertices, surface.faces))
            metrics["chamfer_x100"] = 100 * compared.chamfer
            metrics["hausdorff"] = compared.hausdorff
            metrics["normal_consistency"] = compared.normal_consistency
        else:
            warn(
                "the network is 0 nowhere in the cube, so it has no surface: chamfer, Hausdorff and "
                "normal agreement are left out"
            )
        return metrics
