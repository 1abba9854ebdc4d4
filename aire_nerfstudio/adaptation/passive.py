"""What a strategy says that adds, chooses and removes nothing: the base of those whose shapes never change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from aire_nerfstudio.adaptation.base import PlannedEvent, Probe, Report
from aire_nerfstudio.adaptation.control import Refused, Request, Status
from aire_nerfstudio.adaptation.layers import parameters_of
from aire_nerfstudio.fields.neurons import NeuronGroup


class PassiveStrategy:
    """See :class:`~aire_nerfstudio.adaptation.base.Strategy`; a subclass gives ``init_state`` and ``restore``."""

    refusal: ClassVar[str] = "the network of this variant never changes; train the variant aire"
    """Why nothing is done by hand."""

    def plan(self, state: Any, start: Sequence[int]) -> list[PlannedEvent]:
        """Nothing is to come."""
        return []

    def penalty_weight(self, state: Any, step: int) -> float:
        """0."""
        return 0.0

    def penalty_reads(self, state: Any, device: torch.device) -> Sequence[Tensor]:
        """Nothing."""
        return ()

    def penalty(self, groups: Sequence[NeuronGroup], state: Any, step: int, weight: Tensor | None = None) -> Tensor:
        """Zero, ``[]``."""
        return groups[0].weight.parameter.new_zeros(())

    def is_due(self, state: Any, step: int) -> bool:
        """Never."""
        return False

    def step(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: Any,
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
        state: Any,
        step: int,
        error: Tensor | None = None,
    ) -> None:
        """No constraint."""

    def missed_target(self, state: Any) -> str | None:
        """Nothing is promised that could be missed."""
        return None

    def parameters_kept(self, groups: Sequence[NeuronGroup], state: Any) -> int:
        """All of the network's."""
        return parameters_of(groups)

    def candidates(self, groups: Sequence[NeuronGroup], state: Any) -> dict[int, Tensor]:
        """No neuron goes."""
        return {}

    def status(self, state: Any) -> Status:
        """No stages."""
        return Status()

    def control(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: Any,
        step: int,
        request: Request,
        averages: Sequence[Sequence[NeuronGroup]] = (),
        probe: Probe | None = None,
    ) -> list[Report]:
        """Refused."""
        raise Refused(self.refusal)
