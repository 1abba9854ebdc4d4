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
    # What a link points to is written, and the link stays.
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file that could be replaced; choose another place")
    unfinished = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(suffix=path.suffix, dir=path.parent)
        os.close(handle)
        write(unfinished)
        Path(unfinished).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        Path(unfinished).replace(path)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be written ({error}); choose another place or format") from error
    finally:
        if unfinished:
            Path(unfinished).unlink(missing_ok=True)


def _umask() -> int:
    """The process's; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


# What helps where data are not found.
OF_A_RUN = " (a trained run's data are named from the folder it was trained in: go there)"


def as_looked_for(path: Path) -> str:
    """A path for a message: a relative one together with the folder that it is relative to."""
    return str(path) if path.is_absolute() else f"{path} (looked for in {Path.cwd()})"


def check_file(path: Path, what: str, fix: str) -> None:
    """Refuse what is no file that can be read.

    Args:
        path: the file.
        what: it is, for the message.
        fix: what to do where there is none.

    Raises:
        InputError: it is not there, a folder, empty, or may not be read.
    """
    try:
        if not path.exists():
            raise InputError(f"{what} {as_looked_for(path)} does not exist; {fix}")
        if path.is_dir():
            raise InputError(f"{what} {path} is a folder; {fix}")
        if not path.is_file():  # a pipe would be emptied, or waited for
            raise InputError(f"{what} {path} is no file; {fix}")
        with path.open("rb") as file:
            if not file.read(1):
                raise InputError(f"{path} is empty (0 bytes); replace the file")
    except OSError as error:  # no permission, a name too long
        raise InputError(f"{what} {path} cannot be read ({error.strerror or error}); {fix}") from error


def check_place(option: str, path: Path, is_folder: bool = False) -> None:
    """Refuse a place that cannot be written to, before long work begins.

    Args:
        option: that names it.
        path: a file to be, or where ``is_folder`` a folder.
        is_folder: of the two.

    Raises:
        InputError: the nearest folder that exists is none, or may not be written to; what is there is no file.
    """
    path = Path(os.path.realpath(path))
    try:
        if not is_folder and path.exists() and not path.is_file():
            raise InputError(f"{option} {path} is no file that could be replaced; choose another place")
    except (OSError, ValueError) as error:  # a name too long
        raise InputError(f"{option} {path}: {error}; choose another name") from error
    places = (path.absolute(), *path.absolute().parents) if is_folder else path.absolute().parents
    folder = next(place for place in places if os.path.lexists(place))
    try:
        with tempfile.TemporaryFile(dir=folder):  # permissions alone do not tell
            pass
    except OSError as error:
        raise InputError(f"{option} {path}: {folder} is no folder that can be written to; choose another") from error


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8; see :func:`write_whole`."""

    def write(name: str) -> None:
        Path(name).write_text(text, "utf8")

    write_whole(path, write)
