"""Time of a training step through nerfstudio's trainer over the same step in a bare loop, in one process.

What the trainer adds is then timed part by part, in further blocks.

    python scripts/bench_overhead.py [--rays 2048] [--width 96] [--blocks 6] [--steps 40]

Blocks of both kinds alternate on the same model, so that machine noise and the shrinking work of a run meet both alike.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.utils import writer

from aire_nerfstudio.method_configs.nerf import aire_siren

WARM_UP = 300


class Stopwatch:
    """Adds up the time spent in functions, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def wrap(self, owner: Any, function: str, name: str, sync: Callable[[], None]) -> None:
        """Time ``owner.function`` from now on, under ``name``."""
        inner = getattr(owner, function)

        def timed(*args: Any, **kwargs: Any) -> Any:
            sync()
            begin = time.perf_counter()
            result = inner(*args, **kwargs)
            sync()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
            return result

        setattr(owner, function, timed)


def main() -> None:
    """Print median step times, their ratio, and what the trainer adds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rays", type=int, default=2048)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")

    config = aire_siren.config
    model = config.pipeline.model
    model.density_widths, model.colour_widths, model.n_features = (given.width,) * 3, (64, 64), 48
    model.grid_resolution, model.max_steps_per_ray, model.hidden_omega = 64, 256, 20.0
    model.grid_decay = 0.8
    config.pipeline.datamanager.train_num_rays_per_batch = given.rays
    config.optimizers["fields"]["optimizer"].lr = 1e-3
    config.vis, config.experiment_name, config.timestamp = "tensorboard", "overhead", "run"
    config.output_dir = Path(tempfile.mkdtemp())
    config.logging.local_writer.enable = False
    config.max_num_iterations = 1_000_000  # no event of the schedule falls into the measurement
    config.steps_per_save = config.steps_per_eval_batch = config.steps_per_eval_image = 10**9

    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    stamps: list[float] = []
    trainer.callbacks.append(
        TrainingCallback(
            [TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], lambda step: stamps.append(time.perf_counter())
        )
    )
    sync = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    at = 0

    def through_trainer(steps: int) -> list[float]:
        nonlocal at
        stamps.clear()
        trainer._start_step, trainer.config.max_num_iterations = at, steps
        trainer.save_checkpoint = lambda step: None
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
        at += steps
        return [b - a for a, b in itertools.pairwise(stamps)]

    optimizer = trainer.optimizers.optimizers["fields"]
    pipeline = trainer.pipeline

    def bare(steps: int) -> list[float]:
        nonlocal at
        times = []
        pipeline.train()
        for _ in range(steps):
            sync()
            begin = time.perf_counter()
            if at % model.grid_every == 0:
                pipeline.model.grid.update(pipeline.model.field.density_of, everywhere=at < model.grid_warmup)
            rays, batch = pipeline.datamanager.next_train(at)
            optimizer.zero_grad()
            losses = pipeline.model.get_loss_dict(pipeline.model(rays), batch)
            sum(losses.values()).backward()
            optimizer.step()
            sync()
            times.append(time.perf_counter() - begin)
            at += 1
        return times

    through_trainer(WARM_UP)
    ratios, ours, plain = [], [], []
    for _ in range(given.blocks):
        a, b = statistics.median(through_trainer(given.steps)), statistics.median(bare(given.steps))
        ours.append(1e3 * a)
        plain.append(1e3 * b)
        ratios.append(a / b)
    print(
        f"step through the trainer {statistics.median(ours):.1f} ms, bare {statistics.median(plain):.1f} ms | "
        f"overhead {100 * (statistics.median(ratios) - 1):+.1f} % (blocks {100 * (min(ratios) - 1):+.1f} to "
        f"{100 * (max(ratios) - 1):+.1f} %) | {given.rays} rays, width {given.width}, {torch.get_num_threads()} threads"
    )

    watch = Stopwatch()
    for callback in trainer.callbacks:
        before = TrainingCallbackLocation.BEFORE_TRAIN_ITERATION in callback.where_to_run
        name = f"callbacks {'before a step (schedule, grid)' if before else 'after it (weight average)'}"
        watch.wrap(callback, "run_callback_at_location", name, sync)
    watch.wrap(pipeline.model, "get_metrics_dict", "batch metrics", sync)
    watch.wrap(trainer.optimizers, "scheduler_step_all", "scheduler", sync)
    watch.wrap(trainer.grad_scaler, "update", "gradient scaler", sync)
    watch.wrap(trainer, "eval_iteration", "evaluation check", sync)
    for function in ("put_scalar", "put_dict", "put_time", "write_out_storage"):
        watch.wrap(writer, function, "writer", sync)
    watch.wrap(pipeline.model.grid, "update", "  of which the grid, also in the bare loop", sync)
    total = 0.0
    for _ in range(given.blocks):
        total += sum(through_trainer(given.steps))
    steps = given.blocks * (given.steps - 1)
    print(f"{1e3 * total / steps:.1f} ms a step on average with the stopwatch on; of it:")
    for name, seconds in sorted(watch.seconds.items(), key=lambda item: -item[1]):
        print(f"  {name:<44} {1e3 * seconds / steps:7.3f} ms  {100 * seconds / total:5.2f} %")


if __name__ == "__main__":
    main()
