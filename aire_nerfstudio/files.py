"""Files that appear only when whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from aire_nerfstudio.errors import InputError


def write_whole(path: Path, write: Callable[[str], None]) -> None:
    """Write a file beside its place, then move it there.

    Args:
        path: where to; the folder is made.
        write: writes to the name it is given, which has the same suffix.

    Raises:
        InputError: it cannot be written.
    """
    unfinished = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(suffix=path.suffix, dir=path.parent)
        os.close(handle)
        write(unfinished)
        Path(unfinished).chmod(0o644)
        Path(unfinished).replace(path)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be written ({error}); choose another place or format") from error
    finally:
        if unfinished:
            Path(unfinished).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8; see :func:`write_whole`."""

    def write(name: str) -> None:
        Path(name).write_text(text, "utf8")

    write_whole(path, write)
