"""nerfstudio's data manager of rays, with less to do in each step: pictures on the device, rays without a wait."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.pixel_samplers import PixelSampler, PixelSamplerConfig
from nerfstudio.model_components.ray_generators import RayGenerator
from torch import Tensor

from aire_nerfstudio.data.captures import check_cameras, check_pictures, reading
from aire_nerfstudio.data.fingerprint import FINGERPRINT, files_fingerprint
from aire_nerfstudio.data.perspective_rays import PerspectiveRays, suits
from aire_nerfstudio.errors import InputError, exit_on_bad_input

# Of the device's free memory, what pictures may take where nothing is said.
SHARE_OF_MEMORY = 0.25


# In a scene's metadata: whether most of the training cameras stand inside its box, and the pictures have no alpha.
IS_OPEN = "is_open"


class ResidentPixelSampler(PixelSampler):
    """As nerfstudio's, whose indices go through the processor even where the pictures are on the device.

    Pixels are drawn by the device's generator, wherever the pictures are: what is drawn then does not depend on what
    fits into a GPU's memory, which may differ between processes, and between a run and its resumption.

    Args:
        config: see nerfstudio.
        device: of the rays.
        kwargs: see nerfstudio.
    """

    def __init__(self, config: PixelSamplerConfig, device: torch.device | str = "cpu", **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self._device = torch.device(device)
        self._limits: dict[torch.Size, Tensor] = {}

    def collate_image_dataset_batch(
        self, batch: dict[str, Any], num_rays_per_batch: int, keep_full_image: bool = False
    ) -> dict[str, Any]:
        """See nerfstudio; what it does of masks, panoramas and fisheye pictures it still does."""
        images = batch["image"]
        is_plain = set(batch) == {"image", "image_idx"} and not keep_full_image
        is_flat = not self.config.is_equirectangular and self.config.fisheye_crop_radius is None
        if self._device.type != "cuda" or not (is_plain and is_flat):
            return super().collate_image_dataset_batch(batch, num_rays_per_batch, keep_full_image)
        sizes = images.shape[:3]
        if sizes not in self._limits:
            self._limits = {sizes: torch.tensor(sizes, device=self._device)}
        limits = self._limits[sizes]
        # Just below 1 times a large side might be rounded up to it.
        drawn = torch.rand(num_rays_per_batch, 3, device=self._device)
        indices = (drawn * limits).long().minimum(limits - 1)
        picture, row, column = indices.unbind(-1)
        which = batch["image_idx"].to(self._device)
        chosen = images[tuple(i.to(images.device) for i in (picture, row, column))]
        return {"image": chosen, "indices": torch.stack([which[picture], row, column], -1)}

    def collate_image_dataset_batch_list(
        self, batch: dict[str, Any], num_rays_per_batch: int, keep_full_image: bool = False
    ) -> dict[str, Any]:
        """See nerfstudio, which takes pictures of different sizes one by one.

        On CUDA rays for which a graph has no memory are the last ones: no picture's are to be the last each time.
        """
        made = super().collate_image_dataset_batch_list(batch, num_rays_per_batch, keep_full_image)
        if self._device.type != "cuda" or keep_full_image:
            return made
        count = len(made["indices"])
        order = torch.randperm(count, device=self._device)
        return {
            name: values[order.to(values.device)] if isinstance(values, Tensor) and len(values) == count else values
            for name, values in made.items()
        }

    def sample(self, image_batch: dict[str, Any]) -> dict[str, Any]:
        """See nerfstudio.

        Raises:
            InputError: masks leave fewer pixels than a batch has.
        """
        try:
            return super().sample(image_batch)
        except ValueError as error:
            if "mask" not in image_batch or "Sample larger than population" not in str(error):
                raise
            raise InputError(
                f"masks leave fewer pixels than the {self.num_rays_per_batch} of a batch; mend the masks, or lower "
                "--pipeline.datamanager.train-num-rays-per-batch"
            ) from error


@dataclass
class RaysDataManagerConfig(VanillaDataManagerConfig):
    """For tasks that train on rays through posed pictures."""

    _target: type = field(default_factory=lambda: RaysDataManager)
    images_on_gpu: bool | None = None  # type: ignore[assignment]
    """Pictures and masks are kept on the GPU; None: where they take no more than a quarter of its free memory."""


class RaysDataManager(VanillaDataManager[InputDataset]):
    """As nerfstudio's; the same rays in the same order on a processor."""

    config: RaysDataManagerConfig

    @exit_on_bad_input
    def __init__(self, config: RaysDataManagerConfig, *args: Any, **kwargs: Any) -> None:
        with reading(config.dataparser, config.data or config.dataparser.data):
            super().__init__(config, *args, **kwargs)

    def create_train_dataset(self) -> InputDataset:
        """See nerfstudio, which takes entries out of a list that is the class's."""
        dataset = super().create_train_dataset()
        self._check(dataset)
        dataset.exclude_batch_keys_from_device = list(dataset.exclude_batch_keys_from_device)
        dataset.metadata[IS_OPEN] = _is_open(dataset)
        if self.test_mode == "val":  # as nerfstudio calls it where it trains
            dataset.metadata[FINGERPRINT] = files_fingerprint(map(Path, dataset.image_filenames))
        return dataset

    def create_eval_dataset(self) -> InputDataset:
        """See nerfstudio."""
        dataset = super().create_eval_dataset()
        if len(dataset) == 0:
            raise InputError(
                f"{self.config.data or self.config.dataparser.data} leaves no picture for evaluation; add --eval-mode "
                "all, or a lower --train-split-fraction, behind the parser's name"
            )
        self._check(dataset)
        return dataset

    def _check(self, dataset: InputDataset) -> None:
        """Refuse pictures that are missing or are not their cameras', where they will be opened."""
        if self.test_mode != "inference":
            # Cameras and pictures are resized alike, but only the cameras by now.
            are_resized = self.config.camera_res_scale_factor != 1
            check_pictures([Path(name) for name in dataset.image_filenames], None if are_resized else dataset.cameras)
        check_cameras(dataset.cameras)

    def setup_train(self) -> None:
        """See nerfstudio."""
        # Together: nerfstudio looks masks up where the pictures are.
        if self.config.images_on_gpu is None and torch.device(self.device).type == "cuda" and self._fits():
            kept = self.exclude_batch_keys_from_device
            self.exclude_batch_keys_from_device = [key for key in kept if key not in ("image", "mask")]
        super().setup_train()
        self.train_ray_generator = _quick(self.train_ray_generator)

    def next_pixels(self, step: int) -> dict[str, Tensor]:
        """The batch of nerfstudio's ``next_train``, without its rays: ``image [N, 3 or 4]``, ``indices [N, 3]``."""
        self.train_count += 1
        pictures = next(self.iter_train_image_dataloader)
        assert self.train_pixel_sampler is not None
        return self.train_pixel_sampler.sample(pictures)

    def setup_eval(self) -> None:
        """See nerfstudio."""
        super().setup_eval()
        self.eval_ray_generator = _quick(self.eval_ray_generator)

    def _get_pixel_sampler(self, dataset: InputDataset, num_rays_per_batch: int) -> PixelSampler:
        """See nerfstudio; a sampler that somebody chose, or patches, are left as they are."""
        made = super()._get_pixel_sampler(dataset, num_rays_per_batch)
        if type(made) is not PixelSampler:
            return made
        return ResidentPixelSampler(made.config, self.device, **made.kwargs)

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


def _is_open(dataset: InputDataset) -> bool:
    """Whether a scene goes on behind its box."""
    low, high = dataset.scene_box.aabb
    places = dataset.cameras.camera_to_worlds[..., :3, 3]
    # nerfstudio scales poses so that the outermost camera is on the box's face.
    slack = 1e-3 * (high - low).max()
    is_inside = ((places >= low - slack) & (places <= high + slack)).all(-1)
    if not bool(is_inside.float().mean() > 0.5):
        return False
    return dataset.get_image_float32(0).shape[-1] == 3


def _quick(generator: RayGenerator) -> Any:
    """A generator's rays without its looks at each batch, where its cameras allow that."""
    return PerspectiveRays(generator.cameras) if suits(generator.cameras) else generator
