"""Checkpoint files: which one is meant, whether it fits, and how one is written whole or not at all."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, overload

import torch
from nerfstudio.engine.trainer import TrainerConfig

from aire_nerfstudio.checkpoint_file import read_checkpoint
from aire_nerfstudio.errors import InputError, exit_on_bad_input
from aire_nerfstudio.files import as_looked_for
from aire_nerfstudio.report.facts import CHECKPOINTS


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where a run keeps the checkpoint after iteration ``step``."""
    return folder / f"step-{step:09d}.ckpt"


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, which appears under its name only when whole.

    Args:
        path: in the run's folder of checkpoints, which is made.
        state: what it holds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder: nerfstudio takes any name in it for a checkpoint's.
    unfinished = path.parent.parent / f"{path.stem}.part"
    try:
        torch.save(state, unfinished)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def remove_others(path: Path) -> None:
    """Remove the checkpoints beside this one."""
    for old in path.parent.glob("*.ckpt"):
        if old != path:
            old.unlink()


@overload
def folder_to_load(given: None) -> None: ...
@overload
def folder_to_load(given: Path) -> Path: ...
def folder_to_load(given: Path | None) -> Path | None:
    """The folder of checkpoints that --load-dir means: itself, or of a run's folder the one in it."""
    if given is None:
        return None
    inside = Path(given) / CHECKPOINTS
    return inside if inside.is_dir() else Path(given)


def checkpoint_to_load(config: TrainerConfig) -> Path | None:
    """The file that --load-dir, --load-step and --load-checkpoint name, if any.

    Raises:
        InputError: the folder, or the step in it, is not there.
    """
    if config.load_dir is not None and config.load_checkpoint is not None:
        raise InputError(
            f"--load-dir {config.load_dir} and --load-checkpoint {config.load_checkpoint} exclude each other; give one"
        )
    if config.load_dir is not None:
        folder = folder_to_load(config.load_dir)
        if not folder.is_dir():
            raise InputError(f"--load-dir {as_looked_for(folder)} is not a folder; give a run's folder")
        steps = sorted(int(f.stem.split("-")[1]) for f in folder.glob("step-*.ckpt") if f.stem[5:].isdigit())
        if not steps:
            raise InputError(f"--load-dir {folder} holds no step-*.ckpt; give a run's folder")
        step = config.load_step if config.load_step is not None else steps[-1]
        if step not in steps:
            raise InputError(f"--load-step {step} is not in {folder}; it has the steps {steps}")
        # nerfstudio takes the last of all files there; name ours, so that a stray file does no harm.
        config.load_step = step
        return checkpoint_path(folder, step)
    if config.load_checkpoint is not None:
        return Path(config.load_checkpoint)
    return None


@exit_on_bad_input
def check_evaluated(folder: Path, step: int | None) -> None:
    """Look at the file that nerfstudio's ``eval_load_checkpoint`` is about to open, found as it finds it."""
    names = [path.name for path in folder.iterdir()]
    strange = [name for name in names if not re.fullmatch(r"step-\d{9,}\.ckpt", name)]
    if strange:
        raise InputError(f"{folder} holds {strange[0]}, no checkpoint's name (step-000000000.ckpt); move it away")
    steps = [int(name[5:-5]) for name in names] if step is None else [step]
    if steps:
        read_checkpoint(checkpoint_path(folder, max(steps)))


def check_checkpoint(path: Path, expected: set[str]) -> dict[str, Any]:
    """What a checkpoint holds; refuses one that cannot be resumed from, before anything is changed.

    Args:
        path: the file.
        expected: keys of the pipeline's state dict.

    Raises:
        InputError: missing, truncated, holding anything but plain data, or written by another method.
    """
    saved = read_checkpoint(path)
    missing = sorted(key for key in expected if key not in saved["pipeline"])
    extra = sorted(key for key in saved["pipeline"] if key not in expected)
    if missing or extra:
        average = "_model.field_average."
        if all(key.startswith(average) for key in (*missing, *extra)):
            raise InputError(
                f"checkpoint {path} has {'no' if missing else 'a'} weight average, and this run "
                f"{'has one' if missing else 'has none'}; add --pipeline.model.ema-decay {'0' if missing else '0.95'}"
            )
        raise InputError(
            f"checkpoint {path} belongs to another method or depth: {len(missing)} entries missing"
            f"{f' (e.g. {missing[0]})' if missing else ''}, {len(extra)} unknown"
            f"{f' (e.g. {extra[0]})' if extra else ''}"
        )
    return saved
