"""The order in which a fixed set of samples is drawn: a function of seed and step alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def seed_for(seed: int, number: int) -> int:
    """A seed of its own for each number (a step, an epoch) of a seed, as torch's generators take it."""
    return (seed * 1_000_003 + number) % 2**63


class EpochOrder:
    """Each epoch is a permutation of its own, so that a resumed run draws what an uninterrupted one would.

    Args:
        count: samples, at least 1.
        batch_size: samples a step, at least 1, or all.
        seed: of the order.
        device: where the permutations are made.
        fills: the last batch of an epoch is filled from the next one's order, so that all are full and an epoch is
            ``samples / batch`` steps; else it holds what is left.
    """

    def __init__(self, count: int, batch_size: int, seed: int, device: torch.device | str, fills: bool = False) -> None:
        self._fills = fills
        self._count, self._batch_size = count, min(batch_size, count)
        self._seed, self._device = seed, device
        self._epoch = -1
        self._order: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Samples in a full batch."""
        return self._batch_size

    @property
    def steps_per_epoch(self) -> int:
        """``ceil(samples / batch)``."""
        return math.ceil(self._count / self._batch_size)

    def at(self, step: int) -> Tensor:
        """Which samples the batch of a step (0 or later) holds, int64 ``[B]`` on the device."""
        if not self._fills:
            epoch, position = divmod(step, self.steps_per_epoch)
            return self._ordered(epoch)[position * self._batch_size : (position + 1) * self._batch_size]
        epoch, begin = divmod(step * self._batch_size, self._count)
        drawn = self._ordered(epoch)[begin : begin + self._batch_size]
        missing = self._batch_size - len(drawn)
        return torch.cat([drawn, self._ordered(epoch + 1)[:missing]]) if missing else drawn

    def _ordered(self, epoch: int) -> Tensor:
        """:meth:`whole`, kept from step to step."""
        if epoch != self._epoch or self._order is None:
            self._order, self._epoch = self.whole(epoch), epoch
        return self._order

    def whole(self, epoch: int) -> Tensor:
        """All samples in the order of an epoch (0 or later), int64 ``[N]`` on the device."""
        generator = torch.Generator(self._device).manual_seed(seed_for(self._seed, epoch))
        return torch.randperm(self._count, generator=generator, device=self._device)
