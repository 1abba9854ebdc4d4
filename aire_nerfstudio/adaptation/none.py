"""No adaptation: the large and small baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aire_nerfstudio.adaptation.passive import PassiveStrategy
from aire_nerfstudio.fields.neurons import NeuronGroup


@dataclass
class EmptyState:
    """Nothing to remember."""

    def to_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_dict(self, saved: dict[str, Any]) -> None:
        """Nothing to restore."""


class FixedStrategy(PassiveStrategy):
    """Leaves the network as it is."""

    def init_state(self, groups: Sequence[NeuronGroup], steps_per_epoch: int, total_steps: int) -> EmptyState:
        """An empty state."""
        return EmptyState()

    def restore(self, saved: dict[str, Any]) -> EmptyState:
        """The state that a checkpoint holds."""
        return EmptyState()
