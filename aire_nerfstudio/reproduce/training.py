"""The training loop of all fits: the strategy's changes, the step, the learning rate's decay, the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from aire_nerfstudio.adaptation.aire import AireStrategy
from aire_nerfstudio.adaptation.base import Probe, Report, Strategy
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops.graphed import GraphedStep, Terms
from aire_nerfstudio.reproduce.evaluate import wait_for
from aire_nerfstudio.reproduce.fit import Progress

CURVE_POINTS = 100


class Watcher:
    """What a fit does around the changes of its network, beside the clock."""

    def before(self, event: str) -> None:
        """Just before the neurons are chosen (``decay``) or removed (``prune``), where that happens once."""

    def after(self, reports: Sequence[Report]) -> None:
        """Just after the changes of a step."""

    def stepped(self, step: int) -> None:
        """After a step of the optimizer; the clock runs."""


def train(
    network: SineMLP, strategy: Strategy, steps_per_epoch: int, total: int, learning_rate: float, final_ratio: float,
    batch: Callable[[int], Sequence[Tensor]], loss: Callable[..., dict[str, Tensor]], error_share: float | None,
    probe: Callable[[int], Probe], curve: Callable[[float], float], device: str, watcher: Watcher | None = None,
    progress: Progress | None = None, cuda_graph: bool = False,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    """Train with Adam, the rate decaying exponentially.

    Args:
        network: changed in place.
        strategy: who decides about its size.
        steps_per_epoch: for schedules that count epochs.
        total: steps.
        learning_rate: at the beginning.
        final_ratio: rate at the end over that at the beginning.
        batch: tensors of a step, 0 or later.
        loss: ``loss(network, *tensors)``, terms that add up to the data's.
        error_share: mean squared error of values in [0, 1] over the data's loss; None: there is no such thing.
        probe: what the strategy may ask at a step.
        curve: what is kept of the data's loss for the training curve.
        device: of the network.
        watcher: called around changes, while the clock stands still, and after each step.
        progress: called now and then.
        cuda_graph: each step is a CUDA graph.

    Returns:
        The strategy's state, and figures: ``steps``, ``seconds``, ``events`` as (step, name, widths after), ``curve``
        as (step, value), values not finite as None.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
    state = strategy.init_state(network.neuron_groups(), steps_per_epoch, total)
    # Rounds have many removals.
    is_once = isinstance(strategy, AireStrategy) and strategy.removes_once
    moments = {state.schedule.decay_start: "decay", state.schedule.prune_at: "prune"} if is_once else {}
    watch = watcher or Watcher()
    every = max(1, total // CURVE_POINTS)
    figures: dict[str, Any] = {"steps": total, "steps_per_epoch": steps_per_epoch, "events": [], "curve": []}
    step, changes = 0, 0

    def terms(network: SineMLP, weight: Tensor | None, *tensors: Tensor) -> Terms:
        data = torch.stack(list(loss(network, *tensors).values())).sum()
        return {"data": data, "penalty": strategy.penalty(network.neuron_groups(), state, step, weight)}, {}

    graphed = GraphedStep(network, terms, optimizer) if cuda_graph else None
    clock = _Clock(device)
    for step in range(total):
        groups = network.neuron_groups()
        if step in moments:
            with clock.paused():
                watch.before(moments[step])
        reports = strategy.step(groups, [optimizer], state, step, (), probe(step))
        if reports:
            changes += 1
            figures["events"] += [[report.step, report.event, list(report.after)] for report in reports]
            with clock.paused():
                watch.after(reports)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * final_ratio ** (step / total)
        tensors = batch(step)
        if graphed is not None and graphed.can_step(*tensors):
            losses = graphed(
                *tensors, weight=strategy.penalty_weight(state, step),
                reads=strategy.penalty_reads(state, tensors[0].device), revision=changes,
            ).losses  # fmt: skip
        else:
            optimizer.zero_grad()
            losses, _ = terms(network, None, *tensors)
            (losses["data"] + losses["penalty"]).backward()
            optimizer.step()
        data_loss = losses["data"].detach()
        error = None if error_share is None else error_share * data_loss
        strategy.constrain(groups, [optimizer], state, step, error)
        watch.stepped(step)
        if step % every == 0 or step == total - 1:
            value = curve(float(data_loss))
            figures["curve"].append([step, round(value, 4) if math.isfinite(value) else None])
            if progress is not None:
                progress(step + 1, total)
    figures["seconds"] = round(clock.stop(), 3)
    return state, figures


class _Clock:
    """Seconds of training alone."""

    def __init__(self, device: str) -> None:
        self._device, self._seconds, self._begin = device, 0.0, time.perf_counter()

    def stop(self) -> float:
        wait_for(self._device)
        self._seconds += time.perf_counter() - self._begin
        return self._seconds

    def paused(self) -> _Clock:
        return self

    def __enter__(self) -> None:
        self.stop()

    def __exit__(self, *_: object) -> None:
        self._begin = time.perf_counter()
