"""Scores of neurons: group -> ``[n]``; nothing here changes anything."""

from __future__ import annotations

import torch
from torch import Tensor

from aire_nerfstudio.fields.neurons import NeuronGroup


def contribution(group: NeuronGroup) -> Tensor:
    """L1 norm of each neuron's outgoing column, ``[n]``, differentiable; ``w0`` is not folded in.

    Source: AIRe, equation 4, ``|W_{*j}^{i+1}|_1``.
    """
    return group.outgoing.parameter.abs().sum(dim=1 - group.outgoing.dim)


@torch.no_grad()
def strongest(group: NeuronGroup, count: int) -> Tensor:
    """Indices of the ``count`` neurons of largest contribution, largest first, ``[count]``; ties by lower index."""
    return torch.argsort(contribution(group), descending=True, stable=True)[:count]


@torch.no_grad()
def weakest(group: NeuronGroup, count: int) -> Tensor:
    """Indices of the ``count`` neurons of smallest contribution, sorted, ``[count]``; ties by lower index."""
    return torch.argsort(contribution(group), stable=True)[:count].sort().values
