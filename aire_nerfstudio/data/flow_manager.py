"""The samples of a surface at time 0, and points of space-time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aire_nerfstudio.data.space_time import SpaceTimePoints
from aire_nerfstudio.data.surface_manager import SurfaceDataManager, SurfaceDataManagerConfig
from aire_nerfstudio.distributed import share
from aire_nerfstudio.errors import InputError, exit_on_bad_input


@dataclass
class FlowDataManagerConfig(SurfaceDataManagerConfig):
    """One surface, and the span of time over which it flows."""

    _target: type = field(default_factory=lambda: FlowDataManager)
    on_surface: int = 15_000
    """Points of the surface a training step, at time 0."""
    off_surface: int = 15_000
    """Points of the cube a training step, at time 0."""
    space_time: int = 30_000
    """Points of space and time a training step."""
    duration: float = 0.2
    """The flow is learned for times in [0, duration]."""


class FlowDataManager(SurfaceDataManager):
    """Batches of points ``[N + M + P, 4]``: on the surface and off it at time 0, then anywhere in space-time."""

    config: FlowDataManagerConfig

    @exit_on_bad_input
    def __init__(self, config: FlowDataManagerConfig, device: Any = "cpu", **kwargs: Any) -> None:
        if config.space_time < 1:
            raise InputError(f"space_time is {config.space_time}; it must be at least 1")
        if not 0 < config.duration < float("inf"):
            raise InputError(f"duration is {config.duration}; it must be positive")
        super().__init__(config, device=device, **kwargs)
        self._anywhere = SpaceTimePoints(config.space_time, config.duration, torch.initial_seed(), device)
        self.train_dataset.metadata["duration"] = config.duration

    def samples_at(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The samples of a step, a function of it; ``normals`` and ``distances`` are those at time 0."""
        points, batch = super().samples_at(step)
        now = torch.nn.functional.pad(points, (0, 1))
        return torch.cat([now, share(self._anywhere.at(step))]), batch

    def get_train_rays_per_batch(self) -> int:
        """Points a training step."""
        return super().get_train_rays_per_batch() + self.config.space_time
