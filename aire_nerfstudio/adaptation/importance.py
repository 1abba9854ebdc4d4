"""Scores of neurons: group -> ``[n]``; nothing here changes anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.neurons import NeuronGroup
from aire_nerfstudio.shapes import PerRow

Criterion = Literal["l1", "l2", "activation", "taylor"]
OwnCriterion = Callable[[NeuronGroup, Tensor | None], Tensor]
_own: dict[str, tuple[OwnCriterion, bool]] = {}


def register_criterion(name: str, function: OwnCriterion, needs_outputs: bool = False) -> None:
    """Make a criterion of one's own known by name, to ``AireConfig(criterion=name)``, before a strategy is made.

    Args:
        name: not one of ours; given again, the new function counts.
        function: of a layer, and its outputs over some data ``[N, n]`` where it needs them, else None; gives the
            neurons' scores ``[n]``, larger is more. Called without gradients.
        needs_outputs: whether it needs the layer's outputs, which cost a pass through the network.

    Raises:
        InputError: the name is one of ours.
    """
    if name in get_args(Criterion):
        raise InputError(f"the criterion {name!r} is this package's own; take another name")
    _own[name] = function, needs_outputs


def criteria() -> tuple[str, ...]:
    """Names of all criteria, ours first."""
    return (*get_args(Criterion), *_own)


def needs_outputs(criterion: str) -> bool:
    """Whether a criterion looks at the layers' outputs over data."""
    return criterion == "activation" or (criterion in _own and _own[criterion][1])


def contribution(group: NeuronGroup) -> PerRow:
    """L1 norm of each neuron's outgoing column, ``[n]``, differentiable; ``w0`` is not folded in.

    Source: AIRe, equation 4, ``|W_{*j}^{i+1}|_1``.
    """
    return group.outgoing.parameter.abs().sum(dim=1 - group.outgoing.dim)


@torch.no_grad()
def score(
    group: NeuronGroup, criterion: str = "l1", outputs: Tensor | None = None, saliency: Tensor | None = None
) -> Tensor:
    """How much each neuron of a layer matters, ``[n]``, larger is more.

    Args:
        group: the layer.
        criterion: ``l1`` (the paper's) or ``l2`` norm of the outgoing column; ``activation``: mean ``|h_j|`` over the
            data times the L1 norm; ``taylor``: first-order change of the loss when the column is removed; or one
            that was registered.
        outputs: ``h``, the layer's outputs over some data, ``[N, n]``; for ``activation``.
        saliency: running mean of :func:`taylor_saliency`, ``[n]``; for ``taylor``.

    Raises:
        InputError: what the criterion needs is not there.
    """
    if needs_outputs(criterion) and outputs is None:
        raise InputError(f"the criterion {criterion!r} needs the layers' outputs over data, which this task lacks")
    if criterion in _own:
        scores = _own[criterion][0](group, outputs)
        if scores.shape != (group.width,):
            raise InputError(
                f"the criterion {criterion!r} gave {list(scores.shape)} for the {group.width} neurons of {group.name}; "
                f"it must give [{group.width}]"
            )
        return scores.detach().to(group.outgoing.parameter)
    if criterion == "l1":
        return contribution(group)
    if criterion == "l2":
        return group.outgoing.parameter.square().sum(dim=1 - group.outgoing.dim).sqrt()
    if criterion == "activation":
        assert outputs is not None  # asked for above
        return outputs.abs().mean(0) * contribution(group)
    if saliency is None or len(saliency) != group.width:
        raise InputError(
            f"{group.name}: the criterion 'taylor' needs gradients from before the decision; decide at step 1 or later"
        )
    if not saliency.any():
        raise InputError(
            f"{group.name}: the criterion 'taylor' has seen no gradient; call constrain after backward and before "
            "zero_grad"
        )
    return saliency.to(group.outgoing.parameter)


@torch.no_grad()
def taylor_saliency(group: NeuronGroup) -> PerRow | None:
    """``|sum_i W_ij dL/dW_ij|`` of each outgoing column by the last gradient, ``[n]``; None before any backward.

    Source: Molchanov et al. 2017, "Pruning convolutional neural networks for resource efficient inference".
    """
    weight = group.outgoing.parameter
    if weight.grad is None:
        return None
    return (weight * weight.grad).sum(dim=1 - group.outgoing.dim).abs()


@torch.no_grad()
def strongest(scores: PerRow, count: int) -> Tensor:
    """Indices of the ``count`` largest of ``scores [n]``, largest first, ``[count]``; ties by lower index."""
    return torch.argsort(scores, descending=True, stable=True)[:count]


@torch.no_grad()
def weakest(scores: PerRow, count: int) -> Tensor:
    """Indices of the ``count`` smallest of ``scores [n]``, sorted, ``[count]``; ties by lower index."""
    return torch.argsort(scores, stable=True)[:count].sort().values
