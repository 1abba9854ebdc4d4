"""What the panel needs of an adaptation, and of who does what is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from aire_nerfstudio.adaptation.control import Request, Status
from aire_nerfstudio.record import RunRecord, Snapshot

Done = Callable[[str], None]


class Watched(Protocol):
    """The adaptation of a training, or of a trained model."""

    is_frozen: bool
    """Whether the schedule's clock stands still."""

    @property
    def config(self) -> Any:
        """The model's settings."""
        ...

    @property
    def record(self) -> RunRecord:
        """Curves and snapshots so far."""
        ...

    @property
    def history(self) -> list[dict[str, Any]]:
        """Events so far, as plain data."""
        ...

    @property
    def position(self) -> tuple[int, int]:
        """Optimizer steps done, and on the schedule's clock."""
        ...

    @property
    def sizes(self) -> tuple[int, int]:
        """Parameters of the trained field when the run began, and now."""
        ...

    def status(self) -> Status:
        """Stages and targets."""
        ...

    def snapshot(self) -> Snapshot:
        """How the neurons stand now."""
        ...


class Asked(Protocol):
    """Does what is asked for between two steps."""

    def ask(self, action: Callable[[], str], done: Done) -> None:
        """Have something done."""
        ...

    def ask_for(self, request: Request, done: Done) -> None:
        """Have the architecture changed."""
        ...

    def ask_to_freeze(self, is_frozen: bool, done: Done) -> None:
        """Stop the schedule's clock or let it go on."""
        ...

    def ask_to_export(self, folder: Path, done: Done) -> None:
        """Have a file written into a folder."""
        ...
