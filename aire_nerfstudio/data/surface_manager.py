"""The samples of one surface, resident on the device and drawn there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from aire_nerfstudio.data.fingerprint import FINGERPRINT, file_fingerprint
from aire_nerfstudio.data.surface_samples import SurfaceSamples
from aire_nerfstudio.data.surface_views import SurfaceViews, SurfaceViewsConfig, SurfaceViewsDataset
from aire_nerfstudio.data.view_rays import ViewRays
from aire_nerfstudio.distributed import share
from aire_nerfstudio.errors import InputError, exit_on_bad_input

# The view that is scored; the surface as a whole is compared once.
SCORED = 0


@dataclass
class SurfaceDataManagerConfig(VanillaDataManagerConfig):
    """One surface. Options about images of a scene have no effect here."""

    _target: type = field(default_factory=lambda: SurfaceDataManager)
    dataparser: SurfaceViewsConfig = field(default_factory=SurfaceViewsConfig)  # type: ignore[assignment]
    """The shape."""
    on_surface: int = 10_000
    """Points of the surface a training step."""
    off_surface: int = 10_000
    """Points of the cube a training step."""
    pool: int = 1_000_000
    """Points of the cube whose distances are computed at the start; each step draws from them."""
    curvature_share: float = 0.0
    """Share of the points of the surface that are drawn where it bends most, in [0, 1]; 0, the paper's: all alike."""

    def check_training(self) -> None:
        """Refuse what training would not heed.

        Raises:
            InputError: a number of rays.
        """
        for name in ("train_num_rays_per_batch", "eval_num_rays_per_batch"):
            if getattr(self, name) != getattr(VanillaDataManagerConfig, name):
                raise InputError(
                    f"--pipeline.datamanager.{name.replace('_', '-')} is {getattr(self, name)}; no rays are drawn "
                    "of a surface: say how many points with --pipeline.datamanager.on-surface and off-surface"
                )


class SurfaceDataManager(VanillaDataManager[SurfaceViewsDataset]):
    """Batches ``(points [N + M, 3], {"normals" [N, 3], "distances" [M]})``: first on the surface, then off it."""

    config: SurfaceDataManagerConfig
    dataparser: SurfaceViews

    @exit_on_bad_input
    def __init__(self, config: SurfaceDataManagerConfig, device: Any = "cpu", **kwargs: Any) -> None:
        super().__init__(config, device=device, **kwargs)
        self._samples: SurfaceSamples | None = None
        on_surface = min(config.on_surface, len(self.dataparser.surface.points))
        steps_per_epoch = -(-len(self.dataparser.surface.points) // max(1, on_surface))
        # What the model may ask for beyond the views themselves.
        self.train_dataset.metadata["steps_per_epoch"] = steps_per_epoch
        self.train_dataset.metadata["training_points"] = lambda step: self.samples.batch(step)
        # As nerfstudio calls it where it trains.
        is_training = self.test_mode == "val"
        self.train_dataset.metadata["is_training"] = is_training
        if is_training:
            self.train_dataset.metadata[FINGERPRINT] = file_fingerprint(self.dataparser.path)
            _ = self.samples

    @property
    def samples(self) -> SurfaceSamples:
        """Points and distances; made when first asked for, since rendering needs none."""
        if self._samples is None:
            config = self.config
            with Progress(
                TextColumn("distances to the surface"), BarColumn(), TimeElapsedColumn(), TextColumn("left"),
                TimeRemainingColumn(), transient=True,
            ) as progress:  # fmt: skip
                bar = progress.add_task("distances", total=config.pool)
                self._samples = SurfaceSamples(
                    self.dataparser.surface,
                    config.on_surface,
                    config.off_surface,
                    config.pool,
                    torch.initial_seed() % 2**32,
                    self.device,
                    lambda done: progress.update(bar, completed=done),
                    config.curvature_share,
                )
        return self._samples

    def create_train_dataset(self) -> SurfaceViewsDataset:
        """Views for the viewer and for rendering."""
        return SurfaceViewsDataset(self.train_dataparser_outputs, self.dataparser.surface)

    def create_eval_dataset(self) -> SurfaceViewsDataset:
        """The same views."""
        return SurfaceViewsDataset(self.dataparser.get_dataparser_outputs(split="test"), self.dataparser.surface)

    def setup_train(self) -> None:
        """Nothing to load."""
        if self.test_mode != "val":  # as nerfstudio calls it where it does not train
            self.train_pixel_sampler = ViewRays(self.train_dataset.cameras, self.device)  # type: ignore[assignment]

    def setup_eval(self) -> None:
        """Nothing to load."""
        self.fixed_indices_eval_dataloader = ScoredView(self)  # type: ignore[assignment]
        self.eval_dataloader = self.fixed_indices_eval_dataloader  # type: ignore[assignment]

    def next_train(self, step: int) -> tuple[Any, dict[str, Tensor]]:
        """:meth:`samples_at`; of a run that is not trained rays through its views, as ns-export asks for."""
        if isinstance(self.train_pixel_sampler, ViewRays):
            return self.train_pixel_sampler.draw(), {}
        return self.samples_at(step)

    def samples_at(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The samples of a step, a function of it; of several processes each gets its share."""
        on, normals, off, distances = map(share, self.samples.batch(step))
        return torch.cat([on, off]), {"normals": normals, "distances": distances}

    def next_eval(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """As :meth:`samples_at`: there are no points held out, the whole surface is compared instead."""
        return self.samples_at(step)

    def next_eval_image(self, step: int) -> tuple[Cameras, dict]:
        """The scored view."""
        return self.scored_view()

    def scored_view(self) -> tuple[Cameras, dict]:
        """A camera and ``{"image": [H, W, 3]}`` of the true surface, in [0, 1]."""
        image = torch.from_numpy(self.eval_dataset.get_numpy_image(SCORED)).to(self.device) / 255
        return self.eval_dataset.cameras[SCORED : SCORED + 1].to(self.device), {"image": image, "image_idx": SCORED}

    def get_train_rays_per_batch(self) -> int:
        """Points a training step."""
        return self.config.on_surface + self.config.off_surface

    def get_eval_rays_per_batch(self) -> int:
        """Points an evaluation step."""
        return self.get_train_rays_per_batch()


class ScoredView:
    """What ns-eval goes through: one view."""

    def __init__(self, manager: SurfaceDataManager) -> None:
        self._manager = manager

    def __len__(self) -> int:
        return 1

    def __iter__(self):
        yield self._manager.scored_view()

    def get_camera(self, image_idx: int = 0) -> tuple[Cameras, dict]:
        """The view; what ns-render spiral begins with."""
        return self._manager.scored_view()
