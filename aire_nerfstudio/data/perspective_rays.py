"""Rays of perspective cameras without distortion: nerfstudio's, to the bit, in a few operations and without a wait."""

from __future__ import annotations

import torch
from nerfstudio.cameras.camera_utils import _EPS
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor, nn


def suits(cameras: Cameras) -> bool:
    """Whether :class:`PerspectiveRays` makes these cameras' rays."""
    if cameras.ndim != 1 or cameras.times is not None or cameras.metadata:
        return False
    if not bool((cameras.camera_type == CameraType.PERSPECTIVE.value).all()):
        return False
    return cameras.distortion_params is None or not bool(cameras.distortion_params.any())


class PerspectiveRays(nn.Module):
    """As nerfstudio's ``RayGenerator``, which looks at each batch for other kinds of cameras and for distortion.

    On CUDA each such look waits for the device, a dozen times a batch.

    Args:
        cameras: on the device of the rays; :func:`suits` them.
    """

    intrinsics: Tensor
    poses: Tensor

    def __init__(self, cameras: Cameras) -> None:
        super().__init__()
        parts = torch.cat([cameras.fx, cameras.fy, cameras.cx, cameras.cy], -1)
        self.register_buffer("intrinsics", parts, persistent=False)
        self.register_buffer("poses", cameras.camera_to_worlds, persistent=False)

    def forward(self, ray_indices: Tensor) -> RayBundle:
        """Rays through the middles of pixels.

        Args:
            ray_indices: camera, row and column, int64 ``[N, 3]``, on any device.

        Returns:
            ``origins`` and unit ``directions``, ``[N, 3]``; ``pixel_area`` and ``directions_norm``, ``[N, 1]``.
        """
        camera, row, column = ray_indices.to(self.poses.device).unbind(-1)
        fx, fy, cx, cy = self.intrinsics[camera].unbind(-1)
        right, down = column + 0.5 - cx, row + 0.5 - cy
        # Through the pixel, and through its neighbours to the right and below.
        across = torch.stack([right / fx, (right + 1) / fx, right / fx])
        along = torch.stack([down / fy, down / fy, (down + 1) / fy]) * -1
        # Intrinsics may be float64, as those of nerfstudio's blender-data are; directions are float32 there, too.
        in_camera = torch.stack([across, along, torch.full_like(across, -1)], -1).float()
        pose = self.poses[camera]
        in_world = (in_camera[..., None, :] * pose[..., :3, :3]).sum(-1)
        norm = torch.linalg.vector_norm(in_world, dim=-1, keepdim=True).clamp_min(float(_EPS))
        directions = in_world / norm
        distances = (directions[0] - directions[1:]).square().sum(-1).sqrt()
        return RayBundle(
            origins=pose[..., :3, 3], directions=directions[0], pixel_area=(distances[0] * distances[1])[..., None],
            camera_indices=camera[..., None], metadata={"directions_norm": norm[0]},
        )  # fmt: skip
