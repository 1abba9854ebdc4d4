"""Finished fits on disk: one JSON file each, named by its settings, so that none is run twice."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.machine import code, machine
from aire_nerfstudio.ops.backend import SINE_NETWORK, is_off
from aire_nerfstudio.reproduce.fit import Fit


class Store:
    """A folder of finished fits; a fit is the same if settings, its file's bytes, kind of device and precision are.

    Args:
        folder: made when the first fit is saved.
        sources: folder of the pictures or shapes.
        device: where fits run: ``cpu``, ``cuda``, ``cuda:1``...
        precision: of products, as ``torch.set_float32_matmul_precision`` has it.
        cuda_graph: steps are CUDA graphs; what a fit gives is the same but for rounding.
    """

    def __init__(
        self, folder: Path, sources: Path, device: str, precision: str = "highest", cuda_graph: bool = False
    ) -> None:
        self._folder, self._sources, self._device = folder, sources, device
        self.precision, self.cuda_graph = precision, cuda_graph
        self._digests: dict[str, str] = {}

    def key(self, fit: Fit) -> str:
        """The name of a fit's files, 16 hexadecimal digits."""
        if fit.source not in self._digests:
            self._digests[fit.source] = hashlib.sha256((self._sources / fit.source).read_bytes()).hexdigest()
        text = f"{fit.key()} {self._digests[fit.source]} {self._device.split(':')[0]}"
        # Not there for float32, so that fits of earlier versions are found.
        text += "" if self.precision == "highest" else f" {self.precision}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self._folder

    def path(self, fit: Fit) -> Path:
        """Where the fit's figures are, or will be."""
        return self._folder / f"{self.key(fit)}.json"

    def record_path(self, fit: Fit) -> Path:
        """Where the arrays for figures are, or will be."""
        return self._folder / f"{self.key(fit)}.npz"

    def load(self, fit: Fit) -> dict[str, Any] | None:
        """A finished fit's figures, None where it is still to be run.

        Raises:
            InputError: the file is damaged.
        """
        entry = self._entry(fit)
        return None if entry is None else entry["figures"]

    def machine_of(self, fit: Fit) -> str:
        """What a finished fit ran on, in words."""
        entry = self._entry(fit)
        if entry is None:
            return ""
        words = entry["machine"]
        ops = f", ops {words['ops']}" if "ops" in words else ""  # fits of earlier versions do not say
        return f"{words['device']}, torch {words['torch']}{ops}"

    def is_finished(self, fit: Fit, is_recorded: bool = False, is_alone: bool = False) -> bool:
        """Whether nothing is left to do: with its arrays, and having run alone, where these are wanted."""
        entry = self._entry(fit)
        if entry is None or (is_recorded and not self.record_path(fit).is_file()):
            return False
        return not is_alone or entry["machine"]["jobs"] == 1

    def is_of_other_code(self, fit: Fit) -> bool:
        """Whether a finished fit was run by another state of this package."""
        entry = self._entry(fit)
        return entry is not None and entry["machine"].get("code") != code()

    def _entry(self, fit: Fit) -> dict[str, Any] | None:
        path = self.path(fit)
        if not path.is_file():
            return None
        try:
            entry = json.loads(path.read_text())
            return {"figures": dict(entry["figures"]), "machine": dict(entry["machine"])}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged ({type(error).__name__}); delete it to run the fit again") from error

    def save(self, fit: Fit, figures: dict[str, Any], jobs: int) -> None:
        """Keep a finished fit, which ran beside ``jobs - 1`` others; the file appears only when whole."""
        self._folder.mkdir(parents=True, exist_ok=True)
        entry = {
            "fit": dataclasses.asdict(fit),  # type: ignore[call-overload]
            "figures": figures,
            "machine": {**machine(self._device), "ops": ops_in_use(self._device), "jobs": jobs, "code": code()},
            "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        unfinished = self.path(fit).with_suffix(f".{os.getpid()}.part")
        unfinished.write_text(json.dumps(entry, indent=1))
        unfinished.replace(self.path(fit))


def ops_in_use(device: str) -> str:
    """Which compiled ops the fits used: a kind of ``ops/processors.py`` (``AVX512``, ``AMX_BF16X3``...) or ``none``."""
    return SINE_NETWORK.build().kind if device == "cpu" and not is_off() and SINE_NETWORK.load() is not None else "none"
