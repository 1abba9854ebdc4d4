"""A training step as one CUDA graph: loss, gradients and Adam's update in a single launch instead of dozens.

Of small networks and of losses with derivatives the launches take longer than the work, and what Python does around
them longer still. What changes from step to step lies in memory that the graph reads: the batch, the learning rate and
the weight of the adaptation's penalty. A change of the architecture gives the parameters other tensors, and the step is
captured anew, which takes as long as some steps (before torch 2.9 also a collection of Python's garbage) and happens a
few times in a run, or twice a round: padding all layers to a capacity, so that shapes stay, would cost every step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adam import adam

from aire_nerfstudio.ops.backend import is_off
from aire_nerfstudio.ops.processors import matmul_precision
from aire_nerfstudio.ops.triton_network import missing

if TYPE_CHECKING:
    from aire_nerfstudio.ops.triton_adam import TritonAdam

# What a loss gives: its terms, whose sum is minimised, and what is measured beside them, scalars by name.
Terms = tuple[dict[str, Tensor], dict[str, Tensor]]
# Of a network, the penalty's weight (a scalar on the device; None: there is no penalty) and the batch's tensors.
Loss = Callable[..., Terms]
# Calls before a capture.
WARM_UP = 3


@dataclass(frozen=True)
class Stepped:
    """What a step gave, in the graph's memory: to be read, or copied, before the next one.

    Attributes:
        losses: the loss's terms by name, ``[]`` each.
        others: what was measured beside them.
        total: the terms' sum, ``[]``.
        finite: whether it and all gradients are finite, a bool ``[]``.
    """

    losses: dict[str, Tensor]
    others: dict[str, Tensor]
    total: Tensor
    finite: Tensor


class GraphedStep:
    """Trains a network by CUDA graphs, one for each set of shapes.

    Args:
        network: its parameters are what is trained; a surgery may change their tensors, not which they are.
        loss: ``loss(network, weight, *batch)``. What else it depends on must not change, but with ``revision``.
        optimizer: Adam on the network's parameters, fused, whose update is part of the graph; others follow outside.
            None: the gradients are all that is wanted.
    """

    def __init__(self, network: nn.Module, loss: Loss, optimizer: Optimizer | None = None) -> None:
        self._network, self._loss, self._optimizer = network, loss, optimizer
        self._all = list(network.parameters())
        self._updates = _is_capturable(optimizer)
        self._key: tuple[Any, ...] = ()
        self._captured: dict[tuple[Any, ...], _Graph] = {}
        self._reads: tuple[Tensor, ...] = ()

    @property
    def updates(self) -> bool:
        """Whether a step changes the parameters; else it leaves their gradients."""
        return self._updates

    def can_step(self, *batch: Tensor) -> bool:
        """Whether a step can be a graph: on CUDA, with gradients, without autocast, and after Adam's first step."""
        if not batch or any(t.device.type != "cuda" for t in batch) or torch.is_autocast_enabled("cuda"):
            return False
        parameters = self._parameters()
        if not parameters or not torch.is_grad_enabled():
            return False
        return not self._updates or all(self._optimizer.state.get(p) for p in parameters)  # type: ignore[union-attr]

    def __call__(
        self, *batch: Tensor, weight: float = 0.0, reads: Sequence[Tensor] = (), revision: Hashable = None
    ) -> Stepped:
        """A step at a batch, of which :meth:`can_step` holds.

        The parameters' ``grad`` are the step's, in the graph's memory. A tensor that was given in the last call and was
        not written to since is not copied again.

        Args:
            *batch: what the loss gets, on CUDA.
            weight: of the penalty; at 0, and with nothing in ``reads``, the loss gets None.
            reads: what the penalty reads besides the network; kept as long as a graph reads it.
            revision: of whatever else the loss depends on.
        """
        # What a captured graph has in it besides the batch: these tensors and numbers.
        has_penalty = weight != 0 or bool(reads)
        key = (revision, has_penalty, *((t.data_ptr(), t._version) for t in reads), *self._held())
        if key != self._key:
            self._key, self._captured, self._reads = key, {}, tuple(reads)
        shapes = (matmul_precision(), *((tuple(t.shape), t.dtype) for t in batch))
        graph = self._captured.get(shapes)
        if graph is None:
            # Streams and captures are the current device's.
            with torch.cuda.device(batch[0].device):
                optimizer = self._optimizer if self._updates else None
                graph = self._captured[shapes] = _Graph(self._network, self._loss, batch, optimizer, has_penalty)
        rate = self._optimizer.param_groups[0]["lr"] if self._optimizer is not None and self._updates else 0.0
        graph.replay(batch, weight, rate)
        for parameter, gradient in zip(self._parameters(), graph.gradients, strict=True):
            if parameter.grad is not gradient:
                parameter.grad = gradient
        return graph.stepped

    def _parameters(self) -> list[nn.Parameter]:
        return [p for p in self._all if p.requires_grad]

    def _held(self) -> list[Any]:
        held: list[Any] = []
        for parameter in self._all:
            held += (parameter.data_ptr(), parameter.shape, parameter.stride(), parameter.requires_grad)
            if self._updates and parameter.requires_grad:
                state = self._optimizer.state[parameter]  # type: ignore[union-attr]
                held += (state["exp_avg"].data_ptr(), state["exp_avg_sq"].data_ptr(), state["step"].data_ptr())
        if self._updates:
            group = self._optimizer.param_groups[0]  # type: ignore[union-attr]
            held += (*group["betas"], group["eps"], group["weight_decay"], group["maximize"])
        return held


