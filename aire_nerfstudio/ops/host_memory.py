"""Keep freed memory in the process, so that each training step does not ask the system for fresh pages."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The largest value glibc accepts on 64-bit systems.
_LARGEST_MMAP_THRESHOLD = 32 * 1024 * 1024


def keep_freed_memory() -> bool:
    """Let glibc reuse blocks up to 32 MiB instead of unmapping them; 15 to 25 % of a CPU step (``docs/results.md``).

    The peak of the resident memory is unchanged, but it is not given back before the process ends.

    Returns:
        Whether the C library took the setting; False on anything but glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
