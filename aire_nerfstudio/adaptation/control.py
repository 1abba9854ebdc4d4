"""What a person may ask of a running adaptation, and where the adaptation stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from aire_nerfstudio.errors import InputError

Action = Literal["densify", "decay", "prune", "skip"]


class Refused(InputError):
    """A request that makes no sense at present; the message says why and what would help. Nothing was changed."""


@dataclass(frozen=True)
class Request:
    """A change of the architecture asked for by hand.

    Attributes:
        action: ``densify``, ``decay`` (choose neurons and begin their decay), ``prune`` (remove the chosen ones) or
            ``skip`` (whatever the schedule has next, now).
        count: how many neurons; None: as many as the configuration says.
        steps: of ``decay``: optimizer steps until the removal; None: as the schedule has it, else a tenth of the run.
    """

    action: Action
    count: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("count", self.count), ("steps", self.steps)):
            if value is not None and value < 1:
                raise Refused(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class StageSpan:
    """A stage of the run and the steps it takes, ``[start, end)``, on the schedule's clock."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Status:
    """Where an adaptation stands.

    Attributes:
        spans: the run's stages in order; empty where nothing ever changes.
        targets: indices of the neurons that are to go, by layer.
        removal_at: the schedule's step before which they go; None: none is to be removed at a known step.
        controllable: whether requests are answered at all.
    """

    spans: tuple[StageSpan, ...] = ()
    targets: dict[int, tuple[int, ...]] = field(default_factory=dict)
    removal_at: int | None = None
    controllable: bool = False

    def span_at(self, clock: int) -> StageSpan | None:
        """The stage that the schedule's step ``clock`` belongs to."""
        return next((span for span in self.spans if span.start <= clock < span.end), None)


def spread(count: int, widths: list[int]) -> list[int]:
    """``count`` neurons over layers in proportion to their widths, at least one left in each.

    Args:
        count: how many in all.
        widths: of the layers.

    Returns:
        One number a layer, summing to ``count``.

    Raises:
        Refused: more than there are to spare.
    """
    spare = [width - 1 for width in widths]
    if count > sum(spare):
        raise Refused(f"{count} neurons are more than the layers can lose; at most {sum(spare)} can go")
    exact = [count * width / sum(widths) for width in widths]
    shares = [min(int(part), most) for part, most in zip(exact, spare, strict=True)]
    order = sorted(range(len(widths)), key=lambda layer: shares[layer] - exact[layer])
    while sum(shares) < count:
        for layer in order:
            if sum(shares) < count and shares[layer] < spare[layer]:
                shares[layer] += 1
    return shares
