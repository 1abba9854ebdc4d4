"""The smallest network that keeps a PSNR: neurons go in rounds, as long as the training batches still reach it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from aire_nerfstudio.adaptation.aire import AireState, AireStrategy
from aire_nerfstudio.adaptation.base import PlannedEvent, Probe, Report, widths
from aire_nerfstudio.adaptation.budget import count_parameters
from aire_nerfstudio.adaptation.schedule import Schedule, ScheduleError
from aire_nerfstudio.fields.neurons import NeuronGroup

# Rounds between decay_start and prune_at at most; half of each is decay, the other half recovery.
MOST_ROUNDS, SHORTEST_ROUND = 32, 40
# Share of the parameters that the first round frees; doubled after a round that held the target, halved after one that
# did not, and never more than the last round's price lets the network spare.
FIRST_SHARE, LARGEST_SHARE = 1 / 8, 1 / 4


@dataclass
class TargetPsnrState(AireState):
    """Beside AIRe's: the running mean of the batches' squared error, and where the rounds stand.

    ``freed`` is the share of the parameters that the last round freed, from ``reached`` dB; ``price`` the dB that it
    cost, after recovery, for each unit of that share. ``targets`` are those of the round under way; ``is_pruned`` stays
    False, since the next round may follow.
    """

    error: Tensor = field(default_factory=lambda: torch.tensor(math.nan))
    next_round: int = 0
    round_start: int = 0
    round_removal: int | None = None
    share: float = FIRST_SHARE
    freed: float = 0.0
    reached: float = 0.0
    price: float = 0.0
    has_removed: bool = False

    @property
    def removal_at(self) -> int | None:
        """The step before which the neurons of the round under way go."""
        return self.round_removal if self.is_decaying else None

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain Python values only."""
        return {
            **super().to_dict(),
            "error": self.error.cpu(),
            "next_round": self.next_round,
            "round_start": self.round_start,
            "round_removal": self.round_removal,
            "share": self.share,
            "freed": self.freed,
            "reached": self.reached,
            "price": self.price,
            "has_removed": self.has_removed,
        }

    def load_dict(self, saved: dict[str, Any]) -> None:
        """Restore what :meth:`to_dict` gave."""
        super().load_dict(saved)
        self.error = saved["error"].clone()
        self.next_round, self.round_start = int(saved["next_round"]), int(saved["round_start"])
        self.round_removal = saved["round_removal"]
        self.share, self.freed = float(saved["share"]), float(saved["freed"])
        self.reached, self.price = float(saved["reached"]), float(saved["price"])
        self.has_removed = bool(saved["has_removed"])


