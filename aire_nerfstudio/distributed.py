"""Several processes that train one network: each its share of a batch, one gradient, one decision.

Gradients are averaged in one collective between backward and the optimizer's step. ``DistributedDataParallel`` would
hold the shapes that surgery changes, and does not support ``torch.autograd.grad``, which surfaces and flows need; the
networks here are too small for its overlapping of buckets to gain anything.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Rows = TypeVar("Rows", bound=Any)


def count() -> int:
    """Processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among all, 0 for the one that writes files and decides."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def share(rows: Rows) -> Rows:
    """This process's part of ``rows [N, ...]``, a tensor or a bundle of rays, which all processes hold alike.

    All parts are of one length, so that a mean of their means is the mean; up to ``count() - 1`` rows are left out. Of
    fewer rows than processes everyone takes all.
    """
    size = len(rows) // count()
    return rows if size == 0 or count() == 1 else rows[rank() * size : (rank() + 1) * size]


def shared_rand(*shape: int, device: torch.device) -> Tensor:
    """:func:`torch.rand` for the rows of :func:`share`: the numbers that one process would draw for these rows.

    Every process draws them all, so that generators stay alike.
    """
    n = shape[0]
    if count() == 1:
        return torch.rand(*shape, device=device)
    return torch.rand(n * count(), *shape[1:], device=device)[rank() * n : (rank() + 1) * n]


def average(tensors: Sequence[Tensor]) -> None:
    """Put the mean over all processes into each of ``tensors``, of the same shapes everywhere, in one collective."""
    if count() == 1 or not tensors:
        return
    flat = torch.cat([t.detach().reshape(-1).float() for t in tensors])
    dist.all_reduce(flat)
    flat /= count()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.detach().copy_(mean.view_as(tensor))


def average_gradients(parameters: Sequence[Tensor], besides: Sequence[Tensor] = ()) -> None:
    """Average ``.grad`` of ``parameters``, None counting as 0, and the tensors ``besides``, over all processes."""
    if count() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    average([*(p.grad for p in parameters if p.grad is not None), *besides])


def from_first(make: Callable[[], Any], device: torch.device | str) -> Any:
    """What ``make`` gives in the first process, tensors and plain data; the others' is not called.

    It travels as a checkpoint does and is read as one, on the CPU, without executing anything.
    """
    if count() == 1:
        return make()
    state = make() if rank() == 0 else None
    at = torch.device(device) if dist.get_backend() == "nccl" else torch.device("cpu")
    if rank() == 0:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        packed = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8).to(at)
        size = torch.tensor([len(packed)], device=at)
    else:
        packed, size = torch.empty(0, dtype=torch.uint8, device=at), torch.zeros(1, dtype=torch.int64, device=at)
    dist.broadcast(size, src=0)
    if rank() != 0:
        packed = torch.empty(int(size), dtype=torch.uint8, device=at)
    dist.broadcast(packed, src=0)
    if rank() == 0:
        return state
    return torch.load(io.BytesIO(packed.cpu().numpy().tobytes()), map_location="cpu", weights_only=True)


def wait_for_all() -> None:
    """Go on when all processes have come here."""
    if count() > 1:
        dist.barrier()


def take_from_first(tensors: Sequence[Tensor]) -> None:
    """Put the first process's values into ``tensors``, of the same shapes everywhere."""
    if count() == 1:
        return
    for tensor in tensors:
        dist.broadcast(tensor.detach(), src=0)


def is_alike(tensors: Sequence[Tensor]) -> bool:
    """Whether all processes hold the same bits in ``tensors``."""
    if count() == 1:
        return True
    words = torch.cat([t.detach().reshape(-1).contiguous().view(torch.uint8).cpu() for t in tensors]).long()
    weights = torch.arange(1, len(words) + 1) % 65_521 + 1
    mine = torch.stack([words.sum(), (words * weights).sum(), torch.tensor(len(words))])
    at = tensors[0].device if dist.get_backend() == "nccl" else torch.device("cpu")
    low, high = mine.to(at).clone(), mine.to(at).clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN)
    dist.all_reduce(high, op=dist.ReduceOp.MAX)
    return bool(torch.equal(low, high))
