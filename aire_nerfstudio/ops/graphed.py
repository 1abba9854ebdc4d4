"""A loss and its gradients as a CUDA graph: one launch each way instead of dozens or hundreds.

Of small networks and of losses with derivatives the launches take longer than the work. What is captured ends at the
gradients: the optimizer's few launches, the adaptation's penalty and everything else that depends on the step stay
outside, so that any strategy works. A change of the architecture gives the parameters other tensors, and the graph is
captured anew, which takes as long as some steps and happens a few times in a run: padding all layers to a capacity, so
that shapes stay, would cost every step instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from aire_nerfstudio.ops.processors import matmul_precision

# A loss of a network at the batch's tensors: its terms by name.
Loss = Callable[..., dict[str, Tensor]]
# Calls before a capture.
WARM_UP = 3


class GraphedLoss:
    """Calls a loss through CUDA graphs, one for each set of shapes; as it is where that is not possible.

    Not a module: a model that holds it keeps its parameters' names.

    Args:
        loss: ``loss(network, *tensors)``, with no dependence on values from the host, such as a step's number.
    """

    def __init__(self, loss: Loss) -> None:
        self._loss = loss
        self._key: tuple[Any, ...] = ()
        self._captured: dict[tuple[Any, ...], _Graph] = {}

    def __call__(self, network: nn.Module, *tensors: Tensor) -> dict[str, Tensor]:
        """The loss's terms; differentiable once, in the network's parameters, before the next call."""
        device = tensors[0].device
        if device.type != "cuda" or not torch.is_grad_enabled() or torch.is_autocast_enabled("cuda"):
            return self._loss(network, *tensors)
        parameters = [p for p in network.parameters() if p.requires_grad]
        if not parameters:
            return self._loss(network, *tensors)
        # What a captured graph has in it besides the batch: these tensors.
        key = tuple((p.data_ptr(), tuple(p.shape), p.requires_grad) for p in network.parameters())
        if key != self._key:
            self._key, self._captured = key, {}
        shapes = (matmul_precision(), *((tuple(t.shape), t.dtype) for t in tensors))
        if shapes not in self._captured:
            # Streams and captures are the current device's.
            with torch.cuda.device(device):
                self._captured[shapes] = _Graph(network, self._loss, tensors)
        graph = self._captured[shapes]
        return dict(zip(graph.names, _Replay.apply(graph, tensors, *parameters).unbind(), strict=True))


def as_graph(loss: Loss, is_wanted: bool) -> Loss:
    """``loss`` through CUDA graphs where that is wanted, else as it is."""
    return GraphedLoss(loss) if is_wanted else loss


class _Graph:
    """A loss at tensors of certain shapes, and its gradients, captured.

    What is differentiated are aliases of the parameters: were it these themselves, what the graph keeps would hold on
    to them, and no surgery could exchange their tensors; and streams of earlier backward passes would enter it.
    """

    def __init__(self, network: nn.Module, loss: Loss, tensors: tuple[Tensor, ...]) -> None:
        self.names: list[str] = []
        self.replays = 0
        self._places = [t.detach().clone() for t in tensors]
        aliases = {f"network.{n}": p.detach().requires_grad_(p.requires_grad) for n, p in network.named_parameters()}
        leaves = [alias for alias in aliases.values() if alias.requires_grad]
        call = _Call(network, loss, self.names)

        def forward() -> Tensor:
            return torch.func.functional_call(call, aliases, tuple(self._places))

        def backward(terms: Tensor, slope: Tensor) -> tuple[Tensor, ...]:
            found = torch.autograd.grad(terms, leaves, slope, allow_unused=True)
            return tuple(torch.zeros_like(p) if g is None else g for p, g in zip(leaves, found, strict=True))

        # Libraries make their workspaces, and Triton its kernels, when first called: not while a graph is captured.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                terms = forward()
                backward(terms, torch.ones_like(terms))
                del terms
        torch.cuda.current_stream().wait_stream(stream)
        # Another thread, a viewer's for example, may go on meanwhile.
        options: dict[str, Any] = {"stream": stream, "capture_error_mode": "thread_local"}
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # cuBLAS keeps a workspace for each stream, which others may clear: made anew, it lies in the graphs' memory.
        torch._C._cuda_clearCublasWorkspaces()
        with torch.cuda.graph(self._forward, **options):
            kept = forward()
        self._slope = torch.ones_like(kept, requires_grad=False)
        with torch.cuda.graph(self._backward, pool=self._forward.pool(), **options):
            self._gradients = backward(kept, self._slope)
        torch._C._cuda_clearCublasWorkspaces()
        # Without what autograd kept: its memory is the graphs', and lives with them.
        self._terms = kept.detach()

    def terms(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """The terms at ``tensors``, one after another, ``[k]``."""
        for place, tensor in zip(self._places, tensors, strict=True):
            place.copy_(tensor, non_blocking=True)
        self._forward.replay()
        self.replays += 1
        # The next replay writes over them, and somebody may look at this step's later.
        return self._terms.clone()

    def gradients(self, slope: Tensor) -> list[Tensor]:
        """Gradients of the last terms' sum weighted by ``slope [k]``, for each parameter that wants one."""
        self._slope.copy_(slope)
        self._backward.replay()
        self.replays += 1
        # Copies: the next replay writes over them, and whoever gets them may add to them.
        return list(torch._foreach_mul(self._gradients, 1))


class _Replay(torch.autograd.Function):
    """The terms of a graph, whose gradients are the graph's."""

    @staticmethod
    def forward(ctx: Any, graph: _Graph, tensors: tuple[Tensor, ...], *parameters: Tensor) -> Tensor:
        terms = graph.terms(tensors)
        ctx.graph, ctx.number = graph, graph.replays
        return terms

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        if ctx.graph.replays != ctx.number:
            raise RuntimeError("a loss's CUDA graph gives gradients once, and before it is called again")
        return None, None, *ctx.graph.gradients(slope)


class _Call(nn.Module):
    """The loss as a module of the network's parameters, so that aliases can stand in for them."""

    def __init__(self, network: nn.Module, loss: Loss, names: list[str]) -> None:
        super().__init__()
        self.network = network
        self._loss, self._names = loss, names

    def forward(self, *tensors: Tensor) -> Tensor:
        """The terms in the order of ``names``, ``[k]``."""
        terms = self._loss(self.network, *tensors)
        self._names[:] = list(terms)
        return torch.stack(list(terms.values()))
