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


class SampleCounts:
    """How many samples steps met: those that are marched, and those of them that light reaches.

    A step without a graph measures (:meth:`measure`). Those with one keep on the device what they met (:meth:`note`),
    which :meth:`follow` looks at from time to time. What is decided is decided at fixed steps, and is in the
    checkpoint, so that a resumed run decides as the uninterrupted one.
    """

    def __init__(self) -> None:
        self.stops_early = False
        """Whether samples that light does not reach are looked for, and left out."""
        self.sizes: tuple[int, int] | None = None
        """Samples that a graph has memory for, marched and reached; None: not known, a step without one is to come."""
        self._most: Tensor | None = None

    def forget(self) -> None:
        """What was met says nothing about what comes: the scene changed at once."""
        self.sizes = None

    def measure(self, marched: int, reached: int, decides: bool = False) -> None:
        """Take what a step without a graph met.

        Args:
            marched: samples on its rays.
            reached: those that light reaches, or all where nobody looked.
            decides: whether the early stop begins or ends by it.
        """
        self.sizes = _size(marched), _size(reached)
        if self._most is not None:
            self._most.zero_()
        if decides:
            self._decide(marched, reached)

    def _decide(self, marched: int, reached: int) -> None:
        share = reached / max(1, marched)
        self.stops_early = share < (STOP_ABOVE if self.stops_early else STOP_BELOW)

    def place(self, device: torch.device) -> Tensor:
        """Where a graph keeps the most that were met, int64 ``[2]``: the same memory as long as there is a graph."""
        if self._most is None or self._most.device != device:
            self._most = torch.zeros(2, dtype=torch.long, device=device)
        return self._most

    def note(self, marched: Tensor, reached: Tensor) -> None:
        """Within a graph: how many samples there were, or would have been, int64 ``[]`` each."""
        most = self.place(marched.device)
        torch.maximum(most, torch.stack([marched, reached]), out=most)

    def follow(self) -> None:
        """Decide by what graphs met since the last time; the host waits."""
        if self.sizes is None or self._most is None:
            return
        most = self._most.tolist()
        self._most.zero_()
        if most[0] == 0:
            return
        # Light would have reached as many more as there would have been.
        most[1] = max(most[1], round(most[1] * most[0] / min(most[0], self.sizes[0])))
        wanted = _size(most[0]), _size(most[1])
        is_scarce = any(count > SCARCE * size for count, size in zip(most, self.sizes, strict=True))
        is_much = any(count < MUCH * size for count, size in zip(wanted, self.sizes, strict=True))
        if is_scarce or is_much:
            self.sizes = wanted
        self._decide(*most)

    def state(self) -> dict[str, Any]:
        """For a checkpoint, plain data."""
        return {
            "stops_early": self.stops_early,
            "sizes": [] if self.sizes is None else list(self.sizes),
            "most": [0, 0] if self._most is None else self._most.tolist(),
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
        self.sizes = (sizes[0], sizes[1]) if sizes else None
        if self._most is not None or any(most):
            self.place(device).copy_(torch.tensor(most))


def _is_state(state: Any) -> bool:
    if not isinstance(state, dict) or state.keys() != {"stops_early", "sizes", "most"}:
        return False
    sizes, most = state["sizes"], state["most"]
    if not all(isinstance(part, list) and all(type(n) is int and n >= 0 for n in part) for part in (sizes, most)):
        return False
    return type(state["stops_early"]) is bool and len(sizes) in (0, 2) and 0 not in sizes and len(most) == 2


def _size(count: int) -> int:
    return max(1, -(-round(MARGIN * count) // GRANULE)) * GRANULE
