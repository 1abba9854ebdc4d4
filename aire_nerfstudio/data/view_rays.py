"""Rays through a task's views, for whoever asks a trained run for them: ``ns-export pointcloud``."""

from __future__ import annotations

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle

# As many as ns-export asks for at once where nothing is said.
RAYS_AT_ONCE = 32_768


class ViewRays:
    """Stands where nerfstudio looks for a pixel sampler, and takes the number of rays from there.

    Args:
        cameras: of the views, which all have one size.
        device: where the rays are made.
    """

    def __init__(self, cameras: Cameras, device: torch.device | str) -> None:
        self._cameras = cameras.to(device)
        self._device = device
        self.num_rays_per_batch = RAYS_AT_ONCE

    def draw(self) -> RayBundle:
        """Rays through random pixels of all views, ``[num_rays_per_batch]``."""
        count, cameras = self.num_rays_per_batch, self._cameras
        which = torch.randint(len(cameras), (count,), device=self._device)
        height, width = int(cameras.height.flatten()[0]), int(cameras.width.flatten()[0])
        size = torch.tensor([height, width], device=self._device)
        coordinates = torch.rand(count, 2, device=self._device) * size
        return cameras.generate_rays(camera_indices=which[:, None], coords=coordinates)
