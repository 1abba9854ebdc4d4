"""What is wrong with a capture that nerfstudio's own parsers read, in a line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nerfstudio
import torch
from nerfstudio.cameras.cameras import Cameras
from PIL import Image

import aire_nerfstudio
from aire_nerfstudio.errors import InputError, first_line
from aire_nerfstudio.files import as_looked_for

THEIRS, OURS = Path(nerfstudio.__file__).parent, Path(aire_nerfstudio.__file__).parent
PARSERS, PICTURES = THEIRS / "data" / "dataparsers", THEIRS / "data" / "datasets"
# Calls every parser, ours and others' as well.
COMMON = PARSERS / "base_dataparser.py"
# What nerfstudio takes as it is, and that is right of these alone.
MODES = ("L", "RGB", "RGBA")
# What nerfstudio's parsers raise: they assert, index and open.
RAISED = (
    AssertionError,
    OSError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    RuntimeError,
    ArithmeticError,
    Image.DecompressionBombError,
)


@contextmanager
def reading(parser: object, data: object) -> Iterator[None]:
    """Turn what a parser of nerfstudio's raises, or a picture that cannot be opened, into a line.

    Args:
        parser: its configuration.
        data: what it reads, for the message.

    Raises:
        InputError: naming the parser, the data and what was raised. What comes from elsewhere, this package or another
            parser among it, passes.
    """
    try:
        yield
    except InputError:
        raise
    except RAISED as error:
        if not _is_of_data(error):
            raise
        name = type(parser).__name__.removesuffix("Config")
        where = as_looked_for(data) if isinstance(data, Path) else data
        raise InputError(
            f"{name} cannot read {where}: {type(error).__name__}: {first_line(error)}; mend the data or the parser's "
            "options, or name the parser of their format (nerfstudio-data, blender-data, colmap ...)"
        ) from error


def check_pictures(named: Sequence[Path], cameras: Cameras | None) -> None:
    """Refuse pictures that are not there, not of their cameras' sizes, or of a kind that nerfstudio misreads.

    Args:
        named: files.
        cameras: of each; None: their sizes are not known.

    Raises:
        InputError: naming the first.
    """
    missing = [path for path in named if not path.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(named)} pictures that scene and parser name are not there, the first "
            f"{missing[0]}; add them, take their frames out, or leave a downscale factor out"
        )
    sizes = None if cameras is None else torch.cat([cameras.width, cameras.height], -1).view(-1, 2).tolist()
    for index, path in enumerate(named):
        try:
            with Image.open(path) as picture:
                size, mode = picture.size, picture.mode
        except (OSError, Image.DecompressionBombError) as error:
            raise InputError(
                f"{path} cannot be opened as a picture ({type(error).__name__}: {first_line(error)}); mend it, or take "
                "its frame out"
            ) from error
        check_mode(path, mode)
        if sizes is None:
            continue
        width, height = sizes[index]
        # Pictures made smaller may have been rounded otherwise.
        if max(abs(size[0] - width), abs(size[1] - height)) > 1:
            raise InputError(
                f"{path} is {size[0]} x {size[1]} pixels and its camera's w x h {width} x {height}; mend what is wrong"
            )


def check_mode(path: Path, mode: str) -> None:
    """Refuse a picture whose numbers nerfstudio would take for other colours: palettes, 16 or 1 bit, CMYK.

    Args:
        path: of the picture.
        mode: Pillow's name for its kind.

    Raises:
        InputError: it is not grey, RGB or RGBA of 8 bits.
    """
    if mode not in MODES:
        raise InputError(
            f"{path} is a picture of mode {mode}, which nerfstudio does not convert; save it as 8-bit grey, RGB or RGBA"
        )


def check_cameras(cameras: Cameras) -> None:
    """Refuse cameras that see nothing.

    Raises:
        InputError: naming the first.
    """
    poses = cameras.camera_to_worlds.flatten(1).isfinite().all(1)
    focal = torch.cat([cameras.fx, cameras.fy], -1).view(len(poses), -1)
    is_sound = poses & (focal.isfinite() & (focal > 0)).all(1)
    if not bool(is_sound.all()):
        first = int((~is_sound).nonzero()[0])
        what = f"focal lengths {focal[first].tolist()}" if bool(poses[first]) else "a pose that is not finite"
        raise InputError(f"camera {first} of the scene has {what}; mend its frame")


def _is_of_data(error: BaseException) -> bool:
    """Whether a parser, or what opens pictures, comes before code of this package on the way out of the error."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return False
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_relative_to(OURS):
            return False
        if file.is_relative_to(PARSERS) and file != COMMON:
            return True
        if file.is_relative_to(PICTURES):
            # Memory that a processor does not have is a RuntimeError as well.
            return not isinstance(error, RuntimeError)
    return False
