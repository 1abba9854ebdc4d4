"""nerfstudio's data manager of rays, with less to do in each step: pictures on the device, rays without a wait."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.pixel_samplers import PixelSampler, PixelSamplerConfig
from nerfstudio.model_components.ray_generators import RayGenerator
from torch import Tensor

from aire_nerfstudio.data.perspective_rays import PerspectiveRays, suits

# Of the device's free memory, what pictures may take where nothing is said.
SHARE_OF_MEMORY = 0.25


@dataclass
class ResidentPixelSamplerConfig(PixelSamplerConfig):
    """nerfstudio's sampler; from pictures that are on a GPU it draws there."""

    _target: type = field(default_factory=lambda: ResidentPixelSampler)


class ResidentPixelSampler(PixelSampler):
    """As nerfstudio's, whose indices go through the processor even where the pictures are on the device."""

    def __init__(self, config: PixelSamplerConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self._limits: Tensor | None = None

    def collate_image_dataset_batch(
        self, batch: dict[str, Any], num_rays_per_batch: int, keep_full_image: bool = False
    ) -> dict[str, Any]:
        """See nerfstudio; what it does of masks, panoramas and fisheye pictures it still does."""
        images, which = batch["image"], batch["image_idx"]
        is_plain = set(batch) == {"image", "image_idx"} and not keep_full_image and which.device == images.device
        if not (images.is_cuda and is_plain) or self.config.is_equirectangular or self.config.fisheye_crop_radius:
            return super().collate_image_dataset_batch(batch, num_rays_per_batch, keep_full_image)
        if self._limits is None or self._limits.device != images.device:
            self._limits = torch.tensor(images.shape[:3], device=images.device)
        drawn = torch.rand(num_rays_per_batch, 3, device=images.device)
        # Just below 1 times a large side might be rounded up to it.
        indices = (drawn * self._limits).long().minimum(self._limits - 1)
        picture, row, column = indices.unbind(-1)
        indices = torch.stack([which[picture], row, column], -1)
        return {"image": images[picture, row, column], "indices": indices}


@dataclass
class RaysDataManagerConfig(VanillaDataManagerConfig):
    """For tasks that train on rays through posed pictures."""

    _target: type = field(default_factory=lambda: RaysDataManager)
    images_on_gpu: bool | None = None  # type: ignore[assignment]
    """Pictures are kept on the GPU; None: where they take no more than a quarter of its free memory."""
    pixel_sampler: PixelSamplerConfig = field(default_factory=ResidentPixelSamplerConfig)
    """Specifies the pixel sampler used to sample pixels from images."""


class RaysDataManager(VanillaDataManager[InputDataset]):
    """As nerfstudio's; the same rays in the same order on a processor."""

    config: RaysDataManagerConfig

    def setup_train(self) -> None:
        """See nerfstudio."""
        if self.config.images_on_gpu is None and torch.device(self.device).type == "cuda":
            kept = self.exclude_batch_keys_from_device
            self.exclude_batch_keys_from_device = [k for k in kept if k != "image" or not self._fits()]
        super().setup_train()
        self.train_ray_generator = _quick(self.train_ray_generator)

    def setup_eval(self) -> None:
        """See nerfstudio."""
        super().setup_eval()
        self.eval_ray_generator = _quick(self.eval_ray_generator)

    def _fits(self) -> bool:
        """Whether the pictures that are kept at a time, as float32, and those of the evaluation fit."""
        total = 0
        for dataset, limit in (
            (self.train_dataset, self.config.train_num_images_to_sample_from),
            (self.eval_dataset, self.config.eval_num_images_to_sample_from),
        ):
            cameras = dataset.cameras
            count = len(dataset) if limit < 0 else min(limit, len(dataset))
            total += 4 * 4 * count * int((cameras.height * cameras.width).max())
        return total < SHARE_OF_MEMORY * torch.cuda.mem_get_info(self.device)[0]


def _quick(generator: RayGenerator) -> Any:
    """A generator's rays without its looks at each batch, where its cameras allow that."""
    return PerspectiveRays(generator.cameras) if suits(generator.cameras) else generator
