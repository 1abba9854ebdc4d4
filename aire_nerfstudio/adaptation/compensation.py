"""Letting the layer behind make up for neurons that are about to go."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aire_nerfstudio.fields.neurons import NeuronGroup

Compensation = Literal["none", "mean", "least_squares"]
# Of the mean squared output: far below what float32 resolves in the fit, enough to keep the system regular.
RIDGE = 1e-6


@torch.no_grad()
def correction(group: NeuronGroup, remove: Tensor, outputs: Tensor, how: Compensation) -> tuple[Tensor, Tensor]:
    """What to add to the layer behind ``group`` so that it needs the neurons ``remove`` less.

    Args:
        group: the layer that will lose neurons.
        remove: their indices, ``[K]``; with none of them nothing is to be added.
        outputs: the layer's outputs over data, ``[N, n]``.
        how: ``mean``: their mean output goes into the next bias. ``least_squares``: the next bias and the columns of
            the neurons that stay are refitted so that the next layer's input changes least over the data, in the mean
            square. ``none``: nothing.

    Returns:
        For the outgoing columns ``[n_out, n]`` and for the next bias ``[n_out]``.
    """
    weight = group.outgoing.parameter
    columns, bias = torch.zeros_like(weight), torch.zeros_like(group.next_bias)
    if how == "none" or len(remove) == 0:
        return columns, bias
    lost = outputs[:, remove].double() @ weight[:, remove].T.double()  # [N, n_out]
    if how == "mean":
        return columns, lost.mean(0).to(bias)
    keep = torch.ones(group.width, dtype=torch.bool, device=weight.device)
    keep[remove] = False
    regressors = torch.cat([outputs[:, keep].double(), torch.ones_like(lost[:, :1])], dim=1)
    gram = regressors.T @ regressors
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    solution = torch.linalg.solve(gram, regressors.T @ lost)  # [n_kept + 1, n_out]
    columns[:, keep] = solution[:-1].T.to(columns)
    return columns, solution[-1].to(bias)


@torch.no_grad()
def apply_correction(group: NeuronGroup, columns: Tensor, bias: Tensor) -> None:
    """Add what :func:`correction` gave, in place."""
    group.outgoing.parameter.add_(columns)
    group.next_bias.add_(bias)
