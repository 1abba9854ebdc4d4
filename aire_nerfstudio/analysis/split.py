"""Figure 6: what a network's important neurons alone make of the signal, and what the others do."""

from __future__ import annotations

import torch
from torch.func import functional_call

from aire_nerfstudio.adaptation.importance import score, weakest
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.shapes import Channels, Points


@torch.no_grad()
def split_outputs(
    network: SineMLP, x: Points, layer: int, count: int, criterion: str = "l1"
) -> tuple[Channels, Channels]:
    """Evaluate the network with only the strong, then with only the weak neurons of one layer; it is left unchanged.

    Args:
        network: any sine network.
        x: inputs, ``[N, d]``.
        layer: which sine layer, 0 is the input layer.
        count: how many neurons count as weak.
        criterion: what decides; see :func:`~aire_nerfstudio.adaptation.importance.score`.

    Returns:
        Outputs ``[N, out]`` of the important part and of the unimportant part.

    Raises:
        InputError: there is no such layer, or it has not so many neurons.
    """
    groups = network.neuron_groups()
    if not 0 <= layer < len(groups):
        raise InputError(f"there is no sine layer {layer}; take one of 0 to {len(groups) - 1}")
    group = groups[layer]
    if not 0 <= count <= group.width:
        raise InputError(f"{count} of {group.width} neurons of layer {layer} cannot be the weak ones; take 0 to all")
    weak = torch.zeros(group.width, dtype=torch.bool, device=x.device)
    outputs = network.layer_outputs(x)[layer] if criterion == "activation" else None
    weak[weakest(score(group, criterion, outputs), count)] = True
    name = f"layers.{layer + 1}.weight"
    columns = group.outgoing.parameter
    parts = [functional_call(network, {name: columns * ~gone}, (x,)) for gone in (weak, ~weak)]
    return parts[0], parts[1]
