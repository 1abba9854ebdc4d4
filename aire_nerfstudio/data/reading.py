"""What nerfstudio's own parsers say of data that they cannot read, in a line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nerfstudio
import torch

import aire_nerfstudio
from aire_nerfstudio.errors import InputError, first_line

THEIRS, OURS = Path(nerfstudio.__file__).parent, Path(aire_nerfstudio.__file__).parent
PARSERS, PICTURES = THEIRS / "data" / "dataparsers", THEIRS / "data" / "datasets"
# Calls every parser, ours and others' as well.
COMMON = PARSERS / "base_dataparser.py"
# What nerfstudio's parsers raise: they assert, index and open.
RAISED = (AssertionError, OSError, KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError)


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
        raise InputError(
            f"{name} cannot read {data}: {type(error).__name__}: {first_line(error)}; mend the data, or name the "
            "parser of their format after the method's options (nerfstudio-data, blender-data, colmap ...)"
        ) from error


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
