"""What one neuron owns: the slices that appear and disappear with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Slot:
    """One dimension of one parameter, indexed by neuron.

    Attributes:
        parameter: the trainable tensor.
        dim: the dimension of ``parameter`` that runs over the neurons of the group.
    """

    parameter: nn.Parameter
    dim: int

    @property
    def width(self) -> int:
        """Number of neurons along this slot."""
        return self.parameter.shape[self.dim]


@dataclass(frozen=True)
class NeuronGroup:
    """The neurons of one sine layer, as views into the parameters that hold them.

    Neuron ``j`` of layer ``i`` owns row ``j`` of ``W_i``, entry ``j`` of ``b_i`` and column ``j`` of ``W_{i+1}``.
    Weights are laid out as those of ``torch.nn.Linear``: other dimensions are refused.

    Attributes:
        name: layer name, for messages and logs, e.g. ``"density.0"``.
        weight: ``W_i``, shape ``[n, n_in]``, neurons on dim 0.
        bias: ``b_i``, shape ``[n]``, neurons on dim 0.
        outgoing: ``W_{i+1}``, shape ``[n_out, n]``, neurons on dim 1.
        next_bias: ``b_{i+1}``, shape ``[n_out]``: not the neurons' own, it can take over what a constant one gave.
    """

    name: str
    weight: Slot
    bias: Slot
    outgoing: Slot
    next_bias: nn.Parameter

    def __post_init__(self) -> None:
        for what, parameter in (("bias", self.bias.parameter), ("next_bias", self.next_bias)):
            if parameter is None:
                raise ValueError(
                    f"{self.name}: {what} is None; every layer needs a bias (torch.nn.Linear(..., bias=True))"
                )
        dims = (self.weight.dim, self.bias.dim, self.outgoing.dim)
        if dims != (0, 0, 1):
            raise ValueError(
                f"{self.name}: neurons lie on dimensions 0, 0 and 1 of weight, bias and outgoing; got {dims}"
            )

    @property
    def width(self) -> int:
        """Number of neurons ``n`` in the layer."""
        return self.weight.width

    def slots(self) -> Iterator[Slot]:
        """All the slots that surgery on this group edits."""
        yield self.weight
        yield self.bias
        yield self.outgoing
