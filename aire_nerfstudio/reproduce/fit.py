"""The contract of a fit: what the runner, the store and the reports need to know of one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.variants import Variant

if TYPE_CHECKING:
    from aire_nerfstudio.reproduce.store import Store

Progress = Callable[[int, int], None]
"""Called with (step, steps) now and then."""


class Fit(Protocol):
    """Everything that decides what training one network on one file gives on a machine; a frozen dataclass."""

    @property
    def source(self) -> str:
        """Name of the file that is learned, without its folder."""

    @property
    def seed(self) -> int:
        """Of initialisation and order."""

    @property
    def adaptation(self) -> AireConfig:
        """AIRe's schedule."""

    @property
    def variant(self) -> Variant:
        """Who decides about the network's size."""

    @property
    def label(self) -> str:
        """What a message calls it."""

    def key(self) -> str:
        """A name that is the same for the same settings and no others, 16 hexadecimal digits."""

    def cost(self) -> float:
        """Proportional to its time, among fits of its kind."""

    def needs(self) -> tuple[Fit, ...]:
        """Fits whose records must be there before it runs."""

    def check(self, folder: Path) -> None:
        """Read the file.

        Raises:
            InputError: it is missing or bad.
        """

    def run(
        self, folder: Path, device: str, store: Store, progress: Progress | None, is_recorded: bool
    ) -> dict[str, Any]:
        """Train; returns the figures, as JSON. What pictures need goes to ``store.record_path(self)`` if so asked."""


def settings_key(fit: Any, kind: str = "") -> str:
    """:meth:`Fit.key` of a dataclass; ``kind`` tells apart kinds of fits that have the same settings."""

    def given(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # A switch that is added later, and off, leaves old keys as they are.
        return {name: value for name, value in pairs if value is not None}

    settings = dataclasses.asdict(fit, dict_factory=given)
    text = kind + json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
