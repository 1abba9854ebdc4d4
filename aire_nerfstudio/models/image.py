"""A picture as an adaptive sine network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.model_components.renderers import RGBRenderer
from nerfstudio.utils import colormaps
from torch import Tensor, nn

from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.base import Probe
from aire_nerfstudio.data.image_views import meet_plane
from aire_nerfstudio.data.picture import half_extent, has_alpha, over_background, pixel_centres, shrink_factor
from aire_nerfstudio.data.picture_file import write_picture
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.sine_layers import Activation
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.models.adaptive import PROBE_POINTS, AdaptiveModel
from aire_nerfstudio.models.adaptive_config import AdaptiveModelConfig
from aire_nerfstudio.models.background import seen_behind, without_background
from aire_nerfstudio.models.image_metrics import decibel_of, image_metrics, psnr
from aire_nerfstudio.report.portrait import Portrait

BACKGROUNDS = {"white": 1.0, "black": 0.0}
SAMPLES_AT_ONCE = 1 << 18


@dataclass
class ImageModelConfig(AdaptiveModelConfig):
    """The paper's image network and schedule (table 3: 250, 2,250 and 4,500 of 5,000 epochs)."""

    _target: type = field(default_factory=lambda: ImageModel)
    adaptation: AireConfig = field(
        default_factory=lambda: AireConfig(
            unit="percent",
            densify_at=5.0,
            densify_fraction=0.25,
            decay_start=45.0,
            prune_at=90.0,
            prune_layers=(0,),
            prune_fraction=0.6,
        )
    )
    """When and how much the network changes."""
    ema_decay: float = 0.0
    """Decay of the weight average used for evaluation, in [0, 1); 0: no average, as in the paper."""
    activation: Activation = "siren"
    """Sine variant."""
    widths: tuple[int, ...] = (512, 512, 512)
    """Widths of the sine layers."""
    first_omega: float = 30.0
    """w0 of the first layer."""
    hidden_omega: float = 30.0
    """w0 of the other layers."""
    first_bias_scale: float | None = None
    """FINER's k: first biases from U(-k, k); None: torch.nn.Linear's."""
    detach_finer_scale: bool = True
    """FINER's published backward, which takes 1 + |z| for a constant."""
    background_color: Literal["white", "black"] = "white"
    """Around the picture, and behind it where it is transparent."""
    eval_num_rays_per_chunk: int = 1 << 16
    """Pixels evaluated at once."""


def image_error(network: SineMLP, points: Tensor, values: Tensor) -> Tensor:
    """Mean square of what the network, from -1 to 1, misses of ``values [N, C]`` at ``points [N, 2]``, ``[]``."""
    return network.mean_square_step(points, 2 * values - 1) / 4


