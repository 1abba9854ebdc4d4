"""What a step adds to the memory in use at its highest."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_megabytes(way: Callable[[], object], device: str) -> float | None:
    """Highest memory while ``way`` runs over what was in use before, in MiB; None where the system does not tell.

    On CUDA that of torch's allocator, on Linux the process's resident memory.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        way()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    library = ctypes.util.find_library("c")
    if not STATUS.is_file() or library is None:
        return None
    trim = getattr(ctypes.CDLL(library), "malloc_trim", None)
    if trim is None:
        return None
    trim(0)  # what was freed must be asked for again, and is then counted
    try:
        CLEAR.write_text("5")  # the highest is forgotten
    except OSError:
        return None
    before = _kilobytes("VmRSS")
    way()
    return max(0, _kilobytes("VmHWM") - before) / 1024


def _kilobytes(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])
