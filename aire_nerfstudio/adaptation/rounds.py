"""Removal in rounds: a few neurons decay and go, the network recovers, the contributions are looked at anew."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from aire_nerfstudio.adaptation.aire import AireStrategy
from aire_nerfstudio.adaptation.aire_plan import densify_count
from aire_nerfstudio.adaptation.aire_state import AireState
from aire_nerfstudio.adaptation.base import PlannedEvent, Probe, Report, widths
from aire_nerfstudio.adaptation.budget import count_parameters
from aire_nerfstudio.adaptation.control import Action, Refused, Request, StageSpan
from aire_nerfstudio.adaptation.layers import ends
from aire_nerfstudio.adaptation.schedule import Schedule, ScheduleError
from aire_nerfstudio.fields.neurons import NeuronGroup


@dataclass
class RoundsState(AireState):
    """Beside AIRe's: where the rounds stand.

    ``targets`` are those of the round under way; ``is_pruned`` stays False, since the next round may follow.
    """

    next_round: int = 0
    round_start: int = 0
    round_removal: int | None = None

    @property
    def removal_at(self) -> int | None:
        """The step before which the neurons of the round under way go."""
        return self.round_removal if self.is_decaying else None

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain Python values only."""
        rounds = {name: getattr(self, name) for name in ("next_round", "round_start", "round_removal")}
        return {**super().to_dict(), **rounds}

    def load_dict(self, saved: dict[str, Any]) -> None:
        """Restore what :meth:`to_dict` gave."""
        super().load_dict(saved)
        self.next_round, self.round_start = int(saved["next_round"]), int(saved["round_start"])
        self.round_removal = saved["round_removal"]


