"""What a NeRF's steps met on their rays, and what follows: the early stop, and memory where steps are graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aire_nerfstudio.errors import InputError

# Of the most that were met, what there is memory for; what a batch of some thousand rays varies by is a fifth of that.
MARGIN = 1.1
# There is to be more where more than this share is used, and less where this share would do; a change is a capture.
SCARCE, MUCH = 0.98, 0.8
# Sizes are multiples of this.
GRANULE = 512
# To look which samples light reaches costs a fifth of what each of the others saves: it begins where light reaches less
# than the first of these shares of them, and ends where it reaches more than the second.
STOP_BELOW, STOP_ABOVE = 0.76, 0.83
# What no step meets: a checkpoint that says so is damaged.
LARGEST = 1 << 31


class SampleCounts:
    """How many samples steps met: those that are marched, and those of them that light reaches.

    A step without a graph measures (:meth:`measure`). Those with one keep on the device what they met (:meth:`note`),
    which :meth:`follow` looks at from time to time. What is decided is decided at fixed steps, and is in the
    checkpoint, so that a resumed run decides as the uninterrupted one.

    Args:
        least: samples for which a graph has memory at least: those of one ray, so that a batch never has none.
    """

    def __init__(self, least: int = 1) -> None:
        self._least = least
        self.stops_early = False
        """Whether samples that light does not reach are looked for, and left out."""
        self.sizes: tuple[int, int] | None = None
        """Samples that a graph has memory for, marched and reached; None: not known, a step without one is to come."""
        self._most: Tensor | None = None
        self._candidates = 0

    def forget(self) -> None:
        """What was met says nothing about what comes: the scene changed at once."""
        self.sizes = None

    def measure(self, marched: int, reached: int, candidates: int, decides: bool = False) -> None:
        """Take what a step without a graph met.

        Args:
            marched: samples on its rays.
            reached: those that light reaches, or all where nobody looked.
            candidates: what rays of the whole diagonal's length would meet, rays times samples on it.
            decides: whether the early stop begins or ends by it.
        """
        self.sizes, self._candidates = (self._size(marched), self._size(reached)), candidates
        if self._most is not None:
            self._most.zero_()
        if decides:
            self._decide(marched, reached)

    def _decide(self, marched: int, reached: int) -> None:
        # Of no samples there is no share.
        if marched:
            self.stops_early = reached / marched < (STOP_ABOVE if self.stops_early else STOP_BELOW)

    def fit(self, candidates: int) -> None:
        """Let sizes follow the batch, where it is another one than that which was measured."""
        if self.sizes is not None and candidates != self._candidates:
            share = candidates / max(1, self._candidates)
            self.sizes = self._size(round(self.sizes[0] * share)), self._size(round(self.sizes[1] * share))
            self._candidates = candidates

    def place(self, device: torch.device) -> Tensor:
        """Where a graph keeps the most that were met, int64 ``[2]``: the same memory as long as there is a graph."""
        if self._most is None or self._most.device != device:
            self._most = torch.zeros(2, dtype=torch.long, device=device)
        return self._most

    def note(self, marched: Tensor, reached: Tensor) -> None:
        """Within a graph: how many samples there were, or would have been, int64 ``[]`` each."""
        most = self.place(marched.device)
        torch.maximum(most, torch.stack([marched, reached]), out=most)

    def follow(self) -> bool:
        """Decide by what graphs met since the last time; the host waits.

        Returns:
            Whether there was less memory than samples.
        """
        if self.sizes is None or self._most is None:
            return False
        marched, reached = self._most.tolist()
        self._most.zero_()
        if marched == 0:
            return False
        # Light would have reached as many more as there would have been.
        there = min(marched, self.sizes[0])
        reached = round(reached * marched / there)
        was_short = marched > self.sizes[0] or (self.stops_early and reached > self.sizes[1])
        self.sizes = self._followed(self.sizes[0], marched), self._followed(self.sizes[1], reached)
        self._decide(marched, reached)
        return was_short

    def _followed(self, size: int, count: int) -> int:
        """The size that is to follow ``size``, after up to ``count`` were met."""
        wanted = self._size(count)
        return wanted if count > SCARCE * size or wanted < MUCH * size else size

    def _size(self, count: int) -> int:
        return max(1, -(-max(self._least, round(MARGIN * count)) // GRANULE)) * GRANULE

    def state(self) -> dict[str, Any]:
        """For a checkpoint, plain data."""
        return {
            "stops_early": self.stops_early,
            "sizes": [] if self.sizes is None else list(self.sizes),
            "most": [0, 0] if self._most is None else self._most.tolist(),
            "candidates": self._candidates,
        }

    def restore(self, state: Any, device: torch.device) -> None:
        """Take up what :meth:`state` gave.

        Raises:
            InputError: it gave something else.
        """
        if not _is_state(state):
            raise InputError(
                f"the checkpoint's sample_counts is {str(state)[:80]}; this package writes a decision, sizes and the "
                "most that were met: it is damaged"
            )
        self.stops_early, sizes, most = state["stops_early"], state["sizes"], state["most"]
        self._candidates = state["candidates"]
        self.sizes = (sizes[0], sizes[1]) if sizes else None
        if self._most is not None or any(most):
            self.place(device).copy_(torch.tensor(most))


def _is_state(state: Any) -> bool:
    if not isinstance(state, dict) or state.keys() != SampleCounts().state().keys():
        return False
    sizes, most = state["sizes"], state["most"]
    if not isinstance(sizes, list) or not isinstance(most, list) or type(state["stops_early"]) is not bool:
        return False
    if not all(type(n) is int and 0 <= n <= LARGEST for n in (*sizes, *most, state["candidates"])):
        return False
    if sizes and state["candidates"] == 0:
        return False
    return len(sizes) in (0, 2) and len(most) == 2 and all(n > 0 and n % GRANULE == 0 for n in sizes)