class ImageModel(AdaptiveModel):
    """``(x, y) -> values`` in [-1, 1]; rays are answered where they meet the plane z = 0."""

    config: ImageModelConfig
    field: SineMLP

    def populate_modules(self) -> None:
        """Make the network."""
        super().populate_modules()
        config, metadata = self.config, self.metadata()
        self._height, self._width = int(metadata["height"]), int(metadata["width"])
        self._channels = int(metadata["channels"])
        # Absent where nothing is trained.
        self._steps_per_epoch = int(metadata.get("steps_per_epoch", 1))
        try:
            self.field = SineMLP(
                2,
                self.starting_widths(config.widths, 2),
                self._channels,
                config.activation,
                config.first_omega,
                config.hidden_omega,
                config.first_bias_scale,
                config.detach_finer_scale,
            )
        except ValueError as error:
            raise InputError(str(error)) from error
        self.renderer_rgb = RGBRenderer(background_color=config.background_color)
        self._training_batch: Callable[[int], tuple[Tensor, Tensor]] | None = metadata.get("training_batch")
        self.start_adaptation()

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the training picture in pixels."""
        return self._height, self._width

    @property
    def channels(self) -> int:
        """Channels of the picture, alpha included."""
        return self._channels

    network_name = "image"

    def adaptive_network(self, field: nn.Module) -> SineMLP:
        """The whole field."""
        return cast(SineMLP, field)

    def probe(self) -> Probe:
        """Outputs at random points of the picture; the residual is that of the step's training batch."""

        def outputs() -> list[Tensor]:
            half = torch.tensor(half_extent(self._height, self._width), device=self.device)
            points = (2 * torch.rand(PROBE_POINTS, 2, device=self.device) - 1) * half
            return self.field.layer_outputs(points)

        return Probe(outputs, None if self._training_batch is None else self._residual)

    @torch.no_grad()
    def _residual(self) -> tuple[Tensor, Tensor]:
        assert self._training_batch is not None
        points, values = self._training_batch(self.adaptation.step)
        return points, values - 0.5 * (self.field(points) + 1)

    def steps_per_epoch(self) -> int:
        """``ceil(training pixels / batch)``."""
        return self._steps_per_epoch

    def fixed_settings(self) -> dict[str, Any]:
        """Those of the network, and the picture's aspect and channels."""
        aspect = round(self._width / self._height, 6)
        return {**super().fixed_settings(), "channels": self._channels, "aspect": aspect}

    def without_data(self) -> dict[str, Any]:
        """Size and channels of the picture."""
        return {"height": self._height, "width": self._width, "channels": self._channels}

    def values(self, coordinates: Tensor) -> Tensor:
        """The picture at ``coordinates [N, 2]``: ``[N, C]``, in [0, 1] where the fit is good, never clamped."""
        return 0.5 * (self.evaluated_field(coordinates) + 1)

    @torch.no_grad()
    def render_picture(self, height: int, width: int, progress: Callable[[float], None] = lambda share: None) -> Tensor:
        """The picture sampled at the pixel centres of another size; averaged where that one is smaller.

        Args:
            height: rows of the result.
            width: columns of the result.
            progress: told the share that is done, in [0, 1].

        Returns:
            ``[height, width, C]`` in [0, 1], colours multiplied by alpha where there is one, on the CPU.
        """
        own_height, own_width = self.picture_size
        samples = shrink_factor(own_height, own_width, height, width)
        fine_width = width * samples
        # The training picture's frame, whatever the new aspect: outline on outline.
        own, new = half_extent(own_height, own_width), half_extent(height, width)
        stretch = torch.tensor([own[0] / new[0], own[1] / new[1]])
        rows_at_once = max(1, SAMPLES_AT_ONCE // (fine_width * samples))
        out = torch.empty(height, width, self.channels)
        for top in range(0, height, rows_at_once):
            rows = min(rows_at_once, height - top)
            index = torch.arange(top * samples * fine_width, (top + rows) * samples * fine_width)
            points = pixel_centres(index, height * samples, fine_width) * stretch
            # A single row may hold more samples than fit at once.
            parts = [self.values(part.to(self.device)).cpu().clamp(0, 1) for part in points.split(SAMPLES_AT_ONCE)]
            values = torch.cat(parts)
            out[top : top + rows] = values.view(rows, samples, width, samples, -1).mean(dim=(1, 3))
            progress((top + rows) / height)
        return out

    def adaptive_inputs(self, points: Tensor) -> Tensor:
        """The plane's coordinates."""
        return points[:, :2]

    def portraits(self, datamanager: Any, count: int, longest_side: int | None) -> list[Portrait]:
        """The picture at its own size: a smaller one has no held-out pixels."""
        return super().portraits(datamanager, count, None)

    def export(self, stem: Path) -> Path:
        """The picture at its own size, as PNG."""
        path = stem.with_name(f"{stem.name}.png")
        write_picture(self.render_picture(*self.picture_size), path, bits=8)
        return path

    def get_outputs(self, ray_bundle: RayBundle | Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Evaluate at coordinates, or where rays meet the picture.

        Args:
            ray_bundle: coordinates ``[N, 2]`` in training, rays ``[N]`` otherwise.

        Returns:
            ``values [N, C]`` of coordinates; in training these are handed through, ``points [N, 2]``. Of rays:
            ``rgb [N, 3]`` over the background, clamped to [0, 1], ``depth`` and ``accumulation`` (alpha) ``[N, 1]``,
            ``normals [N, 3]`` in [0, 1].
        """
        if isinstance(ray_bundle, Tensor):
            # In training the error alone is wanted, which one pass gives together with its gradients.
            return {"points": ray_bundle} if self.training else {"values": self.values(ray_bundle)}
        points, distance, is_met = meet_plane(ray_bundle, self._height, self._width)
        values = points.new_zeros(*points.shape[:-1], self._channels)
        values[is_met] = self.values(points[is_met])
        background = BACKGROUNDS[self.config.background_color]
        visible = is_met[..., None]
        behind = seen_behind(values.new_full((*points.shape[:-1], 3), background))
        rgb = torch.where(visible, over_background(values, behind), behind)
        opacity = values[..., -1:] if has_alpha(self._channels) else torch.ones_like(values[..., :1])
        towards = torch.tensor([0.5, 0.5, 1.0], device=rgb.device, dtype=rgb.dtype)
        return {
            "rgb": rgb.clamp(0, 1),
            "accumulation": torch.where(visible, opacity.clamp(0, 1), torch.zeros_like(opacity)),
            "depth": distance[..., None],
            "normals": torch.where(visible, towards, torch.full_like(towards, 0.5)),
        }

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """Colours without the background, and their opacity, ``[..., 4]``; ``ns-export`` drops points by the latter."""
        if output_name != "rgb":
            return super().get_rgba_image(outputs, output_name)
        rgb = outputs["rgb"]
        behind = seen_behind(torch.full_like(rgb, BACKGROUNDS[self.config.background_color]))
        return without_background(rgb, outputs["accumulation"], behind)

    def get_loss_dict(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Mean squared error in the network's units, where black is -1 and white 1, and the adaptation's penalty."""
        error = self._error(outputs, batch)
        loss = {"image_loss": 4 * error}
        if self.training:
            loss["adaptation_loss"] = self.adaptation_loss(error)
        return loss

    def get_metrics_dict(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """PSNR of the batch."""
        with torch.no_grad():
            return {"psnr": decibel_of(self._error(outputs, batch).detach())}

    def _error(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        """Mean squared error of a batch, values in [0, 1], ``[]``; computed once."""
        if "error" not in outputs:
            if "points" in outputs:
                with torch.enable_grad():
                    outputs["error"] = image_error(self.field, outputs["points"], batch["image"])
            else:
                outputs["error"] = (outputs["values"] - batch["image"]).square().mean()
        return outputs["error"]

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Scores of the front view, and pictures: truth beside prediction, and ten times their difference.

        ``psnr`` is that of the held-out pixels (alpha counts as a channel), ``psnr_train`` that of the others; ``ssim``
        and ``lpips`` are of the whole picture over the background.
        """
        background = BACKGROUNDS[self.config.background_color]
        truth, is_test = batch["image"].to(self.device), batch["is_test"].to(self.device)
        seen, rgb = over_background(truth, background), outputs["rgb"].to(self.device)
        metrics = image_metrics(rgb, seen)
        scored, wanted = rgb, seen
        if has_alpha(self._channels):
            scored = torch.cat([rgb, outputs["accumulation"].to(self.device)], dim=-1)
            wanted = torch.cat([seen, truth[..., -1:]], dim=-1)
        metrics["psnr"] = float(psnr(scored[is_test], wanted[is_test]))
        if not is_test.all():
            metrics["psnr_train"] = float(psnr(scored[~is_test], wanted[~is_test]))
        difference = (10 * (rgb - seen)).abs().mean(-1, keepdim=True).clamp(0, 1)
        images = {"img": torch.cat([seen, rgb], dim=1), "difference_x10": colormaps.apply_colormap(difference)}
        return metrics, images
