"""NeRF with an adaptive density network."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.model_components.renderers import RGBRenderer
from nerfstudio.utils import colormaps
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn

from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.base import Probe, Report
from aire_nerfstudio.data.rays_manager import IS_OPEN
from aire_nerfstudio.distributed import shared_rand
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.occupancy_grid import OccupancyGrid
from aire_nerfstudio.fields.radiance_field import SineRadianceField
from aire_nerfstudio.fields.sine_layers import Activation
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.models.adaptive import PROBE_POINTS, AdaptiveModel
from aire_nerfstudio.models.adaptive_config import AdaptiveModelConfig
from aire_nerfstudio.models.background import Background, BackgroundColour, without_background
from aire_nerfstudio.models.image_metrics import decibel_of, image_metrics
from aire_nerfstudio.models.nerf_graph import NerfGraph
from aire_nerfstudio.models.nerf_rendering import density_at, depth_picture, expected_depth, render_rays
from aire_nerfstudio.models.sample_counts import SampleCounts
from aire_nerfstudio.ops.compositing import composite_rays_train, early_stop, visibility
from aire_nerfstudio.ops.ray_library import ray_library
from aire_nerfstudio.ops.ray_marching import (
    Samples,
    march_rays_train,
    march_rays_train_by_nerfacc,
    near_far_from_aabb,
)
from aire_nerfstudio.ops.sample_places import places


@dataclass
class NerfModelConfig(AdaptiveModelConfig):
    """FINER's NeRF set-up with AIRe's schedule; the paper's numbers are the defaults."""

    _target: type = field(default_factory=lambda: NerfModel)
    adaptation: AireConfig = field(
        default_factory=lambda: AireConfig(unit="percent", decay_start=20.0, prune_at=70.0, prune_fraction=0.5)
    )
    """When and how much the density network changes (paper: 300 epochs, 750 of decay, 450 more)."""
    activation: Activation = "siren"
    """Sine variant of both networks."""
    density_widths: tuple[int, ...] = (182, 182, 182)
    """Sine layers of the density network."""
    colour_widths: tuple[int, ...] = (182, 182, 182)
    """Sine layers of the colour network."""
    n_features: int = 182
    """Features passed from density to colour."""
    first_omega: float = 30.0
    """w0 of the first layer."""
    hidden_omega: float = 1.0
    """w0 of the other layers."""
    first_bias_scale: float | None = None
    """FINER's k: first biases from U(-k, k); None: torch.nn.Linear's."""
    detach_finer_scale: bool = True
    """FINER's published backward, which takes 1 + |z| for a constant; normals always use the exact one."""
    grid_resolution: int = 128
    """Voxels a side of the occupancy grid."""
    density_threshold: float = 10.0
    """Density, per half side of the scene's cube, above which a voxel is occupied; of a contracted scene per half side
    of its middle."""
    grid_every: int = 16
    """Optimizer steps between two updates of the grid."""
    grid_decay: float = 0.95
    """Factor of a voxel's remembered density at each update of the grid, in (0, 1); lower clears space sooner."""
    grid_warmup: int = 256
    """Steps during which each update evaluates every voxel."""
    max_steps_per_ray: int = 1024
    """Samples that the cube's diagonal would hold."""
    scene_contraction: bool | None = None
    """Whether the networks know all of space, contracted into their cube, or the scene's box alone; None: all of space
    where most training cameras stand inside the box and their pictures have no alpha, as of a real place."""
    cone_angle: float = 0.0
    """Samples are at least this share of their distance long, in [0, 1); torch-ngp's dt_gamma."""
    near_plane: float = 0.05
    """Of a contracted scene: distance from the camera, in the scene's units, where samples begin."""
    far_plane: float = 1000.0
    """Of a contracted scene: distance where they end."""
    marcher: Literal["aire", "nerfacc"] = "aire"
    """What finds the samples of training rays: this package's marcher, or nerfacc's (CUDA only)."""
    early_stop_epsilon: float = 1e-4
    """Samples behind this transmittance are left out."""
    background_color: BackgroundColour = "white"
    """Behind the scene. With RGBA images training always draws it at random and evaluation uses this colour."""

    def check(self) -> None:
        """As every adaptive model's, and what marching needs."""
        super().check()
        if not 0 < self.early_stop_epsilon < 1:
            raise InputError(f"early_stop_epsilon is {self.early_stop_epsilon}; it must lie in (0, 1)")
        if not 0 <= self.cone_angle < 1:
            raise InputError(f"cone_angle is {self.cone_angle}; it must lie in [0, 1)")
        if not 0 <= self.near_plane < self.far_plane:
            raise InputError(
                f"near_plane is {self.near_plane} and far_plane {self.far_plane}; they must be 0 or more and rise"
            )
        if self.marcher == "nerfacc" and (self.scene_contraction or self.cone_angle):
            raise InputError(
                "marcher is nerfacc, which is used for the scene's box and even steps alone; use aire for a contracted "
                "scene or a cone_angle"
            )

    def check_training(self, device_type: str) -> None:
        """As every adaptive model's, and what finds the samples of training rays."""
        super().check_training(device_type)
        if self.marcher == "nerfacc" and not torch.cuda.is_available():
            raise InputError("marcher is nerfacc, which marches on CUDA only, and there is no CUDA device; use aire")
        if self.cuda_graph and self.marcher == "nerfacc":
            raise InputError(
                "cuda_graph is True and marcher is nerfacc, which waits for the number of samples; use aire"
            )
        if self.cuda_graph and not _marcher_is_compiled():
            raise InputError(
                "cuda_graph is True and the compiled marcher cannot be had (python -m aire_nerfstudio.ops says why); "
                "leave cuda_graph out"
            )


