"""Points of space and time at which the equation of a flow is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from aire_nerfstudio.data.epochs import seed_for


class SpaceTimePoints:
    """Uniform in the cube [-1, 1]^3 and in time; a function of the step.

    Args:
        count: points a step.
        duration: times lie in [0, duration].
        seed: of all of them.
        device: where they are drawn.
    """

    def __init__(self, count: int, duration: float, seed: int, device: torch.device | str) -> None:
        self._count, self._duration, self._seed = count, duration, seed
        self._generator = torch.Generator(device)
        self._device = device

    def at(self, step: int) -> Tensor:
        """``[count, 4]``."""
        self._generator.manual_seed(seed_for(self._seed, step))
        points = torch.rand(self._count, 4, generator=self._generator, device=self._device)
        return torch.cat([2 * points[:, :3] - 1, self._duration * points[:, 3:]], dim=1)
