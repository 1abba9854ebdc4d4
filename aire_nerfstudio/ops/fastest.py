"""Which of several ways to compute the same is the fastest here: measured once on the device, as cuDNN's benchmark is.

All ways agree within rounding. Which is the fastest may depend on what else the device does meanwhile: where the same
bits are wanted every time, ``torch.use_deterministic_algorithms(True)`` takes the first way always.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch

# A later way has to take so much less than the first.
MARGIN = 0.95
REPLAYS = 7
_found: dict[Hashable, int] = {}


def fastest(key: Hashable, ways: Sequence[Callable[[], object]]) -> int:
    """The number of the fastest of ``ways``, of which the first always works, on the current CUDA device.

    Measured when ``key`` is new, which takes some launches of each and, before that, what compiling them takes; while a
    graph is captured nothing can be measured, and an unknown key gives the first.
    """
    if len(ways) == 1 or torch.are_deterministic_algorithms_enabled():
        return 0
    key = (torch.cuda.current_device(), key)
    if key not in _found:
        if torch.cuda.is_current_stream_capturing():
            return 0
        times = [milliseconds(way) for way in ways]
        best = min(range(len(ways)), key=times.__getitem__)
        _found[key] = best if times[best] < MARGIN * times[0] else 0
    return _found[key]


def milliseconds(way: Callable[[], object]) -> float:
    """The least time of a few replays of ``way`` as a CUDA graph, without what the host does; inf where it cannot run.

    It cannot where its kernels ask for more than the device has: shared memory, registers, memory.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    times = []
    try:
        with torch.cuda.stream(stream):
            way()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                way()
            for _ in range(REPLAYS):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                graph.replay()
                end.record()
                end.synchronize()
                times.append(begin.elapsed_time(end))
    except _too_large():
        return float("inf")
    except RuntimeError as error:
        if "PassManager" not in str(error):  # what Triton says where its compiler gives up
            raise
        return float("inf")
    finally:
        torch.cuda.current_stream().wait_stream(stream)
    return min(times)


def _too_large() -> tuple[type[Exception], ...]:
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    return CompilationError, OutOfResources, PTXASError, torch.cuda.OutOfMemoryError