def _marcher_is_compiled() -> bool:
    """Whether marching on CUDA is not PyTorch's, whose sizes depend on what it finds."""
    return ray_library(torch.empty(0, device="cuda")) is not None


class NerfModel(AdaptiveModel):
    """Rays -> colour, depth, accumulation and normals through a :class:`SineRadianceField`."""

    config: NerfModelConfig
    field: SineRadianceField
    aabb: Tensor

    def populate_modules(self) -> None:
        """Make field, grid and renderer."""
        super().populate_modules()
        config = self.config
        box = self.scene_box.aabb.float()
        centre, half_side = box.mean(0), float((box[1] - box[0]).max()) / 2
        try:
            self.field = SineRadianceField(
                centre,
                half_side,
                self.starting_widths(config.density_widths, 3),
                config.colour_widths,
                config.n_features,
                config.activation,
                config.first_omega,
                config.hidden_omega,
                config.first_bias_scale,
                config.detach_finer_scale,
            )
            self.grid = OccupancyGrid(config.grid_resolution, config.density_threshold, config.grid_decay)
        except ValueError as error:
            raise InputError(str(error)) from error
        self.register_buffer("aabb", ((box - centre) / half_side).flatten(), persistent=False)
        self.step_length = 2 * math.sqrt(3) / config.max_steps_per_ray
        # What one ray meets at most: in the cube its diagonal's samples, in contracted space a few times as many.
        self.sample_counts = SampleCounts(least=8 * config.max_steps_per_ray)
        self._was_told = False
        self.background = Background(config.background_color)
        self.graph = NerfGraph(self)
        self.renderer_rgb = RGBRenderer(background_color=config.background_color)
        self.start_adaptation()
        self._set_contraction(self._is_wanted_contracted())

    def _is_wanted_contracted(self) -> bool:
        """What the configuration says, or the cameras."""
        wanted = self.config.scene_contraction
        if wanted is None:
            # nerfacc has no such march, and of a scene without cameras nothing is known.
            wanted = bool(self.kwargs.get("metadata", {}).get(IS_OPEN)) and self.config.marcher == "aire"
        return wanted

    def _set_contraction(self, is_contracted: bool) -> None:
        if is_contracted and self.config.marcher == "nerfacc":
            raise InputError("the scene is contracted and marcher is nerfacc, which knows the box alone; use aire")
        for part in (self.field, self.field_average, self.grid):
            if part is not None:
                part.is_contracted = is_contracted  # type: ignore[assignment]

    @property
    def is_contracted(self) -> bool:
        """Whether the scene is all of space."""
        return self.field.is_contracted

    def fixed_settings(self) -> dict[str, Any]:
        """As every adaptive model's; contraction where there is any, of which earlier releases had none."""
        return super().fixed_settings() | ({"scene_contraction": True} if self.is_contracted else {})

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """As every adaptive model's; where the configuration leaves contraction open, the checkpoint decides."""
        settings = state.get("settings") if isinstance(state, dict) else None
        if isinstance(settings, dict):
            was_contracted, wanted = settings.get("scene_contraction") is True, self.config.scene_contraction
            if wanted is not None and wanted != was_contracted:
                raise InputError(
                    f"the checkpoint's scene_contraction is {was_contracted} and this run's {wanted}; give "
                    f"--pipeline.model.scene-contraction {was_contracted}, or leave it out"
                )
            self._set_contraction(was_contracted)
        super().set_extra_state(state)
        # Earlier releases looked in each step for what light does not reach.
        known = SampleCounts().state() | {"stops_early": True}
        self.sample_counts.restore(state.get("sample_counts", known), torch.device(self.device))

    def get_extra_state(self) -> dict[str, Any]:
        """As every adaptive model's; what steps met on their rays."""
        return super().get_extra_state() | {"sample_counts": self.sample_counts.state()}

    def print_plan(self) -> None:
        """As every adaptive model's; whether the scene is contracted, too."""
        if self.is_contracted and self.config.scene_contraction is None:
            CONSOLE.log(
                "The cameras stand inside the scene's box: space around it is contracted (the box alone: "
                "--pipeline.model.scene-contraction False)"
            )
        super().print_plan()

    network_name = "density"

    def adaptive_network(self, field: nn.Module) -> SineMLP:
        """The density network."""
        return cast(SineRadianceField, field).density_net

    def probe(self) -> Probe:
        """At random points of occupied space: elsewhere the density network is hardly ever asked."""
        return Probe(lambda: self.field.density_net.layer_outputs(self.grid.occupied_points(PROBE_POINTS)))

    def adaptive_inputs(self, points: Tensor) -> Tensor:
        """Coordinates of the scene's cube, [-1, 1]^3."""
        return self.field.inputs(self.field.normalise(points))

    def extra_pictures(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Normals and depth."""
        return {"normals": outputs["normals"], "depth": depth_picture(outputs)}

    def steps_per_epoch(self) -> int:
        """One step a training view, as torch-ngp counts."""
        return self.num_train_data

    def on_change(self, report: Report) -> None:
        """After a removal the densities differ: look everywhere again."""
        if report.event == "prune":
            self.grid.update(self.field.density_of, everywhere=True)
            self.sample_counts.forget()

    def before_step(self, step: int) -> None:
        """As every adaptive model's; the grid follows the density."""
        super().before_step(step)
        if step % self.config.grid_every == 0:
            # Contracted, what a voxel holds is spread over as much more as samples there are longer.
            self.grid.update(self.field.density_of, everywhere=step < self.config.grid_warmup)
            if self.sample_counts.follow() and not self._was_told:
                self._was_told = True
                CONSOLE.log(
                    f"step {step:,}: rays met more samples than the graph had memory for; the last ones of some "
                    "batches were left out, and memory follows (said once)"
                )

    def _limits(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Where the scene begins and ends on normalised rays, ``[N]`` each."""
        if not self.is_contracted:
            return near_far_from_aabb(origins, directions, self.aabb)
        config, unit = self.config, self.field.half_side
        near, far = (origins.new_full((len(origins),), plane) for plane in (config.near_plane, config.far_plane))
        return near / unit, far / unit

    # --- rendering -------------------------------------------------------------------------------------------------

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:  # type: ignore[override]
        """Render rays.

        Returns:
            ``rgb [N, 3]``, ``depth [N, 1]`` (expected distance along the ray), ``accumulation [N, 1]``; outside
            training also ``normals [N, 3]`` in [0, 1] (0.5 + n / 2); in training also ``num_samples [1]``.
        """
        field = cast(SineRadianceField, self.evaluated_field)
        scene = self.rays_in_cube(field, ray_bundle)
        outputs = self._rendered_for_training(field, *scene) if self.training else self._rendered(field, *scene)
        shape = ray_bundle.origins.shape[:-1]
        return {name: value if name == "num_samples" else _shaped(value, shape) for name, value in outputs.items()}

    def rays_in_cube(self, field: SineRadianceField, rays: RayBundle) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Origins and directions ``[N, 3]`` in the frame of the cube, and where the scene begins and ends, ``[N]``."""
        origins = field.normalise(rays.origins).reshape(-1, 3)
        directions = rays.directions.reshape(-1, 3)
        near, far = self._limits(origins, directions)
        if rays.nears is not None and rays.fars is not None:
            # The viewer's crop box arrives as near and far distances, in world units.
            near = torch.maximum(near, rays.nears.reshape(-1) / field.half_side)
            far = torch.minimum(far, rays.fars.reshape(-1) / field.half_side)
        return origins, directions, near, far

    def _rendered_for_training(
        self, field: SineRadianceField, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor
    ) -> dict[str, Tensor]:
        """Colour without the background, which the loss adds and may draw at random."""
        n_rays = len(origins)
        jitter = shared_rand(n_rays, device=origins.device)
        scene = (origins, directions, near, far, self.grid.occupancy, self.step_length, jitter)
        if self.config.marcher == "nerfacc":
            marched = march_rays_train_by_nerfacc(*scene)
        else:
            marched = march_rays_train(*scene, self.config.cone_angle)

        samples, epsilon = marched, self.config.early_stop_epsilon
        if self.sample_counts.stops_early:
            reached, _ = early_stop(marched, n_rays, density_at(field, origins, directions), epsilon)
            samples = marched.select(reached)
        outputs, sigma = self.composited(field, samples, origins, directions, far)
        count, decides = len(samples.starts), self.adaptation.step % self.config.grid_every == 0
        if decides and not self.sample_counts.stops_early:
            count = int(visibility(sigma, marched, sigma.new_zeros(n_rays), epsilon).sum())
        self.sample_counts.measure(len(marched.starts), count, n_rays * self.config.max_steps_per_ray, decides)
        return outputs | {"num_samples": torch.full((1,), len(samples.starts), device=origins.device)}

    def composited(
        self, field: SineRadianceField, samples: Samples, origins: Tensor, directions: Tensor, far: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Colour, depth and accumulation of the rays to which ``far [N]`` belongs, and the samples' densities."""
        sigma, rgb = field.density_and_colour(*places(samples, origins, directions))
        _, colour, accumulation, depth = composite_rays_train(sigma, rgb, samples, len(far))
        depth = expected_depth(accumulation, depth, far) * field.half_side
        return {"rgb": colour, "depth": depth, "accumulation": accumulation}, sigma.detach()

    # --- a step as a CUDA graph ------------------------------------------------------------------------------------

    def graph_revision(self) -> Hashable:
        """See :class:`~aire_nerfstudio.models.nerf_graph.NerfGraph`."""
        return super().graph_revision(), self.graph.revision()

    def graph_batch(self, datamanager: Any, step: int) -> dict[str, Tensor] | None:
        """See :class:`~aire_nerfstudio.models.nerf_graph.NerfGraph`."""
        return self.graph.batch(datamanager, step)

    def graph_outputs(self, batch: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See :class:`~aire_nerfstudio.models.nerf_graph.NerfGraph`."""
        return self.graph.outputs(batch)

    # --- outside training ------------------------------------------------------------------------------------------

    def _rendered(
        self, field: SineRadianceField, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor
    ) -> dict[str, Tensor]:
        """Colour over the background, and normals."""
        rendered, normals = render_rays(
            field, origins, directions, near, far, self.grid.occupancy, self.step_length,
            self.config.early_stop_epsilon, self.config.cone_angle,
        )  # fmt: skip
        colour, accumulation = rendered.colour, rendered.accumulation
        rgb = colour + self.background.shown(colour) * (1 - accumulation[:, None])
        return {
            "rgb": rgb.clamp(0, 1),
            "depth": expected_depth(accumulation, rendered.depth, far) * field.half_side,
            "accumulation": accumulation,
            "normals": 0.5 + 0.5 * normals,
        }

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """Colours without the background and their opacity, ``[..., 4]``; ``ns-export`` drops points by the latter.

        nerfstudio's own calls every pixel opaque unless the background is random, and exports the background as points.
        """
        if output_name != "rgb":
            return super().get_rgba_image(outputs, output_name)
        rgb, accumulation = outputs["rgb"], outputs["accumulation"]
        behind = torch.zeros_like(rgb) if self.training else self.background.shown(rgb)
        return without_background(rgb, accumulation, behind)

    def _error(self, outputs: dict[str, Tensor], image: Tensor) -> Tensor:
        """Mean squared error of a batch, over the rays for which there was memory, ``[]``.

        In training metrics and loss ask for the same, which is kept. Of several processes each one's mean counts the
        same, however many rays it left out.
        """
        if "error" in outputs:
            return outputs["error"]
        rgb, truth = self.background.compare(outputs, image.to(self.device), self.training)
        squares = (rgb - truth).square()
        if "complete" in outputs:
            complete = outputs["complete"]
            is_complete = torch.arange(len(rgb), device=rgb.device) < complete
            error = torch.where(is_complete[:, None], squares, 0).sum() / (3 * complete).clamp_min(1)
        else:
            error = squares.mean()
        if self.training:
            outputs["error"] = error
        return error

    def get_loss_dict(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Mean squared error of the colours, and the adaptation's penalty."""
        loss = {"rgb_loss": self._error(outputs, batch["image"])}
        if self.training:
            loss["adaptation_loss"] = self.adaptation_loss(loss["rgb_loss"])
        return loss

    def get_metrics_dict(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """PSNR of the batch and samples used."""
        metrics = {"psnr": decibel_of(self._error(outputs, batch["image"]).detach())}
        if "num_samples" in outputs:
            metrics["num_samples_per_batch"] = outputs["num_samples"].sum()
        return metrics

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Metrics of one view, and pictures: truth beside prediction, accumulation, depth, normals."""
        rgb, truth = self.background.compare(outputs, batch["image"].to(self.device), self.training)
        images = {
            "img": torch.cat([truth, rgb], dim=1),
            "accumulation": colormaps.apply_colormap(outputs["accumulation"]),
            "depth": depth_picture(outputs),
            "normals": outputs["normals"],
        }
        return image_metrics(rgb, truth), images


def _shaped(values: Tensor, shape: Sequence[int]) -> Tensor:
    """One a ray, ``[N]`` or ``[N, C]``, as ``[*shape, C]``; of no rays as well."""
    return values.reshape(*shape, values.shape[1] if values.dim() > 1 else 1)
