"""A loss and its gradients as a CUDA graph: one launch each way instead of dozens or hundreds.

Of small networks and of losses with derivatives the launches take longer than the work. What is captured ends at the
gradients: the optimizer's few launches, the adaptation's penalty and everything else that depends on the step stay
outside, so that any strategy works. A change of the architecture gives the parameters other tensors, and the graph is
captured anew, which takes as long as some steps and happens a few times in a run: padding all layers to a capacity, so
that shapes stay, would cost every step instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from aire_nerfstudio.ops.processors import matmul_precision

# A loss of a network at the batch's tensors: its terms by name.
Loss = Callable[..., dict[str, Tensor]]
# What torch makes of it: the terms in order.
Replay = Callable[..., tuple[Tensor, ...]]


class GraphedLoss:
    """Calls a loss through CUDA graphs, one for each set of shapes; as it is where that is not possible.

    Not a module: a model that holds it keeps its parameters' names.

    Args:
        loss: ``loss(network, *tensors)``, with no dependence on values from the host, such as a step's number.
    """

    def __init__(self, loss: Loss) -> None:
        self._loss = loss
        self._key: tuple[Any, ...] = ()
        self._captured: dict[tuple[Any, ...], tuple[list[str], Replay]] = {}

    def __call__(self, network: nn.Module, *tensors: Tensor) -> dict[str, Tensor]:
        """The loss's terms; differentiable once, in the network's parameters."""
        device = tensors[0].device
        if device.type != "cuda" or not torch.is_grad_enabled() or torch.is_autocast_enabled("cuda"):
            return self._loss(network, *tensors)
        # What a captured graph has in it besides the batch: these tensors, at this precision.
        key = (
            matmul_precision(),
            *((p.data_ptr(), tuple(p.shape), p.requires_grad) for p in network.parameters()),
        )
        if key != self._key:
            self._key, self._captured = key, {}
        shapes = tuple((tuple(t.shape), t.dtype) for t in tensors)
        if shapes not in self._captured:
            self._captured[shapes] = self._capture(network, tensors)
        names, replay = self._captured[shapes]
        return dict(zip(names, replay(*tensors), strict=True))

    def _capture(self, network: nn.Module, tensors: tuple[Tensor, ...]) -> tuple[list[str], Replay]:
        names: list[str] = []
        call = _Call(network, self._loss, names)
        samples = tuple(t.detach().clone() for t in tensors)
        replay = torch.cuda.make_graphed_callables(call, samples, allow_unused_input=True)
        return names, cast(Replay, replay)


class _Call(nn.Module):
    """The loss as a module of the network's parameters, which is what torch captures."""

    def __init__(self, network: nn.Module, loss: Loss, names: list[str]) -> None:
        super().__init__()
        self.network = network
        self._loss, self._names = loss, names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The terms in the order of ``names``."""
        terms = self._loss(self.network, *tensors)
        self._names[:] = list(terms)
        return tuple(terms.values())
