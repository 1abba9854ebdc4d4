"""Timing of several ways to do the same thing, in turn, so that a busy machine is unfair to none."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

# On CUDA: runs before any is timed, seconds that a repetition takes at least, and runs that it is at most.
WARM_UP, LEAST, MOST_RUNS = 4, 0.02, 200


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


def time_in_turn(
    ways: Mapping[str, Callable[[], object]], repeats: int, device: str
) -> tuple[dict[str, Timed], dict[str, str]]:
    """Warm each way up, then run all of them in turn, ``repeats`` times.

    A repetition is one run on a processor. On CUDA it is as many as take :data:`LEAST`, without waiting between them,
    as in training: what the host does meanwhile, and no single wait for the device, is then in the time.

    Args:
        ways: by name.
        repeats: at least 1.
        device: waited for around each repetition.

    Returns:
        Times of a run, by name, and why each way without any has none.
    """
    is_cuda = device.startswith("cuda")

    def seconds(way: Callable[[], object], runs: int) -> float:
        if is_cuda:
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        for _ in range(runs):
            way()
        if is_cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    runs: dict[str, int] = {}
    failures: dict[str, str] = {}
    times: dict[str, list[float]] = {}
    for name, way in ways.items():
        try:
            # Graphs are captured in the second or third run.
            for _ in range(WARM_UP if is_cuda else 1):
                way()
            runs[name] = min(MOST_RUNS, math.ceil(LEAST / seconds(way, 1))) if is_cuda else 1
            times[name] = []
        except Exception as error:  # a compiler or a library that somebody else wrote, or memory: the others go on
            failures[name] = reason(error)
    for _ in range(repeats):
        for name in list(times):
            try:
                times[name].append(1e3 * seconds(ways[name], runs[name]) / runs[name])
            except Exception as error:
                del times[name]
                failures[name] = reason(error)
    return {name: Timed(tuple(values)) for name, values in times.items()}, failures


def reason(error: Exception) -> str:
    """An exception in a line."""
    said = str(error).strip()
    return f"{type(error).__name__}: {said.splitlines()[0][:200]}" if said else type(error).__name__
