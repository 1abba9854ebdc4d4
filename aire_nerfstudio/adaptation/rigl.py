"""RigL: sparse from the start, connections dropped by magnitude and grown by gradient; shapes never change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from aire_nerfstudio.adaptation import surgery
from aire_nerfstudio.adaptation.base import PlannedEvent, Probe, Report, widths
from aire_nerfstudio.adaptation.passive import PassiveStrategy
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.neurons import NeuronGroup


@dataclass
class RigLState:
    """Which connections are alive: one bool mask a weight matrix, input first, output last."""

    total: int
    masks: list[Tensor] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {"total": self.total, "masks": [mask.cpu() for mask in self.masks]}

    def load_dict(self, saved: dict[str, Any]) -> None:
        """Restore what :meth:`to_dict` gave."""
        self.total, self.masks = int(saved["total"]), [mask.clone() for mask in saved["masks"]]


class RigLStrategy(PassiveStrategy):
    """Keeps as many non-zero parameters as a given dense network has.

    Erdos-Renyi densities a layer; every ``every`` steps until 75 % of the run a share of the living connections,
    falling from ``share`` as a cosine, is exchanged. Source: Evci et al. 2020, "Rigging the lottery". Unlike there,
    what was just dropped is not regrown at once, and the exchange comes after an optimizer step, not instead of it.

    Args:
        parameters: non-zero parameters to keep, biases included.
        every: optimizer steps between two exchanges.
        share: share of the connections exchanged at first, in (0, 1).
    """

    refusal = "rigl exchanges connections by a rule of its own; train the variant aire"

    def __init__(self, parameters: int, every: int = 100, share: float = 0.3) -> None:
        if every < 1 or not 0 < share < 1:
            raise InputError(f"rigl exchanges every {every} steps a share of {share}; at least 1, and in (0, 1)")
        self._parameters, self._every, self._share = parameters, every, share

    @torch.no_grad()
    def init_state(self, groups: Sequence[NeuronGroup], steps_per_epoch: int, total_steps: int) -> RigLState:
        """Random masks of the right size, applied at once.

        Raises:
            InputError: more parameters are asked for than there are, or fewer than the biases.
        """
        weights = _weights(groups)
        biases = sum(g.bias.parameter.numel() for g in groups) + groups[-1].next_bias.numel()
        living = self._parameters - biases
        if not 0 < living <= sum(w.numel() for w in weights):
            raise InputError(
                f"rigl is to keep {self._parameters} parameters; with {biases} biases and "
                f"{sum(w.numel() for w in weights)} weights that cannot be"
            )
        masks = []
        for weight, density in zip(weights, erdos_renyi([w.shape for w in weights], living), strict=True):
            count = max(1, round(density * weight.numel()))
            chosen = torch.randperm(weight.numel(), device=weight.device)[:count]
            mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
            mask[chosen] = True
            masks.append(mask.view_as(weight))
        for weight, mask in zip(weights, masks, strict=True):
            weight *= mask
        return RigLState(total_steps, masks)

    def restore(self, saved: dict[str, Any]) -> RigLState:
        """The state that a checkpoint holds."""
        state = RigLState(1)
        state.load_dict(saved)
        return state

    def plan(self, state: RigLState, start: Sequence[int]) -> list[PlannedEvent]:
        """What the table at the start shows."""
        return [
            PlannedEvent(0, f"sparse: {self._parameters:,} parameters are not 0, exchanged every {self._every} steps")
        ]

    def is_due(self, state: RigLState, step: int) -> bool:
        """At the beginning; exchanges follow steps."""
        return step == 0

    def step(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: RigLState,
        step: int,
        averages: Sequence[Sequence[NeuronGroup]] = (),
        probe: Probe | None = None,
    ) -> list[Report]:
        """One report at the beginning; the exchange itself follows a backward pass, in :meth:`constrain`."""
        if not self.is_due(state, step):
            return []
        same = widths(groups)
        counts = tuple(int(mask.sum()) for mask in state.masks)
        return [Report(step, "sparse", counts, same, same)]

    @torch.no_grad()
    def constrain(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: RigLState,
        step: int,
        error: Tensor | None = None,
    ) -> None:
        """Exchange connections when due; dead ones are 0 and have no momentum."""
        weights = _weights(groups)
        state.masks = [mask.to(weights[0].device) for mask in state.masks]
        for weight, mask in zip(weights, state.masks, strict=True):
            surgery.mask(weight, mask, optimizers)
        until = 0.75 * state.total
        if step > 0 and step % self._every == 0 and step < until:
            share = self._share / 2 * (1 + math.cos(math.pi * step / until))
            state.masks = [exchange(w, mask, share) for w, mask in zip(weights, state.masks, strict=True)]
            for weight, mask in zip(weights, state.masks, strict=True):
                surgery.mask(weight, mask, optimizers)

    def parameters_kept(self, groups: Sequence[NeuronGroup], state: RigLState) -> int:
        """Living weights and all biases."""
        biases = sum(g.bias.parameter.numel() for g in groups) + groups[-1].next_bias.numel()
        return biases + sum(int(mask.sum()) for mask in state.masks)


def _weights(groups: Sequence[NeuronGroup]) -> list[Tensor]:
    return [*(group.weight.parameter for group in groups), groups[-1].outgoing.parameter]


def exchange(weight: Tensor, mask: Tensor, share: float) -> Tensor:
    """Drop the smallest living weights and grow as many dead ones where the gradient is largest.

    Args:
        weight: any shape, with its gradient; grown connections start at 0 (dead ones are 0 already).
        mask: bool, living connections.
        share: of the living connections, in [0, 1].

    Returns:
        The new mask, with as many connections.
    """
    living, dead = int(mask.sum()), int((~mask).sum())
    count = min(int(share * living), dead)
    if count == 0 or weight.grad is None:
        return mask
    flat, gradient = weight.detach().abs().flatten(), weight.grad.abs().flatten()
    alive = mask.flatten()
    dropped = torch.where(alive, flat, torch.inf).argsort(stable=True)[:count]
    new = alive.clone()
    new[dropped] = False
    # What was just dropped may not grow back at once: it would be no exchange.
    grown = torch.where(alive, -torch.inf, gradient).argsort(descending=True, stable=True)[:count]
    new[grown] = True
    return new.view_as(mask)


def erdos_renyi(shapes: Sequence[Sequence[int]], living: int) -> list[float]:
    """Densities proportional to ``(n_in + n_out) / (n_in n_out)``, none above 1, with ``living`` weights in all."""
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    dense: set[int] = set()
    while True:
        free = [i for i in range(len(sizes)) if i not in dense]
        left = living - sum(sizes[i] for i in dense)
        factor = left / sum(raw[i] * sizes[i] for i in free) if free else 0.0
        full = {i for i in free if factor * raw[i] >= 1}
        if not full:
            return [1.0 if i in dense else max(0.0, factor * raw[i]) for i in range(len(sizes))]
        dense |= full