class RoundsStrategy(AireStrategy, ABC):
    """Densifies as AIRe does; between ``decay_start`` and ``prune_at`` neurons go from all layers, in rounds.

    Half of a round is decay, at whose end the neurons chosen at its beginning go; the other half is recovery. Beside
    a targeted or proximal decay, the chosen columns' norms are kept below a line that falls to 0: Adam moves a weight
    by its learning rate a step, which may be too little for so short a decay.

    A subclass says how long a round is and what size it aims at.
    """

    removes_once = False

    def init_state(self, groups: Sequence[NeuronGroup], steps_per_epoch: int, total_steps: int) -> AireState:
        """As AIRe's; neurons must be added before the first round, and a round takes two steps at least."""
        schedule = super().init_state(groups, steps_per_epoch, total_steps).schedule
        start, _ = self._window(schedule)
        if schedule.densify_at is not None and not schedule.densifies_first:
            raise ScheduleError(
                f"densify_at is step {schedule.densify_at}; with rounds it must not come after decay_start, step "
                f"{start}"
            )
        if self._round_length(schedule) < 2:
            raise ScheduleError(
                f"decay_start is step {start} and prune_at step {schedule.prune_at}; every round between them takes at "
                "least 2 steps, so move them apart"
            )
        state = self._new_state(schedule)
        state.next_round = start
        return state

    def restore(self, saved: dict[str, Any]) -> AireState:
        """The state that a checkpoint holds; its schedule replaces the configured one."""
        state = self._new_state(Schedule(total=1))
        state.load_dict(saved)
        return state

    def plan(self, state: AireState, start: Sequence[int]) -> list[PlannedEvent]:
        """Densification, and the first and last moment of the rounds."""
        schedule = state.schedule
        rows = []
        if schedule.densify_at is not None and not state.is_densified:
            count = densify_count(self.config, start[0])
            rows.append(PlannedEvent(schedule.densify_at, f"densify: {count} input neurons"))
        begin, end = self._window(schedule)
        rows.append(PlannedEvent(begin, f"from here, neurons go in rounds {self._aim_in_words(schedule)}"))
        rows.append(PlannedEvent(end, "none go from here"))
        return rows

    def is_due(self, state: AireState, step: int) -> bool:
        """Whether neurons are to be added, or a round ends or begins."""
        assert isinstance(state, RoundsState)
        return (
            self._is_densification_due(state, step)
            or self._is_removal_due(state, step)
            or self._is_round_due(state, step)
        )

    def _is_densification_due(self, state: RoundsState, step: int) -> bool:
        return "densify" in self._due(state, step)

    @staticmethod
    def _is_removal_due(state: RoundsState, step: int) -> bool:
        return state.removal_at is not None and step >= state.removal_at

    def _is_round_due(self, state: RoundsState, step: int) -> bool:
        half = self._round_length(state.schedule) // 2
        return state.next_round <= step and step + half <= self._window(state.schedule)[1] and not state.is_decaying

    @torch.no_grad()
    def step(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: AireState,
        step: int,
        averages: Sequence[Sequence[NeuronGroup]] = (),
        probe: Probe | None = None,
    ) -> list[Report]:
        """Make the changes due before the optimizer step ``step``; see :class:`base.Strategy`."""
        assert isinstance(state, RoundsState)
        reports = []
        if self._is_densification_due(state, step):
            reports.append(self._densify(groups, optimizers, state, step, averages, probe))
        if self._is_removal_due(state, step):
            reports.append(self._prune(groups, optimizers, state, step, averages, probe))
            state.is_decaying = state.is_pruned = False
        if self._is_round_due(state, step):
            self._begin_round(groups, state, step, probe)
            state.next_round = step + self._round_length(state.schedule)
        return reports

    def constrain(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: AireState,
        step: int,
        error: Tensor | None = None,
    ) -> None:
        """After an optimizer step: what AIRe does, and the line that the chosen columns' norms stay below."""
        super().constrain(groups, optimizers, state, step, error)
        if state.is_decaying and self.config.decay in ("targeted", "proximal"):
            self._cap(groups, state, step)

    # --- by hand -----------------------------------------------------------------------------------------------------

    def _spans(self, state: AireState) -> tuple[StageSpan, ...]:
        names = {"decay": "rounds"}
        return tuple(replace(span, name=names.get(span.name, span.name)) for span in super()._spans(state))

    def _with_densification(self, schedule: Schedule, step: int) -> Schedule:
        return schedule  # a window, within which no round may be under way

    def _following(self, state: AireState, step: int) -> Action:
        following = super()._following(state, step)
        return "skip" if following == "decay" and step >= self._window(state.schedule)[1] else following

    def _decay_by_hand(
        self, groups: Sequence[NeuronGroup], state: AireState, step: int, request: Request, probe: Probe | None
    ) -> Report:
        """A round, now; its neurons go when its decay is over, whatever the window says."""
        assert isinstance(state, RoundsState)
        window, length = state.schedule, self._round_length(state.schedule)
        end = step + (request.steps or length // 2)
        if end >= window.total:
            raise Refused(f"the decay would end at step {end:,} and the run at {window.total:,}; give fewer steps")
        if request.count is None and not state.is_decaying:
            self._begin_round(groups, state, step, probe)
            if not state.is_decaying:
                raise Refused("the target leaves nothing to remove at present; give a count")
            report = self._chosen(groups, state, step)
        else:
            report = super()._decay_by_hand(groups, state, step, replace(request, steps=end - step), probe)
            state.schedule = window
        state.round_start, state.round_removal = step, end
        state.next_round = max(state.next_round, step + length)
        return report

    def _prune_by_hand(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: AireState,
        step: int,
        averages: Sequence[Sequence[NeuronGroup]],
        probe: Probe | None,
    ) -> Report:
        if not state.is_decaying:
            raise Refused("no neurons are chosen; start their decay first")
        report = self._prune(groups, optimizers, state, step, averages, probe)
        state.is_decaying = state.is_pruned = False
        return report

    # --- to be given by a subclass -----------------------------------------------------------------------------------

    def _new_state(self, schedule: Schedule) -> RoundsState:
        return RoundsState(schedule)

    @abstractmethod
    def _round_length(self, schedule: Schedule) -> int:
        """Steps of a round."""

    @abstractmethod
    def _next_size(self, state: RoundsState, step: int, size: int) -> int | None:
        """Parameters to come down to in the round that begins before ``step``, from ``size``; None: no removal."""

    def _is_granted(self, state: RoundsState, freed: float) -> bool:
        """Whether the round may free this share of the parameters, once the neurons are chosen."""
        return True

    @abstractmethod
    def _aim_in_words(self, schedule: Schedule) -> str:
        """Down to where, for the plan's line."""

    # -----------------------------------------------------------------------------------------------------------------

    @staticmethod
    def _window(schedule: Schedule) -> tuple[int, int]:
        assert schedule.decay_start is not None
        assert schedule.prune_at is not None
        return schedule.decay_start, schedule.prune_at

    def _begin_round(self, groups: Sequence[NeuronGroup], state: RoundsState, step: int, probe: Probe | None) -> None:
        now = widths(groups)
        n_in, n_out = ends(groups)
        size = count_parameters(n_in, now, n_out)
        wanted = self._next_size(state, step, size)
        if wanted is None or wanted >= size or max(now) == 1:
            return
        least = count_parameters(n_in, [1] * len(now), n_out)
        self._aim(groups, state, *self._weakest_for_size(groups, state, probe, max(least, wanted)))
        left = [width - len(chosen) for width, chosen in zip(now, state.targets, strict=True)]
        if not self._is_granted(state, 1 - count_parameters(n_in, left, n_out) / size):
            state.is_decaying, state.targets, state.caps = False, [], []
            return
        state.round_start, state.round_removal = step, step + self._round_length(state.schedule) // 2

    def _progress(self, state: AireState, step: int) -> float:
        assert isinstance(state, RoundsState)
        assert state.round_removal is not None
        return max(0, step - state.round_start) / (state.round_removal - state.round_start)

    @staticmethod
    def _is_soon(state: AireState, step: int) -> bool:
        # Rounds begin all along the stage.
        schedule = state.schedule
        assert schedule.prune_at is not None
        return step < schedule.prune_at


class TargetSizeStrategy(RoundsStrategy):
    """Rounds that each free the same share of the parameters, down to ``target_parameters`` or ``target_bytes``.

    As many as ``rounds`` says, or as fit between ``decay_start`` and ``prune_at`` with two steps each.
    """

    def _rounds(self, schedule: Schedule) -> int:
        start, end = self._window(schedule)
        return max(1, min(self.config.rounds, (end - start) // 2))

    def _round_length(self, schedule: Schedule) -> int:
        start, end = self._window(schedule)
        return (end - start) // self._rounds(schedule)

    def _next_size(self, state: RoundsState, step: int, size: int) -> int | None:
        start, _ = self._window(state.schedule)
        # Counted by the clock, so that a resumed run has as many.
        done = round((step - start) / self._round_length(state.schedule))
        rounds_left, target = max(1, self._rounds(state.schedule) - done), self.config.most_parameters
        assert target is not None
        return round(size * (target / size) ** (1 / rounds_left)) if rounds_left > 1 else target

    def _aim_in_words(self, schedule: Schedule) -> str:
        return f"({self._rounds(schedule)}) to {self.config.most_parameters:,} parameters of this network"
