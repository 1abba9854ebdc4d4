"""Which neurons go, and from which layers, so that a network fits a number of parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from aire_nerfstudio.adaptation.schedule import ScheduleError


def count_parameters(in_features: int, widths: Sequence[int], out_features: int) -> int:
    """Weights and biases of a network of sine layers with an affine one behind them."""
    sizes = (in_features, *widths, out_features)
    return sum((sizes[i] + 1) * sizes[i + 1] for i in range(len(sizes) - 1))


def choose_for_budget(
    scores: Sequence[Tensor], in_features: int, out_features: int, target: int
) -> tuple[tuple[int, ...], list[Tensor]]:
    """Remove the neuron that matters least for each parameter it frees, until the network fits.

    A neuron matters by its share of its layer's scores: layers differ in scale, and a share does not. What it frees
    is counted at the widths of the moment, so that a layer gets dearer as its neighbours shrink.

    Args:
        scores: one ``[n]`` a layer, input first; larger matters more.
        in_features: inputs of the network.
        out_features: outputs of the network.
        target: parameters at most.

    Returns:
        The widths that remain and, for each layer, the chosen neurons, ascending.

    Raises:
        ScheduleError: one neuron a layer would still be too many.
    """
    least = count_parameters(in_features, [1] * len(scores), out_features)
    if target < least:
        raise ScheduleError(f"one neuron in each of the {len(scores)} layers already takes {least} parameters")
    widths = [len(s) for s in scores]
    order = [s.argsort(stable=True) for s in scores]
    shares = [(s / s.sum().clamp_min(1e-30)).double().sort().values.tolist() for s in scores]
    gone = [0] * len(scores)
    while count_parameters(in_features, widths, out_features) > target:
        best, price = -1, float("inf")
        for layer, width in enumerate(widths):
            if width == 1:
                continue
            before = widths[layer - 1] if layer else in_features
            after = widths[layer + 1] if layer + 1 < len(widths) else out_features
            asked = shares[layer][gone[layer]] / (before + 1 + after)
            if asked < price:
                best, price = layer, asked
        widths[best] -= 1
        gone[best] += 1
    chosen = [ranking[:count].sort().values for ranking, count in zip(order, gone, strict=True)]
    return tuple(widths), chosen
