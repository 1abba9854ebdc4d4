"""Microseconds that the host needs for a step whose graph is replayed, where the replay itself takes none.

    python scripts/host_time.py image [--steps-per-iteration 50]

A small training of the tests on the processor, in which a captured step is stood in for by its first result: what is
left is what nerfstudio, this package and torch do around a launch. The few launches outside the graph count as what
small operations of the processor cost, a microsecond or two; on CUDA each takes some more.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from tiny import tiny_config, train

from aire_nerfstudio.models.graphed_training import GraphedTraining
from aire_nerfstudio.models.trainer import AdaptiveTrainer
from aire_nerfstudio.ops import graphed

STEPS = 4000


class Standing(graphed._Graph):
    """A captured step that does nothing but look after its inputs."""

    def __init__(self, network: Any, loss: Any, batch: Any, optimizer: Any, has_penalty: bool) -> None:
        losses, others = loss(network, torch.zeros(()) if has_penalty else None, *batch)
        losses = {name: term.detach() for name, term in losses.items()}
        total = torch.stack(list(losses.values())).sum()
        self.stepped = graphed.Stepped(losses, others, total, torch.tensor(True))
        self.gradients = [torch.zeros_like(p) for p in network.parameters()]
        self._given, self._places = [None] * len(batch), [t.clone() for t in batch]
        self._weight, self._rate = torch.zeros(()), torch.zeros(())
        self._weight_now = self._rate_now = 0.0
        self._graph = argparse.Namespace(replay=lambda: None)


def main() -> None:
    """Train, print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["image", "sdf", "flow", "nerf"])
    parser.add_argument("--steps-per-iteration", type=int, default=50, metavar="K")
    given = parser.parse_args()
    each = given.steps_per_iteration

    graphed._Graph = Standing
    graphed.GraphedStep.can_step = lambda self, *batch: bool(self._optimizer.state)
    torch.cuda.device = lambda device: contextlib.nullcontext()
    setup, train_iteration, times = AdaptiveTrainer.setup, AdaptiveTrainer.train_iteration, []

    def prepared(self: Any, test_mode: str = "val") -> None:
        setup(self, test_mode)
        self._graphed = GraphedTraining(self)

    def timed(self: Any, step: int) -> Any:
        begin = time.perf_counter()
        result = train_iteration(self, step)
        times.append(1e6 * (time.perf_counter() - begin) / each)
        return result

    AdaptiveTrainer.setup, AdaptiveTrainer.train_iteration = prepared, timed
    with tempfile.TemporaryDirectory() as folder:
        config = tiny_config(given.task, folder, max_num_iterations=STEPS // each, steps_per_iteration=each)
        config.steps_per_save = config.steps_per_eval_batch = 10 * STEPS
        if given.task == "nerf":
            # How long the grid takes is the device's time.
            config.pipeline.model.grid_every = 10 * STEPS
        moments = {"unit": "percent", "densify_at": 1, "decay_start": 30, "prune_at": 60}
        config.pipeline.model.adaptation = replace(config.pipeline.model.adaptation, **moments)
        train(config)
    ends = [round(share * len(times)) for share in (0.05, 0.3, 0.6, 1)]
    before, decay, after = (statistics.median(times[a:b]) for a, b in pairwise(ends))
    print(
        f"{given.task}, {each} steps an iteration: {before:.0f} us of the host a step, {decay:.0f} in the decay, "
        f"{after:.0f} after it (torch {torch.__version__}, {torch.get_num_threads()} threads)"
    )


if __name__ == "__main__":
    main()
