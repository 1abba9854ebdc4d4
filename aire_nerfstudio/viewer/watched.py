"""What the panel needs of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from aire_nerfstudio.adaptation.control import Request, Standing
from aire_nerfstudio.record import RunRecord, Snapshot

Done = Callable[[str], None]


class Watched(Protocol):
    """A training, or a trained model, that can be watched; what is asked for is done between two steps."""

    config: Any

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
    def is_frozen(self) -> bool:
        """Whether the schedule's clock stands still."""
        ...

    @property
    def sizes(self) -> tuple[int, int]:
        """Parameters of the trained field when the run began, and now."""
        ...

    def standing(self) -> Standing:
        """Stages and targets."""
        ...

    def snapshot(self) -> Snapshot:
        """How the neurons stand now."""
        ...

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
