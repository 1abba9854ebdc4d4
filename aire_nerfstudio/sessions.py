"""How a run was started, with what and on what: ``run.json`` beside the run's config.yml."""

from __future__ import annotations

import json
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
PACKAGES = ("aire-nerfstudio", "nerfstudio", "numpy")


class SessionLog:
    """One training process's entry in ``run.json``; those of earlier processes stay.

    Args:
        folder: the run's.
        step: optimizer steps done before this process; entries of what is trained anew are dropped.
        device: that trains, such as ``cuda:0``.
        seed: of the run.
        resumed: folder of the run that is resumed, if it is another's.
    """

    def __init__(self, folder: Path, step: int, device: str, seed: int, resumed: Path | None = None) -> None:
        self._path = folder / FILE
        self._began: float | None = None
        command = [Path(sys.argv[0]).name, *sys.argv[1:]]
        self._entry: dict[str, Any] = {
            "command": shlex.join(command),
            "folder": os.getcwd(),
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "from_step": step,
            "to_step": step,
            "seconds": 0.0,
            "seed": seed,
            **environment(device),
        }
        known = read_sessions(folder) or ([] if resumed is None else read_sessions(resumed))
        self._earlier = [entry for entry in known if entry.get("from_step", 0) < step]

    def begin(self) -> None:
        """From now on it trains."""
        self._began = time.monotonic()

    def write(self, step: int) -> None:
        """Note how far training has come: optimizer steps done."""
        self._entry["to_step"] = step
        self._entry["seconds"] = 0.0 if self._began is None else round(time.monotonic() - self._began, 3)
        text = json.dumps([*self._earlier, self._entry], indent=1)
        write_text(self._path, text + "\n")


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """Entries of a run's ``run.json``, first process first; empty where there is none.

    Raises:
        InputError: it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text("utf8"))
        if not isinstance(entries, list) or not all(isinstance(e, dict) and "command" in e for e in entries):
            raise ValueError("it is no list of sessions")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it") from error
    return entries


def environment(device: str) -> dict[str, Any]:
    """Versions and hardware, as plain data."""
    return {
        **machine(device),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "matmul_precision": matmul_precision(),
    }
