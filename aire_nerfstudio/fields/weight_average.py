"""The moving average of a field's weights, with which it is evaluated and rendered."""

from __future__ import annotations

import torch
from torch import nn

# Updates of the average in a run where the configuration leaves it open: the paper's epochs.
UPDATES = 1500


class WeightAverage:
    """When and how the average follows the live field.

    Args:
        decay: in [0, 1).
        every: optimizer steps between two updates; None: :data:`UPDATES` in the run.
    """

    def __init__(self, decay: float, every: int | None) -> None:
        self._decay, self._is_open = decay, every is None
        self.every = every or 1

    def fit(self, total_steps: int) -> None:
        """Choose the steps between updates for a run of so many, where they are left open."""
        if self._is_open:
            self.every = max(1, round(total_steps / UPDATES))

    @torch.no_grad()
    def update(self, average: nn.Module, live: nn.Module, step: int) -> None:
        """Let the average follow after the optimizer step ``step``, where one is due."""
        if (step + 1) % self.every:
            return
        # Early on it follows quickly, as torch_ema does, so that it does not drag the initial weights along.
        updates = (step + 1) // self.every
        decay = min(self._decay, (1 + updates) / (10 + updates))
        for mean, parameter in zip(average.parameters(), live.parameters(), strict=True):
            mean.lerp_(parameter, 1 - decay)
