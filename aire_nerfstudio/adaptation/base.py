"""The contract of an adaptation strategy: config frozen, state explicit, every change reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from aire_nerfstudio.adaptation.control import Request, Status
from aire_nerfstudio.fields.neurons import NeuronGroup


@dataclass(frozen=True)
class Probe:
    """What a strategy may ask of the task; each call draws a new sample of the training data.

    Attributes:
        outputs: the adaptive layers' outputs, one ``[N, n]`` a group.
        residual: points ``[N, d]`` and truth minus prediction there ``[N, C]``; None where the network's outputs have
            no truth of their own (the density of a NeRF).
    """

    outputs: Callable[[], list[Tensor]]
    residual: Callable[[], tuple[Tensor, Tensor]] | None = None


@dataclass(frozen=True)
class Report:
    """One change of the architecture.

    Attributes:
        step: the optimizer step it precedes.
        event: ``"densify"``, ``"decay"`` (neurons chosen) or ``"prune"``.
        counts: neurons added, chosen or removed, one number a layer, in the order of the groups.
        before: widths before it.
        after: widths after it.
        indices: which neurons were chosen or removed (numbered as before the event), one tuple a layer; empty where
            no particular ones were.
        by_hand: whether a person asked for it.
    """

    step: int
    event: str
    counts: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    indices: tuple[tuple[int, ...], ...] = ()
    by_hand: bool = False


@dataclass(frozen=True)
class PlannedEvent:
    """One row of the plan: the step it precedes, what happens, and the widths after it where they can be foretold."""

    step: int
    event: str
    widths: tuple[int, ...] | None = None


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

    def restore(self, saved: dict[str, Any]) -> Any:
        """The state whose :meth:`StrategyState.to_dict` gave ``saved``."""
        ...

    def plan(self, state: Any, start: Sequence[int]) -> list[PlannedEvent]:
        """What is still to come in the run, in order, for the table at its start; ``start``: widths now."""
        ...

    def penalty_weight(self, state: Any, step: int) -> float:
        """Factor of the regulariser at ``step``; 0 outside its stage, where there is none."""
        ...

    def penalty_reads(self, state: Any, device: torch.device) -> Sequence[Tensor]:
        """Tensors on ``device`` that :meth:`penalty` reads besides weights, the same ones as long as they hold."""
        ...

    def penalty(self, groups: Sequence[NeuronGroup], state: Any, step: int, weight: Tensor | None = None) -> Tensor:
        """Regulariser to add to the loss at ``step``, a scalar ``[]``; zero outside its stage.

        ``weight``: a scalar ``[]`` in place of :meth:`penalty_weight`, within the stage: in a captured step, what is
        in it at each replay counts.
        """
        ...

    def is_due(self, state: Any, step: int) -> bool:
        """Whether :meth:`step` has anything to decide or to change before the optimizer step ``step``."""
        ...

    def step(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: Any,
        step: int,
        averages: Sequence[Sequence[NeuronGroup]] = (),
        probe: Probe | None = None,
    ) -> list[Report]:
        """Make the changes due before the optimizer step ``step``; ``averages`` (weight averages) change alike."""
        ...

    def constrain(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: Any,
        step: int,
        error: Tensor | None = None,
    ) -> None:
        """After the optimizer step ``step``, gradients still there: bring the weights back to what is allowed.

        ``error``: mean squared error of the step's batch, values in [0, 1], detached ``[]``; None where unknown.
        """
        ...

    def missed_target(self, state: Any) -> str | None:
        """What was asked of the run and is not reached at its end, in one line; None: all is well."""
        ...

    def parameters_kept(self, groups: Sequence[NeuronGroup], state: Any) -> int:
        """Parameters of the network that are not held at 0."""
        ...

    def candidates(self, groups: Sequence[NeuronGroup], state: Any) -> dict[int, Tensor]:
        """Neurons of each layer that would be chosen to go if that were decided now; none where nothing will be."""
        ...

    def status(self, state: Any) -> Status:
        """Where the run stands, for whoever watches it."""
        ...

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
        """Do before the optimizer step ``step``, after what was due, what a person asks for.

        Raises:
            Refused: it makes no sense at present; nothing was changed.
        """
        ...


def widths(groups: Sequence[NeuronGroup]) -> tuple[int, ...]:
    """Current widths, one number a group."""
    return tuple(group.width for group in groups)
