"""No adaptation: the large and small baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from aire_nerfstudio.adaptation.base import PlannedEvent, Probe, Report
from aire_nerfstudio.adaptation.control import Refused, Request, Status
from aire_nerfstudio.fields.neurons import NeuronGroup


@dataclass
class EmptyState:
    """Nothing to remember."""

    def to_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_dict(self, saved: dict[str, Any]) -> None:
        """Nothing to restore."""


class FixedStrategy:
    """Leaves the network as it is."""

    def init_state(self, groups: Sequence[NeuronGroup], steps_per_epoch: int, total_steps: int) -> EmptyState:
        """An empty state."""
        return EmptyState()

    def restore(self, saved: dict[str, Any]) -> EmptyState:
        """The state that a checkpoint holds."""
        return EmptyState()

    def plan(self, state: EmptyState, start: Sequence[int]) -> list[PlannedEvent]:
        """What the table at the start shows."""
        return []

    def penalty_weight(self, state: EmptyState, step: int) -> float:
        """0."""
        return 0.0

    def penalty_reads(self, state: EmptyState, device: torch.device) -> Sequence[Tensor]:
        """Nothing."""
        return ()

    def penalty(
        self, groups: Sequence[NeuronGroup], state: EmptyState, step: int, weight: Tensor | None = None
    ) -> Tensor:
        """Zero, ``[]``."""
        return groups[0].weight.parameter.new_zeros(())

    def is_due(self, state: EmptyState, step: int) -> bool:
        """Never."""
        return False

    def step(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: EmptyState,
        step: int,
        averages: Sequence[Sequence[NeuronGroup]] = (),
        probe: Probe | None = None,
    ) -> list[Report]:
        """No change."""
        return []

    def constrain(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: EmptyState,
        step: int,
        error: Tensor | None = None,
    ) -> None:
        """No constraint."""

    def missed_target(self, state: Any) -> str | None:
        """Nothing is promised that could be missed."""
        return None

    def candidates(self, groups: Sequence[NeuronGroup], state: EmptyState) -> dict[int, Tensor]:
        """No neuron goes."""
        return {}

    def status(self, state: EmptyState) -> Status:
        """No stages."""
        return Status()

    def control(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: EmptyState,
        step: int,
        request: Request,
        averages: Sequence[Sequence[NeuronGroup]] = (),
        probe: Probe | None = None,
    ) -> list[Report]:
        """Refused."""
        raise Refused("the network of this variant never changes; train the variant aire")
