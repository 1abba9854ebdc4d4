"""Adam's step on all parameters of a network in two launches, and whether what it was given is finite.

PyTorch's fused form gives 65,536 numbers to a block: a layer of 256 x 256 is one, for which a step of a sine network
waits longer than for a layer's product. The arithmetic is that of ``torch.optim.Adam(fused=True)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
STATE = ("exp_avg", "exp_avg_sq", "step")
NO_GROUP: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "maximize": False}


@triton.jit
def _begin(table, corrections, loss, finite, count, log_beta1, log_beta2, BLOCK: tl.constexpr):
    """Count a step of each tensor of table [count, 5]; corrections [count, 2]: 1 - beta^steps of both; finite []: loss.

    A row of the table is addresses: the parameter's, its gradient's, its averages', its count of steps'; or zeros.
    """
    i = tl.arange(0, BLOCK)
    address = tl.load(table + 5 * i + 4, mask=i < count, other=0)
    is_there = address != 0
    place = address.to(tl.pointer_type(tl.float32))
    steps = tl.load(place, mask=is_there, other=0.0) + 1
    tl.store(place, steps, mask=is_there)
    # The difference is small at first: in float32 its digits would be those of its rounding.
    at = corrections + 2 * i
    tl.store(at, (1 - tl.exp(steps.to(tl.float64) * log_beta1)).to(tl.float32), mask=is_there)
    tl.store(at + 1, (1 - tl.exp(steps.to(tl.float64) * log_beta2)).to(tl.float32), mask=is_there)
    tl.store(finite, (tl.abs(tl.load(loss)) < float("inf")).to(tl.int8))


@triton.jit
def _update(
    table, places, corrections, rate, finite, beta1, beta2, rest1, rest2, eps, decay,
    UPDATE: tl.constexpr, MAXIMIZE: tl.constexpr, DECAY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one tensor: places [programs, 3] are its row of the table, its first number, and the tensor's end.

    finite [] becomes 0 where a gradient is not; without UPDATE that is all.
    """
    place = places + 3 * tl.program_id(0)
    index = tl.load(place)
    row = table + 5 * index
    i = tl.load(place + 1) + tl.arange(0, BLOCK)
    is_there = i < tl.load(place + 2)
    g = tl.load(tl.load(row + 1).to(tl.pointer_type(tl.float32)) + i, mask=is_there, other=0.0)
    # Programs that find such a gradient all store the same.
    is_finite = tl.min((tl.abs(g) < float("inf")).to(tl.int32), 0)
    tl.store(finite, is_finite.to(tl.int8), mask=is_finite == 0)
    if not UPDATE:
        return
    parameter = tl.load(row).to(tl.pointer_type(tl.float32)) + i
    average = tl.load(row + 2).to(tl.pointer_type(tl.float32)) + i
    square = tl.load(row + 3).to(tl.pointer_type(tl.float32)) + i
    p = tl.load(parameter, mask=is_there, other=0.0)
    m = tl.load(average, mask=is_there, other=0.0)
    v = tl.load(square, mask=is_there, other=0.0)
    if MAXIMIZE:
        g = -g
    if DECAY:
        g += decay * p
    m = beta1 * m + rest1 * g
    v = beta2 * v + rest2 * g * g
    step = tl.load(rate) / tl.load(corrections + 2 * index)
    p -= step * m / (tl.sqrt(v) / tl.sqrt(tl.load(corrections + 2 * index + 1)) + eps)
    tl.store(parameter, p, mask=is_there)
    tl.store(average, m, mask=is_there)
    tl.store(square, v, mask=is_there)


class TritonAdam:
    """Adam's step on tensors that stay where they are, to be captured: it does nothing before :meth:`aim`.

    Args:
        parameters: float32 on one CUDA device, contiguous; changed in place.
        states: of each, torch's: ``exp_avg``, ``exp_avg_sq`` and ``step``, float32 on the device. None: nothing is
            changed, the gradients are only looked at.
        group: torch's options: ``betas``, ``eps``, ``weight_decay``, ``maximize``.
    """

    def __init__(
        self, parameters: Sequence[Tensor], states: Sequence[dict[str, Tensor]] | None, group: dict[str, Any] | None
    ) -> None:
        device = parameters[0].device
        self._parameters, self._states, self._group = parameters, states, group or NO_GROUP
        places = [[i, at, p.numel()] for i, p in enumerate(parameters) for at in range(0, p.numel(), BLOCK)]
        self._places = torch.tensor(places, dtype=torch.int32)
        self._given = torch.zeros_like(self._places, device=device)
        self._table = torch.zeros(len(parameters), 5, dtype=torch.int64, device=device)
        self._corrections = torch.ones(len(parameters), 2, device=device)

    def aim(self, gradients: Sequence[Tensor]) -> None:
        """Say where the gradients lie, float32 and contiguous: of a graph once it is captured."""
        states = (
            [[s[name].data_ptr() for name in STATE] for s in self._states]
            if self._states
            else [[0] * 3] * len(gradients)
        )
        rows = [
            [p.data_ptr(), g.data_ptr(), *state]
            for p, g, state in zip(self._parameters, gradients, states, strict=True)
        ]
        self._table.copy_(torch.tensor(rows, dtype=torch.int64))
        self._given.copy_(self._places)

    def __call__(self, rate: Tensor, loss: Tensor, finite: Tensor) -> None:
        """Step: learning rate ``[]`` and loss ``[]``; the bool ``finite []`` says whether it and the gradients are."""
        beta1, beta2 = self._group["betas"]
        flag = finite.view(torch.int8)
        _begin[(1,)](
            self._table, self._corrections, loss, flag, len(self._table), math.log(beta1) if beta1 else -math.inf,
            math.log(beta2) if beta2 else -math.inf, BLOCK=triton.next_power_of_2(len(self._table)),
        )  # fmt: skip
        _update[(len(self._places),)](
            self._table, self._given, self._corrections, rate, flag, float(beta1), float(beta2), 1 - beta1, 1 - beta2,
            float(self._group["eps"]), float(self._group["weight_decay"]),
            UPDATE=self._states is not None, MAXIMIZE=self._group["maximize"], DECAY=self._group["weight_decay"] != 0,
            BLOCK=BLOCK,
        )  # fmt: skip


def is_possible(parameters: Sequence[Tensor], states: Sequence[dict[str, Tensor]] | None) -> bool:
    """Whether these can be stepped here: float32 and contiguous, all on one CUDA device."""
    tensors = [*parameters, *(s[name] for s in states or () for name in STATE)]
    return (
        bool(tensors)
        and all(
            t.device == tensors[0].device and t.device.type == "cuda" and t.dtype == torch.float32 and t.is_contiguous()
            for t in tensors
        )
        and all(p.numel() for p in parameters)
    )
