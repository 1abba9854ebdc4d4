"""Theorem 2: how much a planned removal of neurons can change the output at most, known before it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.sine_mlp import Affine, SineMLP


@torch.no_grad()
def pruning_bound(network: SineMLP, remove: Mapping[int, Tensor | Sequence[int]]) -> float:
    """Largest change of any output at any input when neurons are removed, ``sup_x |f(x) - f~(x)|_inf``, at most.

    Removing neurons of layer ``i`` perturbs layer ``i + 1`` by their columns; several layers add up by the triangle
    inequality. Source: AIRe, theorem 2, ``|dW_k|_inf |L|_inf prod_{i > k} |W_i|_inf`` with ``w0`` folded into the
    weights, ``|.|_inf`` the largest row sum of absolute values.

    Args:
        network: a SIREN.
        remove: layer (0 is the input layer) to the indices of the neurons to remove.

    Returns:
        The bound, in units of the output, 0 or more. It holds for every input, so it is often far from what happens.

    Raises:
        InputError: the activation is not ``siren``: the theorem needs ``|h| <= 1`` and a 1-Lipschitz activation.
    """
    if network.activation != "siren":
        raise InputError(f"theorem 2's bound holds for siren; the activation is {network.activation!r}")
    layers = [cast(Affine, layer) for layer in network.layers]
    norms = [_row_sum(_folded(network, layers, index)) for index in range(len(layers))]
    total = 0.0
    for layer, indices in remove.items():
        if not 0 <= layer < len(layers) - 1:
            raise InputError(f"there is no sine layer {layer}; take one of 0 to {len(layers) - 2}")
        chosen = torch.as_tensor(indices, device=layers[0].weight.device)
        if len(chosen) == 0:
            continue
        width = layers[layer].weight.shape[0]
        is_index = chosen.dtype not in (torch.bool, torch.uint8) and not chosen.is_floating_point()
        if not is_index or chosen.min() < 0 or chosen.max() >= width:
            raise InputError(
                f"neurons of layer {layer} to remove must be indices in [0, {width}); got {chosen.tolist()} of type "
                f"{chosen.dtype}"
            )
        change = _row_sum(_folded(network, layers, layer + 1)[:, chosen])
        for norm in norms[layer + 2 :]:
            change *= norm
        total += change
    return total


def _folded(network: SineMLP, layers: Sequence[Affine], index: int) -> Tensor:
    """Weight of a layer behind the first with its ``w0``; the output layer has none."""
    weight = layers[index].weight.double()
    return weight if index == len(layers) - 1 else weight * network.hidden_omega


def _row_sum(matrix: Tensor) -> float:
    return float(matrix.abs().sum(1).max()) if matrix.numel() else 0.0
