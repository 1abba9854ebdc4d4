"""The smallest network that keeps a PSNR: neurons go in rounds, as long as the training batches still reach it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from aire_nerfstudio.adaptation.aire_state import AireState
from aire_nerfstudio.adaptation.rounds import RoundsState, RoundsStrategy
from aire_nerfstudio.adaptation.schedule import Schedule, ScheduleError
from aire_nerfstudio.fields.neurons import NeuronGroup

MOST_ROUNDS, SHORTEST_ROUND = 32, 40
# Share of the parameters that the first round frees; doubled after a round that held the target, halved after one that
# did not, and never more than the last round's price lets the network spare.
FIRST_SHARE, LARGEST_SHARE = 1 / 8, 1 / 4


@dataclass
class TargetPsnrState(RoundsState):
    """Beside the rounds': the running mean of the batches' squared error, and what the last round taught.

    ``freed`` is the share of the parameters that it freed, from ``reached`` dB; ``price`` the dB that it cost, after
    recovery, for each unit of that share.
    """

    error: Tensor = field(default_factory=lambda: torch.tensor(math.nan))
    share: float = FIRST_SHARE
    freed: float = 0.0
    reached: float = 0.0
    price: float = 0.0
    spare: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain Python values only."""
        learned = {name: getattr(self, name) for name in ("share", "freed", "reached", "price", "spare")}
        return {**super().to_dict(), **learned, "error": self.error.cpu()}

    def load_dict(self, saved: dict[str, Any]) -> None:
        """Restore what :meth:`to_dict` gave."""
        super().load_dict(saved)
        self.error = saved["error"].clone()
        for name in ("share", "freed", "reached", "price", "spare"):
            setattr(self, name, float(saved[name]))


class TargetPsnrStrategy(RoundsStrategy):
    """Removes what ``target_psnr`` can spare.

    What a round cost in dB, after recovery, says how much the next may free; a round that begins below the target
    removes nothing. What is trained after ``prune_at`` comes on top.
    """

    def constrain(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: AireState,
        step: int,
        error: Tensor | None = None,
    ) -> None:
        """After an optimizer step: what the rounds need, and the running mean of the error.

        Raises:
            ScheduleError: the task does not give the batch's error.
        """
        assert isinstance(state, TargetPsnrState)
        super().constrain(groups, optimizers, state, step, error)
        if error is None:
            raise ScheduleError("target_psnr needs the error of each batch, which this task does not give")
        error = error.detach()
        pace = 1 / max(1, self._round_length(state.schedule) // 8)
        old = state.error.to(error)
        # NaN: nothing was measured yet. On the device, so that no step waits for it.
        state.error = torch.where(old.isnan(), error, old + (error - old) * pace)

    def missed_target(self, state: AireState) -> str | None:
        """The target and what was reached instead, where that is less."""
        assert isinstance(state, TargetPsnrState)
        target, reached = self.config.target_psnr, _decibel(state.error)
        assert target is not None
        if reached >= target:
            return None
        has_removed = state.round_removal is not None
        why = "the last removal cost more than training made up for" if has_removed else "so nothing was removed"
        return (
            f"target_psnr is {target:g} dB and the training batches reach {reached:.2f} dB in the end ({why}); ask for "
            "less, train longer, or start with a larger network"
        )

    def _new_state(self, schedule: Schedule) -> TargetPsnrState:
        return TargetPsnrState(schedule)

    def _round_length(self, schedule: Schedule) -> int:
        start, end = self._window(schedule)
        return min(end - start, max(SHORTEST_ROUND, (end - start) // MOST_ROUNDS))

    def _next_size(self, state: RoundsState, step: int, size: int) -> int | None:
        assert isinstance(state, TargetPsnrState)
        assert self.config.target_psnr is not None
        reached = _decibel(state.error)
        state.spare = reached - self.config.target_psnr
        if state.freed > 0:  # by the round before this one
            state.price = max(0.0, state.reached - reached) / state.freed
            state.share = min(2 * state.share, LARGEST_SHARE) if state.spare >= 0 else state.share / 2
        state.freed, state.reached = 0.0, reached
        if state.spare < 0:
            return None
        share = state.share if state.price == 0 else min(state.share, state.spare / state.price)
        # One neuron at the least, however small the share has become.
        return min(size - 1, round(size * (1 - share)))

    def _is_granted(self, state: RoundsState, freed: float) -> bool:
        assert isinstance(state, TargetPsnrState)
        if state.price * freed > state.spare:
            # Even one neuron costs more than there is to spare: wait for training to earn it.
            return False
        state.freed = freed
        return True

    def _aim_in_words(self, schedule: Schedule) -> str:
        return f"while PSNR >= {self.config.target_psnr} dB"


def _decibel(mean_square: Tensor) -> float:
    """PSNR of a mean squared error of values in [0, 1]; -inf where nothing was measured."""
    value = float(mean_square)
    return -math.inf if math.isnan(value) else math.inf if value == 0 else -10 * math.log10(value)
