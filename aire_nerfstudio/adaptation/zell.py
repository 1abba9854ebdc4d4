"""The integer lattice: all frequencies up to a limit at first, the contributing ones in the end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from aire_nerfstudio.adaptation.aire import AireStrategy
from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.aire_state import AireState
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.neurons import NeuronGroup


def lattice(limit: int, dims: int) -> Tensor:
    """Integer vectors of ``[0..limit] x [-limit..limit]^(dims - 1)``, float32 ``[M, dims]``; the others are mirrors."""
    ranges = [range(limit + 1), *[range(-limit, limit + 1)] * (dims - 1)]
    return torch.tensor(list(itertools.product(*ranges)), dtype=torch.float32)


def lattice_size(limit: int, dims: int) -> int:
    """How many frequencies :func:`lattice` has: 780 for 19 in two dimensions."""
    return (limit + 1) * (2 * limit + 1) ** (dims - 1)


class ZellStrategy(AireStrategy):
    """Input frequencies ``pi k`` of the lattice, never trained, pruned by contribution at ``prune_at``.

    Source: Zell, Benbarka et al. 2022, "Seeing implicit neural representations as Fourier series"; pruning as in AIRe,
    table 2. Phases are trained.

    Args:
        config: the run's choices.
        limit: largest frequency in each dimension, 1 or more.
        first_omega: the network's first ``w0``: with it, frequency ``k`` has ``k`` half periods a unit.
    """

    can_grow = False

    def __init__(self, config: AireConfig, limit: int, first_omega: float) -> None:
        super().__init__(config, first_omega)
        if limit < 1:
            raise InputError(f"lattice_limit is {limit}; it must be at least 1")
        self._limit = limit

    @torch.no_grad()
    def init_state(self, groups: Sequence[NeuronGroup], steps_per_epoch: int, total_steps: int) -> AireState:
        """As AIRe's; the input layer takes the lattice's frequencies."""
        state = super().init_state(groups, steps_per_epoch, total_steps)
        weight = groups[0].weight.parameter
        frequencies = lattice(self._limit, weight.shape[1]) * (math.pi / self.first_omega)
        if len(frequencies) != len(weight):
            raise InputError(
                f"the input layer has {len(weight)} neurons; a lattice up to {self._limit} needs {len(frequencies)}"
            )
        weight.copy_(frequencies)
        return state

    @torch.no_grad()
    def constrain(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: Any,
        step: int,
        error: Tensor | None = None,
    ) -> None:
        """Frequencies stay on the lattice."""
        super().constrain(groups, optimizers, state, step, error)
        weight = groups[0].weight.parameter
        unit = math.pi / self.first_omega
        # A step moves a frequency by far less than half a lattice spacing, so rounding brings back the old one.
        weight.copy_((weight / unit).round() * unit)
