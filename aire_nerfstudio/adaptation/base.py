"""The contract of an adaptation strategy: config frozen, state explicit, every change reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from aire_nerfstudio.fields.neurons import NeuronGroup


@dataclass(frozen=True)
class Report:
    """One change of the architecture.

    Attributes:
        step: the optimizer step it precedes.
        event: ``"densify"``, ``"decay"`` (neurons chosen) or ``"prune"``.
        counts: neurons added, chosen or removed, one number a layer, in the order of the groups.
        before: widths before it.
        after: widths after it.
    """

    step: int
    event: str
    counts: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


class StrategyState(Protocol):
    """What a strategy remembers between steps; must survive a checkpoint read with ``weights_only=True``."""

    def to_dict(self) -> dict[str, Any]:
        """Tensors, lists and plain Python values only."""
        ...

    def load_dict(self, saved: dict[str, Any]) -> None:
        """Restore what :meth:`to_dict` gave."""
        ...


class Strategy(Protocol):
    """Decides when and how a network changes; it knows groups of neurons, never a network class."""

    def init_state(self, groups: Sequence[NeuronGroup], steps_per_epoch: int, total_steps: int) -> Any:
        """A fresh state, after checking the configuration against the network and the run."""
        ...

    def penalty(self, groups: Sequence[NeuronGroup], state: Any, step: int) -> Tensor:
        """Regulariser to add to the loss at ``step``, a scalar ``[]``; zero outside its stage."""
        ...

    def step(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: Any,
        step: int,
        shadows: Sequence[Sequence[NeuronGroup]] = (),
    ) -> list[Report]:
        """Make the changes due before the optimizer step ``step``; ``shadows`` (weight averages) change alike."""
        ...


def widths(groups: Sequence[NeuronGroup]) -> tuple[int, ...]:
    """Current widths, one number a group."""
    return tuple(group.width for group in groups)
