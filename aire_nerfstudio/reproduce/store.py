"""Finished fits on disk: one JSON file each, named by its settings, so that none is run twice."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.reproduce.image_fit import ImageFit


class Store:
    """A folder of finished fits.

    Args:
        folder: made when the first fit is saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, fit: ImageFit) -> Path:
        """Where the fit's figures are, or will be."""
        return self._folder / f"{fit.key()}.json"

    def record_path(self, fit: ImageFit) -> Path:
        """Where the arrays for figures are, or will be."""
        return self._folder / f"{fit.key()}.npz"

    def load(self, fit: ImageFit) -> dict[str, Any] | None:
        """A finished fit's figures, None where it is still to be run.

        Raises:
            InputError: the file is damaged.
        """
        path = self.path(fit)
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text())["figures"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged ({type(error).__name__}); delete it to run the fit again") from error

    def save(self, fit: ImageFit, figures: dict[str, Any], device: str) -> None:
        """Keep a finished fit; the file appears only when whole."""
        self._folder.mkdir(parents=True, exist_ok=True)
        entry = {
            "fit": dataclasses.asdict(fit),
            "figures": figures,
            "machine": machine(device),
            "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        unfinished = self.path(fit).with_suffix(f".{os.getpid()}.part")
        unfinished.write_text(json.dumps(entry, indent=1))
        unfinished.replace(self.path(fit))


def machine(device: str) -> dict[str, str]:
    """What the fits ran on."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    return {"device": name, "torch": torch.__version__, "python": platform.python_version()}


def _processor() -> str:
    """The processor's name and the cores this process may use."""
    name = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"
