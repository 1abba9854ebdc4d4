"""Keeps a training from going on with NaN or Inf: a look at each step, and a copy of the last good state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# On CUDA a look waits for the device: every so many steps. What a step between has spoiled goes with the state.
STEPS_BETWEEN_LOOKS = 16
# States kept over a run, and the fewest steps between two of them.
STATES, LEAST_STEPS_BETWEEN_STATES = 100, 50


class FaultGuard:
    """Says whether loss and gradients are finite, and holds a copy of the training while they were.

    Args:
        total_steps: optimizer steps of the run.
    """

    def __init__(self, total_steps: int) -> None:
        self._every = max(LEAST_STEPS_BETWEEN_STATES, total_steps // STATES)
        self._kept_at: int | None = None
        self._changes = 0
        self._state: dict[str, Any] | None = None
        self._is_finite: Tensor | None = None
        self._steps = 0

    @property
    def has_state(self) -> bool:
        """Whether a state was kept yet."""
        return self._state is not None

    @property
    def state(self) -> dict[str, Any]:
        """The last good state."""
        assert self._state is not None
        return self._state

    @property
    def step(self) -> int:
        """The optimizer step that follows it."""
        assert self._kept_at is not None
        return self._kept_at

    def keep(
        self, step: int, state: Callable[[], dict[str, Any]], parameters: Sequence[Tensor], changes: int = 0
    ) -> None:
        """Keep a copy of the ``state`` before the optimizer step ``step``, where it is time and all is finite.

        Args:
            step: optimizer step.
            state: gives the state.
            parameters: must be finite.
            changes: made by hand so far. One more, and it is time: going back must not undo what a person asked for.
        """
        if self._kept_at is not None:
            is_time = step >= self._kept_at + self._every or changes != self._changes
            if not is_time or not (self._seen() and _is_finite(parameters)):
                return
        self._changes = changes
        self.put(step, state())

    def put(self, step: int, state: dict[str, Any]) -> None:
        """Keep a copy of a ``state`` that is known to be good."""
        self._state, self._kept_at = copy.deepcopy(state), step

    def is_sound(self, loss: Tensor, parameters: Sequence[Tensor], must_look: bool = False) -> bool:
        """Whether the loss ``[]`` and all gradients of ``parameters`` are finite; on CUDA now and then, or if it must.

        A gradient whose squares overflow counts as not finite.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        finite = torch.isfinite(loss)
        if gradients:
            finite = finite & torch.isfinite(torch.stack(torch._foreach_norm(gradients)).sum())
        return self.saw(finite, must_look)

    def saw(self, finite: Tensor, must_look: bool = False) -> bool:
        """As :meth:`is_sound`, of a step of which ``finite []`` says whether loss and gradients are."""
        # A copy: a graph's next replay writes over its own.
        self._is_finite = finite.clone() if self._is_finite is None else self._is_finite & finite
        self._steps += 1
        looks = must_look or finite.device.type == "cpu" or self._steps % STEPS_BETWEEN_LOOKS == 0
        return not looks or self._seen()

    def forget(self) -> None:
        """What was seen is undone by going back."""
        self._is_finite = None

    def _seen(self) -> bool:
        return self._is_finite is None or bool(self._is_finite)


def _is_finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in tensors)
