"""Input neurons that are added: companions of the strongest, or where the residual has most energy.

Source: AIRe, section 3.1, for the companions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from aire_nerfstudio.adaptation import surgery
from aire_nerfstudio.adaptation.base import Probe
from aire_nerfstudio.adaptation.frequencies import residual_frequencies
from aire_nerfstudio.adaptation.importance import strongest
from aire_nerfstudio.adaptation.schedule import ScheduleError
from aire_nerfstudio.fields.neurons import NeuronGroup

NEW_COLUMN_BOUND = 1e-4
Rows = tuple[Tensor, Tensor]


def companions(inputs: Sequence[NeuronGroup], scores: Tensor, count: int) -> list[Rows]:
    """Incoming rows ``[count, d]`` and biases ``[count]`` of the strongest neurons' companions: both doubled.

    For SIREN that is the second harmonic; FINER's local frequency grows by 2 to 4 times (docs/method.md).

    Args:
        inputs: the input layer of the live network and of each average; an average's companions are its own.
        scores: of the input neurons, ``[n]``.
        count: how many, at most ``n``.
    """
    parents = strongest(scores, count)
    return [(2 * group.weight.parameter[parents], 2 * group.bias.parameter[parents]) for group in inputs]


def rows_from_residual(group: NeuronGroup, count: int, probe: Probe | None, first_omega: float) -> Rows:
    """Incoming rows ``[count, d]`` and biases ``[count]``: the chosen waves, exactly for SIREN alone.

    Raises:
        ScheduleError: the task cannot give the residual.
    """
    if probe is None or probe.residual is None:
        raise ScheduleError(
            "densify_from 'residual' needs the network's own residual, which this task lacks; use 'harmonics'"
        )
    weight = group.weight.parameter
    limit = 2 * first_omega * weight.abs().amax(0)
    frequencies, phases = residual_frequencies(*probe.residual(), limit, count)
    return (frequencies / first_omega).to(weight), (phases / first_omega).to(weight)


@torch.no_grad()
def small_columns(group: NeuronGroup, count: int) -> Tensor:
    """Outgoing weights of ``count`` new neurons of a layer, ``[M, count]``, from U(-1e-4, 1e-4)."""
    columns = group.outgoing.parameter
    return columns.new_empty(columns.shape[0], count).uniform_(-NEW_COLUMN_BOUND, NEW_COLUMN_BOUND)


def add(inputs: Sequence[NeuronGroup], rows: Sequence[Rows], outgoing: Tensor, optimizers: Sequence[Optimizer]) -> None:
    """Grow input layers.

    Args:
        inputs: the input layer of the live network, whose optimizers are given, and of each average.
        rows: of each.
        outgoing: of all, ``[M, count]``.
        optimizers: of the live network.
    """
    held_by = (optimizers, *([()] * (len(inputs) - 1)))
    for group, (weight, bias), owners in zip(inputs, rows, held_by, strict=True):
        surgery.grow(group, weight=weight, bias=bias, outgoing=outgoing, optimizers=owners)
