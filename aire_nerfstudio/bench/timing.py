"""Timing of several ways to do the same thing, in turn, so that a busy machine is unfair to none."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timed:
    """One way's times.

    Attributes:
        milliseconds: of each repetition.
    """

    milliseconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """In milliseconds."""
        return statistics.median(self.milliseconds)

    @property
    def span(self) -> tuple[float, float]:
        """Fastest and slowest repetition in milliseconds."""
        return min(self.milliseconds), max(self.milliseconds)


def time_in_turn(ways: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, Timed]:
    """Run each way once to warm up, then all of them in turn, ``repeats`` times.

    Args:
        ways: by name.
        repeats: at least 1.
        device: waited for around each.
    """

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            wait()
            begin = time.perf_counter()
            way()
            wait()
            times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: Timed(tuple(values)) for name, values in times.items()}
