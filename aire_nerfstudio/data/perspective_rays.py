"""Rays of perspective cameras: nerfstudio's, to the bit, in a few operations and without a wait."""

from __future__ import annotations

import torch
from nerfstudio.cameras.camera_utils import _EPS, radial_and_tangential_undistort
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor, nn

# Pixels of which undistorted places are kept, 24 bytes each; two cores of a processor need a second for 1.5 million.
MOST_PIXELS = 4 << 20
# Pixels that are undistorted at once.
CHUNK = 1 << 16


def suits(cameras: Cameras) -> bool:
    """Whether :class:`PerspectiveRays` makes these cameras' rays."""
    if cameras.ndim != 1 or cameras.times is not None or cameras.metadata:
        return False
    return bool((cameras.camera_type == CameraType.PERSPECTIVE.value).all())


class PerspectiveRays(nn.Module):
    """As nerfstudio's ``RayGenerator``, which looks at each batch for other kinds of cameras and for distortion.

    On CUDA each such look waits for the device, a dozen times a batch. OpenCV's distortion is undone by ten iterations
    of some thirty operations each: here once for all pixels of each kind of camera, before the first rays, where these
    are no more than :data:`MOST_PIXELS`, and for each batch elsewhere.

    Args:
        cameras: on the device of the rays; :func:`suits` them.
    """

    intrinsics: Tensor
    poses: Tensor
    distortion: Tensor | None
    table: Tensor | None
    kinds: Tensor | None

    def __init__(self, cameras: Cameras) -> None:
        super().__init__()
        parts = torch.cat([cameras.fx, cameras.fy, cameras.cx, cameras.cy], -1)
        self.register_buffer("intrinsics", parts, persistent=False)
        self.register_buffer("poses", cameras.camera_to_worlds, persistent=False)
        distortion = cameras.distortion_params
        distortion = distortion if distortion is not None and bool(distortion.any()) else None
        self.register_buffer("distortion", distortion, persistent=False)
        self.register_buffer("table", None, persistent=False)
        self.register_buffer("kinds", None, persistent=False)
        # Pictures may be a pixel larger than their cameras.
        self._size = int(cameras.height.max()) + 1, int(cameras.width.max()) + 1
        self._is_prepared = distortion is None

    def prepare(self) -> None:
        """Undistort all pixels, once, where they are not too many; the first rays ask for it."""
        if not self._is_prepared and self.distortion is not None:
            self.table, self.kinds = _table(self.intrinsics, self.distortion, *self._size)
        self._is_prepared = True

    def forward(self, ray_indices: Tensor) -> RayBundle:
        """Rays through the middles of pixels.

        Args:
            ray_indices: camera, row and column, int64 ``[N, 3]``, on any device.

        Returns:
            ``origins`` and unit ``directions``, ``[N, 3]``; ``pixel_area`` and ``directions_norm``, ``[N, 1]``.
        """
        origins, directions, norm = self._rays(ray_indices, 3)
        distances = (directions[:, :1] - directions[:, 1:]).square().sum(-1).sqrt()
        return RayBundle(
            origins=origins, directions=directions[:, 0], pixel_area=distances.prod(-1, keepdim=True),
            camera_indices=ray_indices[:, :1].to(origins.device), metadata={"directions_norm": norm[:, 0]},
        )  # fmt: skip

    def lines(self, ray_indices: Tensor) -> tuple[Tensor, Tensor]:
        """The same rays' origins and unit directions alone, ``[N, 3]`` each, for a third of the work."""
        origins, directions, _ = self._rays(ray_indices, 1)
        return origins, directions[:, 0]

    def _rays(self, ray_indices: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Origins ``[N, 3]``; directions of the rays and of ``count - 1`` neighbours ``[N, count, 3]``; their norms."""
        self.prepare()
        camera, row, column = ray_indices.to(self.poses.device).unbind(-1)
        if self.table is not None and self.kinds is not None:
            across, along = self.table[self.kinds[camera], row, column, :, :count].unbind(1)
        else:
            distortion = None if self.distortion is None else self.distortion[camera]
            across, along = _places(self.intrinsics[camera], distortion, row, column, count)
        in_camera = torch.stack([across, along, torch.full_like(across, -1)], -1)
        pose = self.poses[camera]
        in_world = (in_camera[..., None, :] * pose[:, None, :3, :3]).sum(-1)
        norm = torch.linalg.vector_norm(in_world, dim=-1, keepdim=True).clamp_min(float(_EPS))
        return pose[..., :3, 3], in_world / norm, norm


def _places(
    intrinsics: Tensor, distortion: Tensor | None, row: Tensor, column: Tensor, count: int = 3
) -> tuple[Tensor, Tensor]:
    """Where rays through pixels, and through their neighbours to the right and below, meet the plane z = -1.

    Args:
        intrinsics: focal lengths and principal point, ``[N, 4]``.
        distortion: OpenCV's, as nerfstudio orders it, ``[N, 6]``; None: there is none.
        row: ``[N]``.
        column: ``[N]``.
        count: 3, or 1 for the pixels without their neighbours.

    Returns:
        To the right and up, float32 ``[N, count]`` each.
    """
    fx, fy, cx, cy = intrinsics.unbind(-1)
    right, down = column + 0.5 - cx, row + 0.5 - cy
    across, along = (right / fx)[:, None], (down / fy)[:, None]
    if count == 3:
        across = torch.cat([across, ((right + 1) / fx)[:, None], across], -1)
        along = torch.cat([along, along, ((down + 1) / fy)[:, None]], -1)
    if distortion is not None:
        undistorted = radial_and_tangential_undistort(torch.stack([across, along], -1), distortion[:, None])
        across, along = undistorted.unbind(-1)
    # Intrinsics may be float64, as those of nerfstudio's blender-data are; directions are float32 there, too.
    return across.float(), (along * -1).float()


def _table(intrinsics: Tensor, distortion: Tensor, height: int, width: int) -> tuple[Tensor | None, Tensor | None]:
    """:func:`_places` of all pixels of each kind of camera, ``[K, H, W, 2, 3]``, and each camera's kind ``[C]``."""
    described = torch.cat([intrinsics, distortion.to(intrinsics)], -1)
    kinds, of_cameras = torch.unique(described, dim=0, return_inverse=True)
    if len(kinds) * height * width > MOST_PIXELS:
        return None, None
    table = torch.empty(len(kinds), height * width, 2, 3, device=intrinsics.device)
    for kind, filled in zip(kinds, table, strict=True):
        for begin in range(0, height * width, CHUNK):
            pixel = torch.arange(begin, min(begin + CHUNK, height * width), device=intrinsics.device)
            one = kind.expand(len(pixel), -1)
            places = _places(one[:, :4], one[:, 4:].to(distortion.dtype), pixel // width, pixel % width)
            filled[begin : begin + CHUNK] = torch.stack(places, 1)
    return table.view(len(kinds), height, width, 2, 3), of_cameras