class TargetPsnrStrategy(AireStrategy):
    """Densifies as AIRe does; between ``decay_start`` and ``prune_at`` removes what the target can spare.

    Where a round begins with the target reached, the neurons that matter least for each parameter they free are chosen
    in all layers, decay for half of the round and go; the other half is for recovery. What a round cost in dB, after
    recovery, says how much the next may free; a round that begins below the target removes nothing. What is trained
    after ``prune_at`` comes on top.
    """

    def init_state(self, groups: Sequence[NeuronGroup], steps_per_epoch: int, total_steps: int) -> TargetPsnrState:
        """As AIRe's; neurons must be added before the first round, and a round takes two steps at least."""
        schedule = super().init_state(groups, steps_per_epoch, total_steps).schedule
        assert schedule.decay_start is not None
        assert schedule.prune_at is not None
        if schedule.densify_at is not None and not schedule.densifies_first:
            raise ScheduleError(
                f"densify_at is step {schedule.densify_at}; with target_psnr it must not come after decay_start, step "
                f"{schedule.decay_start}"
            )
        if schedule.prune_at - schedule.decay_start < 2:
            raise ScheduleError(
                f"decay_start is step {schedule.decay_start} and prune_at step {schedule.prune_at}; with target_psnr "
                "neurons go between them, so leave at least 2 steps"
            )
        return TargetPsnrState(schedule, next_round=schedule.decay_start)

    def restore(self, saved: dict[str, Any]) -> TargetPsnrState:
        """The state that a checkpoint holds; its schedule replaces the configured one."""
        state = TargetPsnrState(Schedule(total=1))
        state.load_dict(saved)
        return state

    def plan(self, state: AireState, start: Sequence[int]) -> list[PlannedEvent]:
        """Densification, and the first and last moment of the rounds."""
        schedule, target = state.schedule, self.config.target_psnr
        rows = []
        if schedule.densify_at is not None and not state.is_densified:
            rows.append(PlannedEvent(schedule.densify_at, f"densify: {self.densify_count(start[0])} input neurons"))
        assert schedule.decay_start is not None
        assert schedule.prune_at is not None
        rows.append(PlannedEvent(schedule.decay_start, f"from here, neurons go in rounds while PSNR >= {target} dB"))
        rows.append(PlannedEvent(schedule.prune_at, "none go from here"))
        return rows

    @torch.no_grad()
    def step(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: AireState,
        step: int,
        shadows: Sequence[Sequence[NeuronGroup]] = (),
        probe: Probe | None = None,
    ) -> list[Report]:
        """Make the changes due before the optimizer step ``step``; see :class:`base.Strategy`."""
        assert isinstance(state, TargetPsnrState)
        schedule, reports = state.schedule, []
        assert schedule.prune_at is not None
        if schedule.densify_at is not None and step >= schedule.densify_at and not state.is_densified:
            reports.append(self._densify(groups, optimizers, state, step, shadows, probe))
        if state.is_decaying and state.round_removal is not None and step >= state.round_removal:
            reports.append(self._prune(groups, optimizers, state, step, shadows, probe))
            state.is_decaying = state.is_pruned = False
            state.has_removed = True
        length = self._round_length(schedule)
        if state.next_round <= step and step + length // 2 <= schedule.prune_at and not state.is_decaying:
            self._begin_round(groups, state, step, probe)
            state.next_round = step + length
        return reports

    def constrain(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: AireState,
        step: int,
        error: Tensor | None = None,
    ) -> None:
        """After an optimizer step: what AIRe does, and the running mean of the error.

        Raises:
            ScheduleError: the task does not give the batch's error.
        """
        assert isinstance(state, TargetPsnrState)
        super().constrain(groups, optimizers, state, step, error)
        if state.is_decaying and self.config.decay in ("targeted", "proximal"):
            # Adam moves a weight by its learning rate a step, which may be too little for so short a decay.
            self._cap(groups, state, step)
        if error is None:
            raise ScheduleError("target_psnr needs the error of each batch, which this task does not give")
        error = error.detach()
        pace = 1 / max(1, self._round_length(state.schedule) // 8)
        old = state.error.to(error)
        # NaN: nothing was measured yet. On the device, so that no step waits for it.
        state.error = torch.where(old.isnan(), error, old + (error - old) * pace)

    def shortfall(self, state: AireState) -> str | None:
        """The target and what was reached instead, where that is less."""
        assert isinstance(state, TargetPsnrState)
        target, reached = self.config.target_psnr, _decibel(state.error)
        assert target is not None
        if reached >= target:
            return None
        why = "the last removal cost more than training made up for" if state.has_removed else "so nothing was removed"
        return (
            f"target_psnr is {target:g} dB and the training batches reach {reached:.2f} dB in the end ({why}); ask for "
            "less, train longer, or start with a larger network"
        )

    def _progress(self, state: AireState, step: int) -> float:
        assert isinstance(state, TargetPsnrState)
        assert state.round_removal is not None
        return (step - state.round_start) / (state.round_removal - state.round_start)

    @staticmethod
    def _is_soon(state: AireState, step: int) -> bool:
        # Rounds begin all along the stage.
        schedule = state.schedule
        assert schedule.prune_at is not None
        return step < schedule.prune_at

    @staticmethod
    def _round_length(schedule: Schedule) -> int:
        assert schedule.decay_start is not None
        assert schedule.prune_at is not None
        window = schedule.prune_at - schedule.decay_start
        return min(window, max(SHORTEST_ROUND, window // MOST_ROUNDS))

    def _begin_round(
        self, groups: Sequence[NeuronGroup], state: TargetPsnrState, step: int, probe: Probe | None
    ) -> None:
        assert self.config.target_psnr is not None
        reached = _decibel(state.error)
        spare = reached - self.config.target_psnr
        if state.freed > 0:  # by the round before this one
            state.price = max(0.0, state.reached - reached) / state.freed
            state.share = min(2 * state.share, LARGEST_SHARE) if spare >= 0 else state.share / 2
        state.freed = 0.0
        now = widths(groups)
        if spare < 0 or max(now) == 1:
            return
        n_in, n_out = groups[0].weight.parameter.shape[1], groups[-1].next_bias.numel()
        least = count_parameters(n_in, [1] * len(now), n_out)
        size = count_parameters(n_in, now, n_out)
        share = state.share if state.price == 0 else min(state.share, spare / state.price)
        # One neuron at the least, however small the share has become.
        self._choose_for_size(groups, state, probe, max(least, min(size - 1, round(size * (1 - share)))))
        left = [width - len(chosen) for width, chosen in zip(now, state.targets, strict=True)]
        freed = 1 - count_parameters(n_in, left, n_out) / size
        if state.price * freed > spare:
            # Even that costs more than there is to spare: wait for training to earn it.
            state.is_decaying, state.targets, state.caps = False, [], []
            return
        state.freed, state.reached = freed, reached
        state.round_start, state.round_removal = step, step + self._round_length(state.schedule) // 2


def _decibel(mean_square: Tensor) -> float:
    """PSNR of a mean squared error of values in [0, 1]; -inf where nothing was measured."""
    value = float(mean_square)
    return -math.inf if math.isnan(value) else math.inf if value == 0 else -10 * math.log10(value)
