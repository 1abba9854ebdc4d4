"""The pixels of one picture, resident on the device and drawn there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from torch import Tensor

from aire_nerfstudio.data.fingerprint import FINGERPRINT, file_fingerprint
from aire_nerfstudio.data.image_views import FRONT, ImageViews, ImageViewsConfig, ImageViewsDataset
from aire_nerfstudio.data.pixels import PixelBatches, split_pixels
from aire_nerfstudio.data.view_rays import ViewRays
from aire_nerfstudio.distributed import share
from aire_nerfstudio.errors import InputError, exit_on_bad_input


@dataclass
class ImageDataManagerConfig(VanillaDataManagerConfig):
    """One picture; some of its pixels are held out. Options about images of a scene have no effect here."""

    _target: type = field(default_factory=lambda: ImageDataManager)
    dataparser: ImageViewsConfig = field(default_factory=ImageViewsConfig)  # type: ignore[assignment]
    """The picture."""
    train_num_rays_per_batch: int = 65_536
    """Pixels a training step."""
    eval_num_rays_per_batch: int = 65_536
    """Held-out pixels an evaluation step, at most."""
    test_fraction: float = 0.1
    """Share of the pixels that is held out and scored, in [0, 1); with 0 all pixels train and are scored."""
    split_seed: int = 0
    """Seed of the split."""


class ImageDataManager(VanillaDataManager[ImageViewsDataset]):
    """Batches ``(coordinates [B, 2], {"image": values [B, C]})`` for training; the front view for evaluation."""

    config: ImageDataManagerConfig
    dataparser: ImageViews

    @exit_on_bad_input
    def __init__(self, config: ImageDataManagerConfig, device: Any = "cpu", **kwargs: Any) -> None:
        super().__init__(config, device=device, **kwargs)
        picture = self.dataparser.picture
        count = picture.height * picture.width
        train, test = split_pixels(count, config.test_fraction, config.split_seed)
        self._is_test = torch.zeros(count, dtype=torch.bool)
        self._is_test[test] = True
        if len(test) == 0:
            if config.test_fraction > 0:
                raise InputError(
                    f"test_fraction {config.test_fraction} of {count} pixels holds out none; raise it or set it to 0"
                )
            self._is_test[:] = True
        seed = torch.initial_seed()
        self._train = PixelBatches(picture, train, config.train_num_rays_per_batch, seed, device)
        scored = test if len(test) else train
        self._test = PixelBatches(picture, scored, config.eval_num_rays_per_batch, seed, device, gathers=False)
        # What the model may ask for beyond the pictures themselves.
        self.train_dataset.metadata["steps_per_epoch"] = self._train.steps_per_epoch
        self.train_dataset.metadata["training_batch"] = self._train.batch
        if self.test_mode == "val":  # as nerfstudio calls it where it trains
            self.train_dataset.metadata[FINGERPRINT] = file_fingerprint(
                self.dataparser.path, config.test_fraction, config.split_seed
            )

    def create_train_dataset(self) -> ImageViewsDataset:
        """Views for the viewer and for rendering."""
        return ImageViewsDataset(self.train_dataparser_outputs, self.dataparser.picture)

    def create_eval_dataset(self) -> ImageViewsDataset:
        """The same views."""
        return ImageViewsDataset(self.dataparser.get_dataparser_outputs(split="test"), self.dataparser.picture)

    def setup_train(self) -> None:
        """Nothing to load: the picture is there."""
        if self.test_mode != "val":  # as nerfstudio calls it where it does not train
            self.train_pixel_sampler = ViewRays(self.train_dataset.cameras, self.device)  # type: ignore[assignment]

    def setup_eval(self) -> None:
        """Nothing to load: the picture is there."""
        self.fixed_indices_eval_dataloader = FrontView(self)  # type: ignore[assignment]
        self.eval_dataloader = self.fixed_indices_eval_dataloader  # type: ignore[assignment]

    def next_train(self, step: int) -> tuple[Any, dict[str, Tensor]]:
        """Coordinates ``[B, 2]`` and ``{"image": [B, C]}`` in [0, 1], a function of the step; a process's share.

        Of a run that is not trained: rays through its views, as ns-export asks for.
        """
        if isinstance(self.train_pixel_sampler, ViewRays):
            return self.train_pixel_sampler.draw(), {}
        coordinates, values = self._train.batch(step)
        return share(coordinates), {"image": share(values)}

    def next_eval(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """As :meth:`next_train`, of held-out pixels."""
        coordinates, values = self._test.batch(step)
        return coordinates, {"image": values}

    def next_eval_image(self, step: int) -> tuple[Cameras, dict]:
        """The front view."""
        return self.front_view()

    def front_view(self) -> tuple[Cameras, dict]:
        """The scored camera, the whole picture ``[H, W, C]`` in [0, 1] and which pixels are scored, ``[H, W]``."""
        picture = self.dataparser.picture
        camera = self.eval_dataset.cameras[FRONT : FRONT + 1].to(self.device)
        return camera, {
            "image": picture.floats().to(self.device),
            "is_test": self._is_test.view(picture.height, picture.width).to(self.device),
            "image_idx": FRONT,
        }

    def get_train_rays_per_batch(self) -> int:
        """Pixels a training step."""
        return self._train.batch_size

    def get_eval_rays_per_batch(self) -> int:
        """Pixels an evaluation step."""
        return self._test.batch_size


class FrontView:
    """What ns-eval goes through: one view."""

    def __init__(self, manager: ImageDataManager) -> None:
        self._manager = manager

    def __len__(self) -> int:
        return 1

    def __iter__(self):
        yield self._manager.front_view()

    def get_camera(self, image_idx: int = 0) -> tuple[Cameras, dict]:
        """The view; what ns-render spiral begins with."""
        return self._manager.front_view()
