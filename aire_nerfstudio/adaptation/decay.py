"""Moving information out of chosen neurons before they go: what presses on their outgoing columns, and how hard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from aire_nerfstudio.adaptation.importance import contribution
from aire_nerfstudio.fields.neurons import NeuronGroup
from aire_nerfstudio.shapes import Scalar

Decay = Literal["targeted", "proximal", "scheduled", "weight_decay", "none"]


def targeted_penalty(groups: Sequence[NeuronGroup], targets: dict[int, Tensor]) -> Scalar:
    """``sum_{j in I} |W_{*j}|_1``, ``[]``, differentiable; ``targets`` maps a layer to its chosen neurons.

    Source: AIRe, equation 4.
    """
    return torch.stack([contribution(groups[layer])[chosen].sum() for layer, chosen in targets.items()]).sum()


def plain_penalty(groups: Sequence[NeuronGroup]) -> Scalar:
    """``sum W^2`` over all weight matrices, each once, ``[]``."""
    squares = [g.weight.parameter.square().sum() for g in groups]
    squares.append(groups[-1].outgoing.parameter.square().sum())
    return torch.stack(squares).sum()


@torch.no_grad()
def soft_threshold(
    groups: Sequence[NeuronGroup], targets: dict[int, Tensor], strength: float, optimizers: Sequence[Optimizer]
) -> None:
    """Proximal step of ``strength * sum_{j in I} |W_{*j}|_1``, in place: every weight moves ``lr * strength`` to 0.

    Decoupled from Adam: as a term of the loss the L1 subgradient is divided by its own root mean square, so that the
    columns shrink at the full learning rate whatever ``strength`` is.
    """
    for layer, chosen in targets.items():
        weight = groups[layer].outgoing.parameter
        columns = weight[:, chosen]
        amount = strength * learning_rate(weight, optimizers)
        weight[:, chosen] = columns.sign() * (columns.abs() - amount).clamp_min(0)


@torch.no_grad()
def cap_contribution(groups: Sequence[NeuronGroup], targets: dict[int, Tensor], caps: dict[int, Tensor]) -> None:
    """Scale the chosen columns down, in place, so that their L1 norms are at most ``caps[layer] [K]``."""
    for layer, chosen in targets.items():
        weight = groups[layer].outgoing.parameter
        norm = contribution(groups[layer])[chosen]
        weight[:, chosen] *= (caps[layer].to(norm) / norm.clamp_min(1e-30)).clamp_max(1)


def learning_rate(parameter: Tensor, optimizers: Sequence[Optimizer]) -> float:
    """The rate at which some optimizer trains ``parameter``; 0 where none does."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if any(p is parameter for p in group["params"]):
                return float(group["lr"])
    return 0.0
