"""Memory for the samples of a NeRF's step where the step is a CUDA graph: enough, and little more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aire_nerfstudio.errors import InputError

# Of the most that were met, what there is memory for; what a batch of some thousand rays varies by is a fifth of that.
MARGIN = 1.1
# There is to be more where more than this share is used, and less where this share would do; a change is a capture.
SCARCE, MUCH = 0.98, 0.8
# Sizes are multiples of this.
GRANULE = 512


class SampleRoom:
    """How many samples a step has memory for: those that are marched, and those of them that light reaches.

    A step without a graph measures (:meth:`measure`). Those with one keep on the device what they met (:meth:`note`),
    which :meth:`follow` looks at from time to time: at fixed steps, so that a resumed run has the same memory as the
    uninterrupted one.
    """

    def __init__(self) -> None:
        self.sizes: tuple[int, int] | None = None
        """Marched, and reached by light; None: not known, a step without a graph is to come."""
        self._most: Tensor | None = None

    def forget(self) -> None:
        """What was met says nothing about what comes: the scene changed at once."""
        self.sizes = None

    def measure(self, marched: int, reached: int) -> None:
        """Take what a step without a graph met."""
        self.sizes = _size(marched), _size(reached)
        if self._most is not None:
            self._most.zero_()

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
        """Change the sizes where what was met since the last time asks for it; the host waits."""
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

    def state(self) -> list[int]:
        """Sizes and the most that were met since the last look, for a checkpoint; empty where nothing is known."""
        if self.sizes is None:
            return []
        return [*self.sizes, *([0, 0] if self._most is None else self._most.tolist())]

    def restore(self, state: Sequence[int], device: torch.device) -> None:
        """Take up what :meth:`state` gave.

        Raises:
            InputError: it gave something else.
        """
        is_state = isinstance(state, list) and len(state) in (0, 4) and all(type(n) is int and n >= 0 for n in state)
        if not is_state or (state and min(state[:2]) < 1):
            raise InputError(
                f"the checkpoint's room is {str(state)[:60]}; this package writes four sizes: it is damaged"
            )
        self.sizes = (state[0], state[1]) if state else None
        self.place(device).copy_(torch.tensor(state[2:] or [0, 0]))


def _size(count: int) -> int:
    return max(1, -(-round(MARGIN * count) // GRANULE)) * GRANULE
