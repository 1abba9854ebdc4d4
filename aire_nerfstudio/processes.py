"""Commands with processes of their own: they end together, however the command is ended, and share no folder."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from aire_nerfstudio.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Linux's prctl(2): the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Within, what ``kill``, ``timeout`` or a closed terminal sends ends a command as Ctrl-C does.

    Python's own answer to it is to end at once: what the command has started would go on.
    """
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        names = []  # signals are the main thread's
    before = {}
    for name in names:
        number = getattr(signal, name)
        # Ignored, as under nohup: left so.
        if signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def end_with_parent() -> None:
    """Let this process be killed when the one that started it ends, even by SIGKILL (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def alone_in(folder: Path, option: str) -> Iterator[None]:
    """Within, no other process is in here with the same folder.

    Args:
        folder: that is there.
        option: that names it, for the message.

    Raises:
        InputError: one is.
    """
    if fcntl is None:
        yield
        return
    # The folder itself: no file is left, and the lock goes with the process, however that ends.
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{option} {folder} is in use by another command; wait for it, or choose another folder"
            ) from error
        yield
    finally:
        os.close(handle)
