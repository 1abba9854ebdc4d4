"""What some of a network's neurons give, and which frequencies drive it where."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from aire_nerfstudio.adaptation import surgery
from aire_nerfstudio.fields.neurons import NeuronGroup
from aire_nerfstudio.fields.sine_layers import activate
from aire_nerfstudio.fields.sine_mlp import SineMLP


def parts_of(
    field: nn.Module, groups_of: Callable[[nn.Module], list[NeuronGroup]], weak: Mapping[int, Tensor]
) -> dict[str, nn.Module]:
    """The field with its strong neurons alone, and with its weak ones alone; copies, the field stays as it is.

    Args:
        field: any.
        groups_of: the adaptive layers of a field.
        weak: indices of the weak neurons by layer; layers that are not named stay whole.

    Returns:
        ``important`` and ``unimportant``. A layer whose neurons would all go keeps one, silenced.

    Source: AIRe, figure 6.
    """
    parts = {}
    for name, wants_weak in (("important", False), ("unimportant", True)):
        part = copy.deepcopy(field).requires_grad_(False)
        for layer, indices in weak.items():
            group = groups_of(part)[layer]
            goes = torch.full((group.width,), wants_weak)
            goes[indices] = not wants_weak
            if goes.all():
                group.outgoing.parameter[:, 0] = 0
                goes[0] = False
            surgery.prune(group, goes.nonzero().squeeze(1))
        parts[name] = part
    return parts


def driving_frequency(network: SineMLP, x: Tensor) -> Tensor:
    """The mean input frequency at each point, as a share of the largest.

    ``sum_j |h_j df/dh_j| |omega_j| / sum_j |h_j df/dh_j|`` over the input neurons ``j``, whose frequency is
    ``|omega_j|`` (``w0`` times the norm of the row) and whose output is ``h_j``; ``f`` is the sum of the outputs.

    Args:
        network: any sine network.
        x: ``[N, d]``.

    Returns:
        ``[N]`` in [0, 1].
    """
    layers = list(network.sine_layers())
    first, omega = layers[0]
    with torch.enable_grad():
        h = activate(first(x), network.activation, omega, network.detach_finer_scale).detach().requires_grad_()
        y = h
        for layer, omega in layers[1:]:
            y = activate(layer(y), network.activation, omega, network.detach_finer_scale)
        (slope,) = torch.autograd.grad(network.layers[-1](y).sum(), h)
    given = (h * slope).abs().detach()
    frequency = first.weight.detach().norm(dim=1)
    mean = (given @ frequency) / given.sum(1).clamp_min(torch.finfo(given.dtype).tiny)
    return mean / frequency.max().clamp_min(torch.finfo(given.dtype).tiny)
