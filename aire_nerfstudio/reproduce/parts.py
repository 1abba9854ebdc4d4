"""One of several parts of a sweep, for a batch system that starts them: a Slurm array, GNU parallel, xargs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.reproduce.fit import Fit


def parse_part(text: str) -> tuple[int, int]:
    """``3/8`` as (3, 8): the third of eight parts.

    Raises:
        InputError: not of that form, or no such part.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--part {text!r} must be NUMBER/COUNT with 1 <= NUMBER <= COUNT, such as 3/8")
    return int(match[1]), int(match[2])


def part_of(fits: Sequence[Fit], number: int, count: int) -> list[Fit]:
    """The fits of part ``number`` (from 1) of ``count``: the same for every process that asks.

    Fits that start from another one are in that one's part, so that no part waits for another. Parts get about the same
    cost, the dearest groups being dealt first.
    """
    groups: dict[Fit, list[Fit]] = {}
    for fit in dict.fromkeys(fits):
        groups.setdefault(_root(fit), []).append(fit)
    dealt: list[list[Fit]] = [[] for _ in range(count)]
    costs = [0.0] * count
    for members in sorted(groups.values(), key=lambda group: -sum(fit.cost() for fit in group)):
        least = costs.index(min(costs))
        dealt[least] += members
        costs[least] += sum(fit.cost() for fit in members)
    return dealt[number - 1]


def _root(fit: Fit) -> Fit:
    needs = fit.needs()
    return _root(needs[0]) if needs else fit
