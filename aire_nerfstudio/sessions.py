"""How a run was started, with what and on what: ``run.json`` beside the run's config.yml."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import sys
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.files import write_text
from aire_nerfstudio.machine import machine
from aire_nerfstudio.ops.processors import matmul_precision

FILE = "run.json"
LARGEST = 1 << 22
# What a report shows of a session, and its type.
KINDS: dict[str, type] = {
    **dict.fromkeys(("command", "started", "device", "matmul_precision", "system", "python", "torch"), str),
    **dict.fromkeys(("from_step", "to_step", "threads", "seed"), int),
    **{"seconds": float, "packages": dict},
}
PACKAGES = ("aire-nerfstudio", "nerfstudio", "numpy")


class SessionLog:
    """One training process's entry in ``run.json``; those of earlier processes stay.

    Args:
        folder: the run's.
        device: that trains, such as ``cuda:0``.
        seed: of the run.
        resumed: folder of the run that is resumed, if it is another's.

    Raises:
        InputError: the sessions of one of them are damaged.
    """

    def __init__(self, folder: Path, device: str, seed: int, resumed: Path | None = None) -> None:
        self._path = folder / FILE
        self._began: float | None = None
        command = [Path(sys.argv[0]).name, *sys.argv[1:]]
        self._entry: dict[str, Any] = {
            "command": shlex.join(command),
            "folder": os.getcwd(),
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "from_step": 0,
            "to_step": 0,
            "seconds": 0.0,
            "seed": seed,
            **environment(device),
        }
        self._earlier = read_sessions(folder) or ([] if resumed is None else read_sessions(resumed))

    def begin(self, step: int) -> None:
        """From now on it trains, ``step`` optimizer steps being done.

        What is trained anew is taken out of earlier entries, which keep their share of the time.
        """
        self._entry["from_step"] = self._entry["to_step"] = step
        self._earlier = [_until(step, entry) for entry in self._earlier if entry["from_step"] < step]
        self._began = time.monotonic()

    def write(self, step: int) -> None:
        """Note how far training has come: optimizer steps done."""
        self._entry["to_step"] = step
        self._entry["seconds"] = 0.0 if self._began is None else round(time.monotonic() - self._began, 3)
        text = json.dumps([*self._earlier, self._entry], indent=1)
        write_text(self._path, text + "\n")


def _until(step: int, entry: dict[str, Any]) -> dict[str, Any]:
    first, last = entry["from_step"], entry["to_step"]
    if last <= step:
        return entry
    share = (step - first) / (last - first)
    return {**entry, "to_step": step, "seconds": round(entry["seconds"] * share, 3)}


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """Entries of a run's ``run.json``, first process first; empty where there is none.

    Raises:
        InputError: it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, which no list of sessions has")
        entries = json.loads(path.read_text("utf8"))
        if not isinstance(entries, list):
            raise ValueError("it is no list of sessions")
        for entry in entries:
            _check_entry(entry)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it") from error
    return entries


def _check_entry(entry: Any) -> None:
    """Raise ValueError where an entry, which may be a stranger's, is not of the form that is written here."""
    if not isinstance(entry, dict):
        raise ValueError("it is no list of sessions")
    for name, kind in KINDS.items():
        value = entry.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name} of a session is {str(value)[:80]!r}, not {kind.__name__}")
        if isinstance(value, (int, float)) and not 0 <= value < math.inf:
            raise ValueError(f"{name} of a session is {value}; it must be 0 or more and finite")


def environment(device: str) -> dict[str, Any]:
    """Versions and hardware, as plain data."""
    return {
        **machine(device),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "matmul_precision": matmul_precision(),
    }
