"""Numbers and indices of all layers from those of some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from aire_nerfstudio.fields.neurons import NeuronGroup


def ends(groups: Sequence[NeuronGroup]) -> tuple[int, int]:
    """Inputs and outputs of the network."""
    return groups[0].weight.parameter.shape[1], groups[-1].next_bias.numel()


def parameters_of(groups: Sequence[NeuronGroup]) -> int:
    """Weights and biases of the network, the output's included."""
    layers = sum(group.weight.parameter.numel() + group.bias.parameter.numel() for group in groups)
    return layers + groups[-1].outgoing.parameter.numel() + groups[-1].next_bias.numel()


def indices_per_layer(
    groups: Sequence[NeuronGroup], layers: Sequence[int], chosen: Sequence[Tensor]
) -> tuple[tuple[int, ...], ...]:
    """Chosen neurons, one tuple a layer of ``groups``; ``chosen[i]`` belong to layer ``layers[i]``."""
    by_layer = {layer: tuple(indices.tolist()) for layer, indices in zip(layers, chosen, strict=True)}
    return tuple(by_layer.get(index, ()) for index in range(len(groups)))


def counts_per_layer(groups: Sequence[NeuronGroup], counts: Mapping[int, int]) -> tuple[int, ...]:
    """A number for each layer of ``groups``, 0 where ``counts`` has none."""
    return tuple(counts.get(index, 0) for index in range(len(groups)))