def _is_capturable(optimizer: Optimizer | None) -> bool:
    """Whether an optimizer's step is known: Adam's plain form, whose counts lie on the device."""
    if type(optimizer) is not torch.optim.Adam or len(optimizer.param_groups) != 1:
        return False
    group = optimizer.param_groups[0]
    return bool(group["fused"]) and not group["amsgrad"] and not group.get("decoupled_weight_decay", False)


class _Graph:
    """A step at a batch of certain shapes, captured.

    What is differentiated are aliases of the parameters: streams of earlier backward passes would else enter it.
    """

    def __init__(
        self, network: nn.Module, loss: Loss, batch: Sequence[Tensor], optimizer: Optimizer | None, has_penalty: bool
    ) -> None:
        device = batch[0].device
        self._given: list[tuple[Tensor, int] | None] = [None] * len(batch)
        self._places = [t.detach().clone() for t in batch]
        self._weight, self._rate = (torch.zeros((), device=device) for _ in range(2))
        self._weight_now = self._rate_now = 0.0
        aliases: dict[str, Tensor] = {
            f"network.{name}": nn.Parameter(p.detach(), p.requires_grad) for name, p in network.named_parameters()
        }
        leaves = [alias for alias in aliases.values() if alias.requires_grad]
        call = _Call(network, loss)
        arguments = (self._weight if has_penalty else None, *self._places)
        trained = [p for p in network.parameters() if p.requires_grad]
        adam = _adam_of(optimizer, trained)

        def compute() -> tuple[Stepped, list[Tensor]]:
            losses, others = torch.func.functional_call(call, aliases, arguments)
            total = functools.reduce(torch.add, losses.values())
            found = torch.autograd.grad(total, leaves, allow_unused=True)
            gradients = [
                torch.zeros_like(p) if g is None else g.contiguous() for p, g in zip(leaves, found, strict=True)
            ]
            if adam is not None:
                finite = torch.ones((), dtype=torch.bool, device=device)
            else:
                finite = torch.isfinite(total) & torch.isfinite(torch.stack(torch._foreach_norm(gradients)).sum())
            # Without what autograd kept: its memory is the graph's, and lives with it.
            losses, others = ({name: term.detach() for name, term in terms.items()} for terms in (losses, others))
            return Stepped(losses, others, total.detach(), finite), gradients

        # Libraries make their workspaces, and Triton its kernels, when first called: not while a graph is captured.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                stepped, _ = compute()
            if adam is not None:
                adam(self._rate, stepped.total, stepped.finite)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # cuBLAS keeps a workspace for each stream, which others may clear: made anew, it lies in the graph's memory.
        torch._C._cuda_clearCublasWorkspaces()
        # Another thread, a viewer's for example, may go on meanwhile.
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self.stepped, self.gradients = compute()
            if adam is not None:
                adam(self._rate, self.stepped.total, self.stepped.finite)
            elif optimizer is not None:
                _update(optimizer, trained, self.gradients, self._rate)
        torch._C._cuda_clearCublasWorkspaces()
        if adam is not None:
            adam.aim(self.gradients)
        # Its tables are read by the graph.
        self._adam = adam

    def replay(self, batch: Sequence[Tensor], weight: float, rate: float) -> None:
        """Step once."""
        for index, (place, tensor) in enumerate(zip(self._places, batch, strict=True)):
            given = self._given[index]
            if given is None or given[0] is not tensor or given[1] != tensor._version:
                place.copy_(tensor, non_blocking=True)
                self._given[index] = (tensor, tensor._version)
        if weight != self._weight_now:
            self._weight.fill_(weight)
            self._weight_now = weight
        if rate != self._rate_now:
            self._rate.fill_(rate)
            self._rate_now = rate
        self._graph.replay()


def _adam_of(optimizer: Optimizer | None, trained: Sequence[Tensor]) -> TritonAdam | None:
    """Adam's step, or without it a look at the gradients, in two launches; None where Triton cannot compile them."""
    if is_off() or missing() is not None:
        return None
    from aire_nerfstudio.ops.triton_adam import TritonAdam, is_possible

    states = None if optimizer is None else [optimizer.state[p] for p in trained]
    group = None if optimizer is None else optimizer.param_groups[0]
    return TritonAdam(trained, states, group) if is_possible(trained, states) else None


@torch.no_grad()
def _update(optimizer: Optimizer, parameters: Sequence[Tensor], gradients: list[Tensor], rate: Tensor) -> None:
    """Adam's step on the optimizer's own moments, with the learning rate from the device."""
    group, states = optimizer.param_groups[0], [optimizer.state[p] for p in parameters]
    adam(
        [p.detach() for p in parameters], gradients, [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states],
        [], [s["step"] for s in states], fused=True, amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1],
        lr=rate, weight_decay=group["weight_decay"], eps=group["eps"], maximize=group["maximize"],
    )  # fmt: skip


class _Call(nn.Module):
    """The loss as a module of the network's parameters, so that aliases can stand in for them."""

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.network = network
        self._loss = loss

    def forward(self, *arguments: Any) -> Terms:
        """The loss's terms and what is measured beside them."""
        return self._loss(self.network, *arguments)
