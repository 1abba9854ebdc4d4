"""DepGraph's choice of neurons, by the torch-pruning package: one-shot structured pruning, then fine-tuning."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aire_nerfstudio.adaptation.aire import AireStrategy
from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.aire_state import AireState
from aire_nerfstudio.adaptation.base import Probe
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.neurons import NeuronGroup


def _torch_pruning() -> Any:
    try:
        return importlib.import_module("torch_pruning")
    except ImportError as error:
        raise InputError("the variant depgraph needs the package torch-pruning; pip install torch-pruning") from error


class _Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


def group_norms(groups: Sequence[NeuronGroup]) -> list[Tensor]:
    """Group-norm importance of every neuron of each layer, ``[n]``: the mean square of its weights.

    Rows that lead to it and columns that lead from it, biases left out; the order is that of the L2 norm.

    Source: Fang et al. 2023, "DepGraph: towards any structural pruning", through ``torch_pruning``'s own graph of a
    twin network.

    Raises:
        InputError: torch-pruning is not installed.
    """
    torch_pruning = _torch_pruning()
    linears = [_linear(group.weight.parameter, group.bias.parameter) for group in groups]
    linears.append(_linear(groups[-1].outgoing.parameter, groups[-1].next_bias))
    layers: list[nn.Module] = [linears[0]]
    for linear in linears[1:]:
        layers += [_Sine(), linear]
    twin = nn.Sequential(*layers)
    example = torch.zeros(1, linears[0].in_features, device=linears[0].weight.device)
    graph = torch_pruning.DependencyGraph().build_dependency(twin, example_inputs=example)
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    scores = []
    for linear in linears[:-1]:
        indices = list(range(linear.out_features))
        group: Any = graph.get_pruning_group(linear, torch_pruning.prune_linear_out_channels, idxs=indices)
        scores.append(importance(group).detach())
    return scores


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    # torch-pruning traces autograd, so the copies must want gradients.
    linear = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return linear


class DepGraphStrategy(AireStrategy):
    """Prunes once, at ``prune_at``, what :func:`group_norms` finds weakest; nothing is added or pressed before.

    Raises:
        InputError: torch-pruning is not installed.
    """

    can_grow = False

    def __init__(self, config: AireConfig, first_omega: float = 30.0) -> None:
        super().__init__(config, first_omega)
        _torch_pruning()

    def _scores(
        self, groups: Sequence[NeuronGroup], state: AireState, layers: Sequence[int], probe: Probe | None
    ) -> list[Tensor]:
        with torch.enable_grad():
            norms = group_norms(groups)
        return [norms[layer] for layer in layers]
