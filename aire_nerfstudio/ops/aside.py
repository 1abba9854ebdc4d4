"""Launches of which nothing depends until the end, beside the others: a second branch of a CUDA graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Aside:
    """While a graph is captured, what is run here becomes a branch of its own; elsewhere it is launched in line.

    Without a graph the host is what a step waits for, and a second stream is more for it to do.

    Args:
        device: of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        is_captured = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        self._stream = _stream(device) if is_captured else None
        self._used: list[Any] = []

    def run(self, call: Callable[[], Result], *used: Tensor) -> Result:
        """What ``call`` gives, for use after :meth:`join`; it reads ``used``, which are kept until then."""
        if self._stream is None:
            return call()
        self._used += used
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            return call()

    def join(self) -> None:
        """What comes now comes after all of it."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        self._used.clear()


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
