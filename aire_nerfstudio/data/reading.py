"""What nerfstudio's own parsers say of data that they cannot read, in a line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

from aire_nerfstudio.errors import InputError, first_line

# Where nerfstudio reads files, as folders of a path.
READERS = ({"nerfstudio", "dataparsers"}, {"nerfstudio", "datasets"})
# What its parsers raise: they assert, index and open.
RAISED = (AssertionError, OSError, KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError)


@contextmanager
def reading(parser: object, data: object) -> Iterator[None]:
    """Turn what a parser of nerfstudio's raises, or a picture that it named, into a line.

    Args:
        parser: its configuration.
        data: what it reads, for the message.

    Raises:
        InputError: naming the parser, the data and what was raised. What comes from elsewhere passes.
    """
    try:
        yield
    except InputError:
        raise
    except RAISED as error:
        files = [PurePath(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
        if not any(folders <= set(file.parts) for folders in READERS for file in files):
            raise
        name = type(parser).__name__.removesuffix("Config")
        raise InputError(
            f"{name} cannot read {data}: {type(error).__name__}: {first_line(error)}; mend the data, or name the "
            "parser of their format after the method's options (nerfstudio-data, blender-data, colmap ...)"
        ) from error
