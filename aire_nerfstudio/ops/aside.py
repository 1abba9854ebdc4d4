"""Launches of which nothing depends until the end, beside the others: a second branch of a CUDA graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
# So many calls may be under way: what they were given is not given back before they are joined.
MOST = 8


class Aside:
    """While a graph is captured, what is run here becomes a branch of its own; elsewhere it is launched in line.

    Without a graph the host is what a step waits for, and a second stream is more for it to do. To be left as a
    context: a capture cannot end, and torch's allocator not go on, while a branch is open.

    Args:
        device: of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        is_captured = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        self._stream = _beside_current(device) if is_captured else None
        self._calls = 0
        self._used: list[Any] = []

    def __enter__(self) -> Aside:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Join, whatever happened."""
        self.join()

    def run(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """What ``call`` gives of ``arguments``, for use after :meth:`join`; they are kept until then.

        It must not read other tensors: the memory of one that nobody keeps is given to what is launched meanwhile.
        """
        if self._stream is None:
            return call(*arguments)
        if self._calls == MOST:
            self.join()
        self._calls += 1
        self._used += arguments
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            return call(*arguments)

    def join(self) -> None:
        """What comes now comes after all of it."""
        if self._stream is not None and self._calls:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        self._calls = 0
        self._used.clear()


def _beside_current(device: torch.device) -> Any:
    """A stream that is not the current one: torch gives out 32 in turn, to captures as well."""
    current = torch.cuda.current_stream(device)
    return next(stream for stream in _streams(device) if stream != current)


@functools.cache
def _streams(device: torch.device) -> tuple[Any, Any]:
    return torch.cuda.Stream(device), torch.cuda.Stream(device)
