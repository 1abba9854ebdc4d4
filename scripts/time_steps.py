"""Milliseconds of a step through ns-train's trainer, with and without graphs, in one process and in turn.

    python scripts/time_steps.py [--task image] [--width 256] [--batch 65536] [--device cuda]
    python scripts/time_steps.py --task nerf --width 182 --batch 4096 --data LEGO

Image: the astronaut; surface: pymeshlab's bunny, with half the batch on it; flow: from it, with a quarter on it, and
half the batch in space and time; nerf: a batch of rays through a scene in Blender's format, or the demo scene. Each way
trains a run of its own; blocks of steps alternate, so that a machine's noise meets all alike. Printed are medians over
blocks, the first way's over each, and what the first 50 steps took, of nerf 300, in which kernels are compiled, a graph
is captured and the occupancy grid comes about.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from nerfstudio.engine.callbacks import TrainingCallbackLocation
from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE
from profile_cuda import kernels_of, print_kernels
from torch.profiler import ProfilerActivity, profile

from aire_nerfstudio.machine import machine
from aire_nerfstudio.method_configs.flow import aire_flow_siren
from aire_nerfstudio.method_configs.image import aire_image_siren
from aire_nerfstudio.method_configs.nerf import aire_siren
from aire_nerfstudio.method_configs.sdf import aire_sdf_siren

PRECISIONS = ("highest", "high", "medium")
METHODS = {"image": aire_image_siren, "surface": aire_sdf_siren, "flow": aire_flow_siren, "nerf": aire_siren}
# Between two kernels, in microseconds: what is longer is a wait.
LONG_GAP = 15.0
# Steps before any is timed.
BEGIN = {"nerf": 300}


def main() -> None:
    """Train a little in each way, print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(METHODS), default="image")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=65_536)
    parser.add_argument("--data", type=Path, help="of nerf: a folder in Blender's format (the demo scene)")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["high", "medium"])
    parser.add_argument("--block", type=int, default=200, help="steps timed at once, a multiple of 50")
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--each", type=int, nargs="+", default=[1, 50], help="steps an iteration, divisors of 50")
    parser.add_argument("--graphs-only", action="store_true", help="no steps without graphs")
    parser.add_argument("--kernels", type=int, default=0, help="lines of a table of kernels, for each way with graphs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    given = parser.parse_args()
    if given.block < 50 or given.block % 50 or given.blocks < 1:
        parser.error(
            f"--block is {given.block} and --blocks {given.blocks}; they must be a multiple of 50, and 1 or more"
        )
    if any(each < 1 or 50 % each for each in given.each):
        parser.error(f"--each is {given.each}; each must divide 50")
    print(" | ".join(f"{name} {value}" for name, value in machine(given.device).items()))
    print(f"{given.task}, [{given.width}]^3, {given.batch:,} points a step")
    CONSOLE.quiet = True
    with tempfile.TemporaryDirectory() as folder:
        _compare(given, Path(folder))


def _compare(given: argparse.Namespace, folder: Path) -> None:
    graphs = (False,) if given.device != "cuda" else (True,) if given.graphs_only else (False, True)
    ways = {}
    for precision, graph, each in itertools.product(given.precisions, graphs, given.each):
        name = f"{precision}{', graph' if graph else ''}, {each} steps an iteration"
        ways[name] = _trainer(given, folder, precision, graph, each)
    begun = {}
    for name, (trainer, precision) in ways.items():
        torch.set_float32_matmul_precision(precision)
        begun[name] = _steps(trainer, BEGIN.get(given.task, 50))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.blocks):
        for name, (trainer, precision) in ways.items():
            torch.set_float32_matmul_precision(precision)
            times[name].append(1e3 * _steps(trainer, given.block) / given.block)
    first = statistics.median(next(iter(times.values())))
    for name, found in times.items():
        median = statistics.median(found)
        print(
            f"{name}: {median:.3f} ms ({min(found):.3f} to {max(found):.3f}), {first / median:.2f}x; the first "
            f"{BEGIN.get(given.task, 50)} steps took {begun[name]:.2f} s",
            flush=True,
        )
    if given.device == "cuda" and given.kernels:
        for name in (name for name in ways if ", graph, " in name):
            trainer, precision = ways[name]
            torch.set_float32_matmul_precision(precision)
            _print_kernels(name, trainer, given.kernels)


def _print_kernels(name: str, trainer: Any, lines: int) -> None:
    """What a step's time goes to, the heaviest kernels first."""
    count = 50
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        _steps(trainer, count)
    kernels = kernels_of(found)
    # Of branches several run at once. What is shorter than a launch lies between a graph's kernels, what is longer is
    # the host's.
    idle, until = [], None
    for begin, end in sorted((event.time_range.start, event.time_range.end) for event in kernels):
        if until is not None and begin > until:
            idle.append(begin - until)
        until = end if until is None else max(until, end)
    waits = [gap / count for gap in idle if gap > LONG_GAP]
    between = (
        f"{sum(idle) / count - sum(waits):.0f} us between kernels, {sum(waits):.0f} us of waits for the host, "
        f"{len(waits)} in {count} steps"
    )
    print_kernels(f"{name}: of a step {between}", kernels, count, lines)


def _trainer(given: argparse.Namespace, folder: Path, precision: str, graph: bool, each: int) -> tuple[Any, str]:
    """A run that has begun, and its precision."""
    config = copy.deepcopy(METHODS[given.task].config)
    manager = config.pipeline.datamanager
    if given.task in ("image", "nerf"):
        manager.train_num_rays_per_batch = given.batch
    elif given.task == "flow":
        manager.on_surface = manager.off_surface = given.batch // 4
        manager.space_time = given.batch // 2
        manager.pool = max(given.batch, 100_000)
    else:
        manager.on_surface = manager.off_surface = given.batch // 2
        manager.pool = max(given.batch, 100_000)
    model = config.pipeline.model
    model.cuda_graph = graph
    if given.task == "nerf":
        model.density_widths = model.colour_widths = (given.width,) * 3
        model.n_features, config.data = given.width, given.data
        if given.data is not None:
            manager.dataparser.data = given.data
    else:
        model.widths = (given.width,) * 3
    config.matmul_precision, config.machine.device_type, config.steps_per_iteration = precision, given.device, each
    config.vis, config.quiet, config.report = "tensorboard", True, False
    config.output_dir, config.timestamp = folder / f"{precision} {graph} {each}", "run"
    config.logging.local_writer.enable, config.logging.profiler = False, "none"
    # No event of the schedule falls into the measurement.
    config.max_num_iterations = 10**6
    config.steps_per_save = config.steps_per_eval_batch = config.steps_per_eval_image = 10**9
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.pipeline.train()
    trainer.iteration = 0  # type: ignore[attr-defined]
    return trainer, precision


def _steps(trainer: Any, count: int) -> float:
    """Seconds of as many steps, as nerfstudio's loop makes them."""
    each = trainer.config.steps_per_iteration
    _wait(trainer.device)
    begin = time.perf_counter()
    for _ in range(count // each):
        step = trainer.iteration
        for callback in trainer.callbacks:
            callback.run_callback_at_location(step, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        trainer.train_iteration(step)
        for callback in trainer.callbacks:
            callback.run_callback_at_location(step, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
        writer.EVENT_STORAGE.clear()
        trainer.iteration += 1
    _wait(trainer.device)
    return time.perf_counter() - begin


def _wait(device: str) -> None:
    if "cuda" in device:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
