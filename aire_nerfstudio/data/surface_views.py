"""A surface as nerfstudio sees a scene: cameras on a ring around it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.utils.rich_utils import CONSOLE

from aire_nerfstudio.data.demo_scene import bunny_path
from aire_nerfstudio.data.mesh_view import focal_length, ring_poses, view_mesh
from aire_nerfstudio.data.surface import Surface, read_surface
from aire_nerfstudio.errors import InputError, exit_on_bad_input

# Stands for the bunny in the pymeshlab wheel, wherever that is installed.
DEFAULT_SHAPE = Path("pymeshlab/bunny.obj")


@dataclass
class SurfaceViewsConfig(DataParserConfig):
    """One mesh, or points with normals; without --data the bunny of the pymeshlab wheel."""

    _target: type = field(default_factory=lambda: SurfaceViews)
    data: Path = DEFAULT_SHAPE
    """PLY, OBJ, STL, OFF; XYZ or PLY with points and normals."""
    up: Literal["y", "z"] = "y"
    """The axis about which the cameras stand."""
    views: int = 8
    """Cameras on the ring."""
    view_size: int = 256
    """Pixels a side of a view."""


class SurfaceViews(DataParser):
    """Virtual cameras around the shape that :class:`SurfaceViewsConfig` names; both splits are the same.

    Attributes:
        path: of the shape.
        surface: read once, in the cube [-1, 1]^3.
    """

    config: SurfaceViewsConfig

    @exit_on_bad_input
    def __init__(self, config: SurfaceViewsConfig) -> None:
        super().__init__(config)
        for name in ("views", "view_size"):
            if getattr(config, name) < 1:
                raise InputError(f"{name} is {getattr(config, name)}; it must be at least 1")
        # Only now: that pymeshlab is missing must not stop the commands of other methods.
        self.path = bunny_path() if Path(config.data) == DEFAULT_SHAPE else Path(config.data)
        self.surface: Surface = read_surface(self.path)
        for note in self.surface.notes:
            CONSOLE.print(f"{config.data}: {note}", markup=False)

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        path = Path(self.config.data)
        return DataparserOutputs(
            image_filenames=[path.with_name(f"{path.stem}_{index}.png") for index in range(self.config.views)],
            cameras=ring_cameras(self.config.views, self.config.view_size, self.config.up),
            scene_box=SceneBox(aabb=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])),
            metadata={"surface": self.surface},
        )


def ring_cameras(count: int, size: int, up: Literal["y", "z"]) -> Cameras:
    """Cameras that look at the origin from a ring slightly above it, ``size`` pixels a side."""
    focal = focal_length(size)
    return Cameras(
        camera_to_worlds=torch.tensor(ring_poses(count, up), dtype=torch.float32),
        fx=focal,
        fy=focal,
        cx=size / 2,
        cy=size / 2,
        width=size,
        height=size,
        camera_type=CameraType.PERSPECTIVE,
    )


class SurfaceViewsDataset(InputDataset):
    """What each camera sees of the true surface, over white."""

    def __init__(self, dataparser_outputs: DataparserOutputs, surface: Surface, scale_factor: float = 1.0) -> None:
        super().__init__(dataparser_outputs, scale_factor)
        self._surface = surface

    def get_numpy_image(self, image_idx: int) -> np.ndarray:
        """View ``image_idx``, uint8 ``[H, W, 3]``, ray-cast."""
        rays = self.cameras.generate_rays(camera_indices=image_idx, keep_shape=True)
        origins, directions = (t.reshape(-1, 3).double().numpy() for t in (rays.origins, rays.directions))
        image = view_mesh(self._surface.vertices, self._surface.faces, origins, directions)
        return (image.reshape(rays.origins.shape) * 255).round().astype(np.uint8)
