"""When the architecture changes: step -> stage and decay weight. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from aire_nerfstudio.errors import InputError

ScheduleUnit = Literal["steps", "epochs", "percent"]
Stage = Literal["train", "densified", "decay", "fine-tune"]


class ScheduleError(InputError):
    """A schedule that cannot be run; the message names the value, the rule and the fix."""


@dataclass(frozen=True)
class Schedule:
    """The moments of one run, in optimizer steps from 0; ``None`` where a thing never happens.

    An event at step ``s`` comes before the optimizer step number ``s``; the decay stage is ``[decay_start, prune_at)``.

    Attributes:
        total: steps of the whole run.
        densify_at: when input neurons are added.
        decay_start: when the neurons to remove are chosen and the decay begins to rise.
        prune_at: when they are removed.
    """

    total: int
    densify_at: int | None = None
    decay_start: int | None = None
    prune_at: int | None = None

    def __post_init__(self) -> None:
        if self.total < 1:
            raise ScheduleError(f"a run of {self.total} steps is too short; it must have at least 1")
        if (self.decay_start is None) != (self.prune_at is None):
            raise ScheduleError(
                f"decay_start {self.decay_start} and prune_at {self.prune_at} go together; give both or neither"
            )
        for name in ("densify_at", "decay_start", "prune_at"):
            at = getattr(self, name)
            if at is None:
                continue
            if at < 0:
                raise ScheduleError(f"{name} is step {at}; it must be 0 or later")
            if at >= self.total:
                raise ScheduleError(
                    f"the schedule is longer than the run: {name} is step {at} and the run has {self.total} steps; "
                    "train longer (--max-num-iterations) or move the event earlier"
                )
        if self.decay_start is not None and self.prune_at is not None:
            if self.decay_start > self.prune_at:
                raise ScheduleError(
                    f"decay_start is step {self.decay_start}, after prune_at, step {self.prune_at}; decay comes first"
                )
            if self.densify_at is not None and self.decay_start < self.densify_at < self.prune_at:
                raise ScheduleError(
                    f"densify_at is step {self.densify_at}, inside the decay stage [{self.decay_start}, "
                    f"{self.prune_at}); move it before the decay or to the pruning or later"
                )

    @property
    def densifies_first(self) -> bool:
        """Whether neurons are added before any are chosen for removal."""
        return self.densify_at is not None and (self.decay_start is None or self.densify_at <= self.decay_start)

    def stage(self, step: int) -> Stage:
        """What step ``step`` belongs to: before any event, after densification, in the decay, or after pruning."""
        if self.decay_start is not None and self.prune_at is not None:
            if step >= self.prune_at:
                return "fine-tune"
            if step >= self.decay_start:
                return "decay"
        if self.densify_at is not None and step >= self.densify_at:
            return "densified"
        return "train"


def to_steps(value: float, unit: ScheduleUnit, steps_per_epoch: int, total: int) -> int:
    """A moment given in ``unit`` as a step number.

    Args:
        value: steps, epochs, or percent of the run in [0, 100].
        unit: what ``value`` counts.
        steps_per_epoch: ``ceil(samples / batch)``.
        total: steps of the run.

    Raises:
        ScheduleError: not finite, negative, or above 100 percent.
    """
    if not math.isfinite(value) or value < 0:
        raise ScheduleError(f"{value} {unit} is no moment of a run; it must be finite and 0 or more")
    if unit == "percent":
        if value > 100:
            raise ScheduleError(f"the schedule is longer than the run: {value} percent; at most 100")
        return round(value / 100 * total)
    if unit == "epochs":
        return round(value * steps_per_epoch)
    if value != int(value):
        raise ScheduleError(f"{value} steps is not a whole number")
    return int(value)
