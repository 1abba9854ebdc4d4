"""What CUDA would be asked to do, counted on the tests' emulated device: launches, bytes moved, and waits of the host.

    python scripts/census_cuda.py network --width 256 --rows 65536 --precision medium      # a step of a sine network
    python scripts/census_cuda.py network --loss surface                                   # or of a surface, of a flow
    python scripts/census_cuda.py training nerf [--graph]                                  # steps of a small training

Bytes are those of all tensors that a launch is given or gives back, each once a launch: what goes through memory where
nothing stays in a cache. Times say nothing about a GPU and are not shown; of a network's step Triton's kernels are
counted and not run.
"""

from __future__ import annotations

import argparse
import collections
import os
import statistics
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARK = "AIRE_CENSUS"


def main() -> None:
    """Count, in a process that has the emulated device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    network = kinds.add_parser("network")
    network.add_argument("--loss", choices=["image", "surface", "flow"], default="image")
    network.add_argument("--width", type=int, default=256, help="of three sine layers")
    network.add_argument("--rows", type=int, default=65_536)
    network.add_argument("--precision", choices=["highest", "high", "medium"], default="medium")
    training = kinds.add_parser("training")
    training.add_argument("task", choices=["nerf", "image", "sdf", "flow"])
    training.add_argument("--graph", action="store_true")
    given = parser.parse_args()
    if MARK not in os.environ:
        _again_with_a_device()
    if given.kind == "network":
        _count_network(given.loss, given.width, given.rows, given.precision)
    else:
        _count_training(given.task, given.graph)


def _again_with_a_device() -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    import emulated_cuda

    reason = emulated_cuda.why_not()
    if reason is not None:
        raise SystemExit(f"error: there can be no emulated device here: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        environment = emulated_cuda.environment(Path(folder))
        paths = [str(ROOT / "tests"), str(ROOT), environment["PYTHONPATH"]]
        environment |= {MARK: folder, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}
        raise SystemExit(subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode)


def _count_network(loss: str, width: int, rows: int, precision: str) -> None:
    import torch
    import triton.runtime.interpreter  # noqa: F401 - loads emulated_launches
    from torch.utils._pytree import tree_leaves

    launches, moved = 0, 0

    def count(tensors: list[Any]) -> None:
        nonlocal launches, moved
        there = [t for t in tensors if isinstance(t, torch.Tensor) and t.is_cuda]
        launches += 1
        moved += sum({(t.data_ptr(), t.numel()): t.numel() * t.element_size() for t in there}.values())

    # Loaded with torch and Triton.
    kernel = sys.modules["emulated_device"].Kernel
    call = kernel.__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = call(self, *args, **kwargs)
        count([*tree_leaves((args, kwargs)), *tree_leaves(result)])
        return result

    ways = _ways(loss, width, rows)
    torch.set_float32_matmul_precision(precision)
    kernel.__call__ = counted
    sys.modules["emulated_launches"].of_launches(count)
    for name, way in ways.items():
        way()  # the first time ways are compared
        launches, moved = 0, 0
        way()
        head = f"{loss}, [{width}]^3, {rows:,} points, {precision}, {name}"
        print(f"{head}: loss and gradients are {launches} launches, {moved / 1e6:,.0f} MB", flush=True)


def _ways(loss: str, width: int, rows: int) -> dict[str, Callable[[], object]]:
    """Steps of the benchmark: PyTorch's autograd, and ours."""
    import torch

    from aire_nerfstudio.bench import cases
    from aire_nerfstudio.fields.sine_mlp import SineMLP
    from aire_nerfstudio.ops.sine_network import reference

    if loss == "image":
        network = SineMLP(2, [width] * 3, 3).cuda()
        x, target = 2 * torch.rand(rows, 2, device="cuda") - 1, torch.rand(rows, 3, device="cuda")
        errors = {
            "autograd": lambda: (reference(x, *network.for_ops()) - target).square().mean(),
            "ours": lambda: network.mean_square_step(x, target),
        }
        return {name: lambda error=error: (network.zero_grad(), error().backward()) for name, error in errors.items()}
    case = cases.surface_case if loss == "surface" else cases.flow_case
    ways = case(width, rows, "cuda").ways
    return {name: ways[name] for name in (next(iter(ways)), "closed form", "ours")}


def _count_training(task: str, is_graph: bool) -> None:
    from tiny import STEPS, tiny_config, train

    from aire_nerfstudio import record
    from aire_nerfstudio.models.trainer import AdaptiveTrainer

    record.RunRecord.is_due = lambda self, step: False  # curves are kept at 1,000 steps of a run, however long
    device = sys.modules["emulated_device"]  # loaded with torch
    step, wait, state = AdaptiveTrainer.train_iteration, device.wait, device.STATE
    launches: list[int] = []
    waits: list[collections.Counter[str]] = []

    def waiting(what: str) -> None:
        stack = [f for f in traceback.extract_stack() if "nerfstudio" in f.filename]
        where = f"{Path(stack[-1].filename).name}:{stack[-1].lineno}" if stack else "?"
        if waits:
            waits[-1][f"{where} ({what})"] += 1
        wait(what)

    def counted(self: Any, at: int) -> Any:
        waits.append(collections.Counter())
        before = state.launches
        result = step(self, at)
        launches.append(state.launches - before)
        return result

    AdaptiveTrainer.train_iteration = counted
    device.wait = waiting
    config = tiny_config(task, os.environ[MARK], {"cuda_graph": is_graph})
    config.machine.device_type = "cuda"
    train(config)
    typical = statistics.median(sum(w.values()) for w in waits)
    print(
        f"{task}{', graph' if is_graph else ''}: {statistics.median(launches):.0f} launches a step, {typical:.0f} waits"
    )
    # In so short a run the others are captures, changes of the architecture, evaluations and looks for faults.
    for where, count in sum(waits, collections.Counter()).most_common():
        if count >= 0.8 * STEPS:
            print(f"  {count / STEPS:.1f} a step: {where}")


if __name__ == "__main__":
    main()
