"""A picture as nerfstudio sees a scene: a plane at z = 0, and cameras that look at it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.scene_box import SceneBox
from PIL import Image
from torch import Tensor

from aire_nerfstudio.data.demo_scene import demo_path
from aire_nerfstudio.data.picture import Picture, half_extent, over_background, read_picture
from aire_nerfstudio.errors import InputError, exit_on_bad_input
from aire_nerfstudio.files import write_whole

# With the camera two half sides away the picture fills a view of 53 degrees.
CAMERA_HEIGHT = 2.0
# From the side its nearer edge must still fit.
TILTED_DISTANCE = 2.8
# Azimuth and elevation in degrees of the views beside the frontal one: where a fly-around passes.
TILTS = ((0.0, 0.0), (-30.0, 0.0), (0.0, 25.0), (30.0, 0.0), (0.0, -25.0))
# The first view, straight from the front, shows each pixel once: the one that is scored.
FRONT = 0


def default_picture_path() -> Path:
    """Where the built-in picture, scikit-image's astronaut, is cached."""
    return demo_path().with_name("astronaut.png")


def ensure_default_picture() -> Path:
    """Write the built-in picture unless it is there; 512 x 512, public domain (NASA).

    Raises:
        InputError: it cannot be written.
    """
    path = default_picture_path()
    if not path.is_file():
        from skimage.data import astronaut

        try:
            write_whole(path, Image.fromarray(astronaut()).save)
        except InputError as error:
            raise InputError(f"{error} (AIRE_CACHE names it), or give --data") from error
    return path


@dataclass
class ImageViewsConfig(DataParserConfig):
    """One image file; without --data scikit-image's astronaut."""

    _target: type = field(default_factory=lambda: ImageViews)
    data: Path = field(default_factory=default_picture_path)
    """Any still picture that Pillow opens: 8 or 16 bits, grey, RGB, with or without alpha."""


class ImageViews(DataParser):
    """Virtual cameras in front of the picture that :class:`ImageViewsConfig` names; both splits are the same.

    Attributes:
        path: of the picture.
        picture: read once.
    """

    config: ImageViewsConfig

    @exit_on_bad_input
    def __init__(self, config: ImageViewsConfig) -> None:
        super().__init__(config)
        self.path = Path(config.data)
        if self.path == default_picture_path():
            ensure_default_picture()
        self.picture: Picture = read_picture(self.path)

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        path, picture = self.path, self.picture
        half_width, half_height = half_extent(picture.height, picture.width)
        names = [path.with_name(f"{path.stem}_{name}.png") for name in ("front", "left", "above", "right", "below")]
        return DataparserOutputs(
            image_filenames=names,
            cameras=view_cameras(picture.height, picture.width),
            scene_box=SceneBox(
                aabb=torch.tensor([[-half_width, -half_height, -0.01], [half_width, half_height, 0.01]])
            ),
            metadata={"height": picture.height, "width": picture.width, "channels": picture.channels},
        )


def view_cameras(height: int, width: int) -> Cameras:
    """The frontal camera, whose pixels are the picture's, then the tilted ones, all at the picture's size."""
    poses = []
    for azimuth, elevation in TILTS:
        a, e = math.radians(azimuth), math.radians(elevation)
        right = np.array([math.cos(a), 0.0, -math.sin(a)])
        back = np.array([math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)])
        up = np.cross(back, right)
        distance = TILTED_DISTANCE if azimuth or elevation else CAMERA_HEIGHT
        poses.append(np.stack([right, up, back, distance * back], axis=1))
    return Cameras(
        camera_to_worlds=torch.tensor(np.stack(poses), dtype=torch.float32),
        fx=CAMERA_HEIGHT * max(height, width) / 2,
        fy=CAMERA_HEIGHT * max(height, width) / 2,
        cx=width / 2,
        cy=height / 2,
        width=width,
        height=height,
        camera_type=CameraType.PERSPECTIVE,
    )


def meet_plane(rays: RayBundle, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays meet the picture.

    Args:
        rays: ``[...]`` of them.
        height: of the picture in pixels.
        width: of the picture in pixels.

    Returns:
        Points ``[..., 2]``, distances ``[...]`` in units of the directions' length, and whether each ray meets the
        picture; points and distances are 0 where it does not.
    """
    origin, direction = rays.origins, rays.directions
    is_crossing = direction[..., 2].abs() > 1e-9
    distance = -origin[..., 2] / torch.where(is_crossing, direction[..., 2], torch.ones_like(direction[..., 2]))
    points = origin[..., :2] + distance[..., None] * direction[..., :2]
    half_width, half_height = half_extent(height, width)
    is_inside = (points[..., 0].abs() <= half_width) & (points[..., 1].abs() <= half_height)
    is_met = is_crossing & (distance > 0) & is_inside
    if rays.nears is not None and rays.fars is not None:
        # The viewer's crop box.
        is_met &= (distance >= rays.nears[..., 0]) & (distance <= rays.fars[..., 0])
    zero = torch.zeros((), dtype=points.dtype, device=points.device)
    return torch.where(is_met[..., None], points, zero), torch.where(is_met, distance, zero), is_met


class ImageViewsDataset(InputDataset):
    """What each camera sees of the true picture, over white; for thumbnails and side-by-side renders."""

    def __init__(self, dataparser_outputs: DataparserOutputs, picture: Picture, scale_factor: float = 1.0) -> None:
        super().__init__(dataparser_outputs, scale_factor)
        self._picture = picture

    def get_numpy_image(self, image_idx: int) -> np.ndarray:
        """View ``image_idx``, uint8 ``[H, W, 3]``."""
        truth = over_background(self._picture.floats(), 1.0)
        if image_idx != FRONT:
            height, width = self._picture.height, self._picture.width
            rays = self.cameras.generate_rays(camera_indices=image_idx, keep_shape=True)
            points, _, is_met = meet_plane(rays, height, width)
            half_width, half_height = half_extent(height, width)
            grid = points * points.new_tensor([1 / half_width, -1 / half_height])
            sampled = torch.nn.functional.grid_sample(
                truth.permute(2, 0, 1)[None], grid[None], align_corners=False, padding_mode="border"
            )[0].permute(1, 2, 0)
            truth = torch.where(is_met[..., None], sampled, torch.ones_like(sampled))
        return (truth * 255).round().to(torch.uint8).numpy()
