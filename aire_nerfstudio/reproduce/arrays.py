"""Arrays that pictures need, beside a fit's figures: one ``.npz`` a fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from aire_nerfstudio.errors import InputError


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an ``.npz``; the file appears only when whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    unfinished.replace(path)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """What :func:`save_arrays` wrote.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        with np.load(path) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except Exception as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}); delete it to run the fit again") from error
