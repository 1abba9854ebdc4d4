"""Whether a removal of neurons changed no more than theorem 2 allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from aire_nerfstudio.analysis.stability import pruning_bound
from aire_nerfstudio.fields.sine_mlp import Affine, SineMLP

# Points of the cube at which the outputs before and after are compared.
POINTS = 4096
# Share of the largest output that rounding may add to a change (bfloat16 products at precision "medium").
ROUNDING = 2.0**-7


class RemovalCheck:
    """Made before a removal, asked after it.

    Args:
        network: a SIREN, whose inputs lie in [-1, 1]^d.
        remove: layer (0 is the input layer) to the indices of the neurons that are to go.
    """

    @torch.no_grad()
    def __init__(self, network: SineMLP, remove: Mapping[int, Tensor | Sequence[int]]) -> None:
        self.bound = pruning_bound(network, remove)
        weight = cast(Affine, network.layers[0]).weight
        generator = torch.Generator().manual_seed(0)  # of its own: a training draws the same with it and without
        points = 2 * torch.rand(POINTS, weight.shape[1], generator=generator) - 1
        self._points = points.to(weight)
        self._before = network(self._points)

    @torch.no_grad()
    def effect(self, network: SineMLP) -> float:
        """Largest change of an output at the points, in its units."""
        return float((network(self._points) - self._before).abs().max())

    def is_within(self, effect: float) -> bool:
        """Whether the theorem allows such an effect; what is no number is not."""
        return effect <= self.bound + ROUNDING * float(self._before.abs().max())
