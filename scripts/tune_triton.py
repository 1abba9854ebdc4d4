"""Times of the Triton kernels with other tiles, warps and stages than they have, on a CUDA device.

    python scripts/tune_triton.py [--widths 256 512] [--rows 65536] [--kernels forward backward ...] [--json FILE]

Compiles in as many processes as there are cores, then times one launch after the other, as a CUDA graph of several, in
turn over a few rounds; prints each kernel's fastest configurations beside the one in force, marked, with the bytes that
it has to move over the time. What differs from the one in force by more than rounding is named and not ranked.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aire_nerfstudio.ops import triton_kernels as kernels
from aire_nerfstudio.ops import triton_launches, triton_step
from aire_nerfstudio.ops import triton_step_kernels as step_kernels

LAUNCHES, ROUNDS = 10, 5
Config = dict[str, int]


@dataclass(frozen=True)
class Kernel:
    """A kernel at one size: how it is launched, what it wrote, which configurations there are, bytes it moves."""

    launch: Callable[[Config], None]
    read: Callable[[], list[Tensor]]
    usual: Config
    others: list[Config]
    megabytes: float


# Depth of a step along the sum, and steps that are loaded ahead.
PIPELINES = ((32, 4), (64, 2), (64, 3), (64, 4), (128, 2))


def _tiles(columns: int, has_sum: bool = True) -> list[Config]:
    """Tiles that divide ``columns``, of 32 to 128 sums a thread, whose steps fit into shared memory."""
    found = []
    for rows, wide, warps in itertools.product((32, 64, 128), (32, 64, 128, 256), (4, 8)):
        each = rows * wide // (32 * warps)
        if columns % wide or (has_sum and rows < 64) or not (32 if has_sum else 8) <= each <= 128:
            continue
        for depth, stages in PIPELINES if has_sum else ((64, 3),):
            if (rows + wide) * depth * 2 * stages <= 200_000:
                found.append({"ROWS": rows, "COLUMNS": wide, "DEPTH": depth, "num_warps": warps, "num_stages": stages})
    return found


def _half(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").half()


def forward(width: int, rows: int, kind: int, entry: int = 0, out: int = 0) -> Kernel:
    """A layer's values and phases; the first one's, of points, where ``entry``; the last one's where ``out``."""
    columns = triton_launches.up(width, kernels.PAD)
    depth = entry or columns
    x = torch.rand(rows, entry, device="cuda") if entry else _half(rows, columns)
    weight = torch.randn(width, entry, device="cuda") if entry else _half(columns, columns) * columns**-0.5
    bias, last = torch.randn(width, device="cuda"), torch.randn(max(out, 1), width, device="cuda")
    value = torch.empty(0 if out else rows, columns, dtype=torch.float16, device="cuda")
    kept = torch.zeros(0 if entry else rows, columns, dtype=torch.int16 if kind == 0 else torch.float32, device="cuda")
    sizes = torch.empty(max(1, rows // 16 * columns // 32), device="cuda")
    y, norms = torch.zeros(columns // 32, rows, max(out, 1), device="cuda"), torch.empty(columns // 32, device="cuda")

    def launch(config: Config) -> None:
        grid = (-(-rows // config["ROWS"]), columns // config["COLUMNS"])
        kernels.layer_forward[grid](
            x, weight, bias, last, value, kept, sizes, y, norms, rows, depth, columns, width, 30.0,
            KIND=kind, ENTRY=entry, OUT=out, KEEP=True, **config,
        )  # fmt: skip

    def read() -> list[Tensor]:
        found = [y.sum(0) if out else value.float(), kept.float()]
        y.zero_()
        return found

    moved = x.nbytes + value.nbytes + kept.nbytes
    memory = triton_launches.shared_memory(x.device)
    usual = kernels.forward_tile(columns, kind, bool(entry), bool(out), memory)
    return Kernel(launch, read, usual, _tiles(columns, not entry), moved / 1e6)


def backward(width: int, rows: int, kind: int, narrow: int = 0, entry: int = 0) -> Kernel:
    """A hidden layer's gradient; the last one's where ``narrow``; the first one's where ``entry``."""
    columns = triton_launches.up(width, kernels.PAD)
    depth = narrow or columns
    grad = torch.randn(rows, depth, device="cuda") if narrow else _half(rows, depth)
    weight = torch.randn(depth, width, device="cuda") if narrow else _half(depth, columns) * depth**-0.5
    kept = (
        torch.randint(-32768, 32767, (0 if entry else rows, columns), device="cuda", dtype=torch.int16)
        if kind == 0
        else torch.randn(0 if entry else rows, columns, device="cuda")
    )
    x = torch.rand(rows, entry or 1, device="cuda")
    first, first_bias = torch.randn(width, max(entry, 1), device="cuda"), torch.randn(width, device="cuda")
    out = torch.empty(0 if entry else rows, columns, dtype=torch.float16, device="cuda")
    factor = torch.full((1,), 1 / 30, device="cuda")
    parts = torch.zeros(-(-rows // 32) * (1 + narrow + entry) * columns, device="cuda")
    largest = torch.empty(-(-rows // 32) * columns // 16, device="cuda")

    def launch(config: Config) -> None:
        grid = (-(-rows // config["ROWS"]), columns // config["COLUMNS"])
        kernels.layer_backward[grid](
            grad, weight, kept, x, first, first_bias, factor, out, parts, largest,
            rows, depth, columns, width, 30.0,
            KIND=kind, NARROW=narrow, ENTRY=entry, STORE=not entry, **config,
        )  # fmt: skip

    def read() -> list[Tensor]:
        found = [out.float(), parts.view(-1, 1 + narrow + entry, columns).sum(0)]
        parts.zero_()
        return found

    moved = grad.nbytes + kept.nbytes + out.nbytes
    usual = kernels.backward_tile(columns, kind, bool(narrow), bool(entry))
    return Kernel(launch, read, usual, _tiles(columns, not narrow), moved / 1e6)


def outer(width: int, rows: int, *_: int) -> Kernel:
    """The weight gradient of a hidden layer, before its shares are added up."""
    columns = triton_launches.up(width, kernels.PAD)
    grad, x = _half(rows, columns), _half(rows, columns)
    partial = torch.zeros(64, columns, columns, device="cuda")

    def launch(config: Config) -> None:
        share = triton_launches.up(-(-rows // config["SHARES"]), config["DEPTH"])
        shares = -(-rows // share)
        grid = (columns // config["BLOCK_N"], columns // config["BLOCK_K"], shares)
        tile = {name: value for name, value in config.items() if name != "SHARES"}
        kernels.outer_product[grid](grad, x, partial, rows, columns, columns, share, shares, **tile)

    others = [
        {"BLOCK_N": c["ROWS"], "BLOCK_K": c["COLUMNS"], "DEPTH": c["DEPTH"], "SHARES": shares,
         "num_warps": c["num_warps"], "num_stages": c["num_stages"]}
        for c in _tiles(columns)
        for shares in (16, 32, 64)
    ]  # fmt: skip

    def read() -> list[Tensor]:
        found = partial.sum(0)
        partial.zero_()
        return [found]

    usual = kernels.outer_tile(columns, columns)
    return Kernel(launch, read, usual, others, (grad.nbytes + x.nbytes) / 1e6)


def affine(width: int, rows: int, *_: int) -> Kernel:
    """The last layer."""
    columns = triton_launches.up(width, kernels.PAD)
    x, high, low = _half(rows, columns), _half(64, columns), _half(64, columns) * 1e-3
    y, bias = torch.empty(rows, 3, device="cuda"), torch.randn(3, device="cuda")

    def launch(config: Config) -> None:
        kernels.affine[(-(-rows // config["ROWS"]), 1)](
            x, high, low, bias, y, rows, columns, 3, columns, 1, BIAS=True, LOW=True, OUT=16, **config
        )

    found = [
        {"ROWS": high, "DEPTH": depth, "num_warps": warps, "num_stages": stages}
        for high, warps, (depth, stages) in itertools.product((64, 128, 256), (4, 8), PIPELINES)
    ]
    return Kernel(launch, lambda: [y.clone()], kernels.AFFINE_TILE, found, x.nbytes / 1e6)


def step(width: int, rows: int, *_: int) -> Kernel:
    """A SIREN of three such layers through all of them and back, block by block of rows."""
    columns, layers, ends = triton_step.width_of([torch.empty(width, 2), torch.empty(3, width)]), 3, (2, 3)
    x, target = 2 * torch.rand(rows, ends[0], device="cuda") - 1, torch.rand(rows, ends[1], device="cuda")
    first, first_bias = torch.rand(width, ends[0], device="cuda") - 0.5, torch.rand(width, device="cuda")
    hidden, biases = _half(layers - 1, columns, columns) * 0.1 * columns**-0.5, torch.rand(layers - 1, columns).cuda()
    last, last_bias = torch.randn(ends[1], width, device="cuda") * 1e-2, torch.rand(ends[1], device="cuda")
    omegas, factors = torch.full((layers,), 30.0, device="cuda"), torch.full((layers,), 1.0, device="cuda")
    values = torch.empty(layers - 1, rows, columns, dtype=torch.float16, device="cuda")
    gradients = torch.empty_like(values)
    parts = torch.zeros(-(-rows // 32) * (layers + sum(ends) + 1) * columns, device="cuda")
    squares = torch.zeros(-(-rows // 32), device="cuda")

    def launch(config: Config) -> None:
        step_kernels.step[(-(-rows // config["ROWS"]),)](
            x, target, first, first_bias, hidden, biases, last, last_bias, omegas, factors, values, gradients, parts,
            squares, rows, width, width, 1 / target.numel(),
            LAYERS=layers, INPUTS=ends[0], OUT=ends[1], OUTS=4, WIDTH=columns, **config,
        )  # fmt: skip

    def read() -> list[Tensor]:
        found = [values.float(), gradients.float(), parts.view(-1, layers + sum(ends) + 1, columns).sum(0)]
        parts.zero_()
        return found

    usual = triton_step.tiles_for(columns)[0]
    return Kernel(launch, read, usual, _tiles(columns), (values.nbytes + gradients.nbytes) / 1e6)


MAKERS: dict[str, Callable[[int, int, int], Kernel]] = {
    "forward-entry": lambda width, rows, kind: forward(width, rows, kind, 2),
    "forward": forward,
    "forward-last": lambda width, rows, kind: forward(width, rows, kind, 0, 3),
    "backward-last": lambda width, rows, kind: backward(width, rows, kind, 3),
    "backward": backward,
    "backward-entry": lambda width, rows, kind: backward(width, rows, kind, 0, 2),
    "outer": outer,
    "affine": affine,
    "step": step,
}


def _compile(task: tuple[str, int, int, list[Config]]) -> list[int]:
    """Compile some of a kernel's configurations into Triton's cache; which of them cannot be."""
    name, width, kind, configs = task
    kernel, failed = MAKERS[name](width, 256 * 16, kind), []
    for index, config in enumerate(configs):
        try:
            kernel.launch(config)
        except Exception:  # shared memory or registers: it is not ranked
            failed.append(index)
    torch.cuda.synchronize()
    return failed


def _milliseconds(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / LAUNCHES


def measure(kernel: Kernel, configs: list[Config]) -> list[dict[str, Any]]:
    """Median milliseconds of each configuration, the first one's results being right."""
    graphs, wanted, found = [], [], []
    for index, config in enumerate(configs):
        kernel.read()  # leaves zeros where some configurations write less than others
        kernel.launch(config)
        read = kernel.read()
        wanted = read if index == 0 else wanted
        off = sum(_off(a, b) for a, b in zip(read, wanted, strict=True))  # not the largest, which might pass a NaN over
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(LAUNCHES):
                kernel.launch(config)
        graph.replay()
        graphs.append(graph)
        found.append({"config": config, "off": off, "times": []})
    for _ in range(ROUNDS):
        for graph, row in zip(graphs, found, strict=True):
            row["times"].append(_milliseconds(graph))
    for row in found:
        row["milliseconds"] = statistics.median(row.pop("times"))
    return found


def _off(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def main() -> None:
    """Compile, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--rows", type=int, default=65_536)
    parser.add_argument("--kind", type=int, default=0, help="0 SIREN, 1 FINER, 3 SPDER")
    parser.add_argument("--kernels", nargs="+", default=list(MAKERS), choices=list(MAKERS))
    parser.add_argument("--best", type=int, default=4, help="configurations printed for each kernel")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--compile-only", action="store_true", help="fill Triton's cache, time nothing")
    parser.add_argument("--json", type=Path, help="file for all figures")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    print(torch.cuda.get_device_name(), "| torch", torch.__version__, "| rows", given.rows)
    torch.manual_seed(0)
    tasks, kept = [], {}
    for name, width in itertools.product(given.kernels, given.widths):
        made = MAKERS[name](width, 4096, given.kind)
        kept[name, width] = [made.usual, *(c for c in made.others if c != made.usual)]
        share = 4 * (3 if name.startswith("outer") else 1)
        tasks += [
            (name, width, given.kind, kept[name, width][i : i + share]) for i in range(0, len(kept[name, width]), share)
        ]
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        failed = pool.map(_compile, tasks, chunksize=1)
    if given.compile_only:
        return
    gone: dict[tuple[str, int], list[Config]] = {}
    for (name, width, _, configs), indices in zip(tasks, failed, strict=True):
        gone.setdefault((name, width), []).extend(configs[i] for i in indices)
    everything = []
    for (name, width), configs in kept.items():
        kernel = MAKERS[name](width, given.rows, given.kind)
        if kernel.usual in gone[name, width]:
            print(f"{name} {width}: the tile in force cannot be compiled here: {kernel.usual}", flush=True)
            continue
        found = measure(kernel, [c for c in configs if c not in gone[name, width]])
        everything += [{"kernel": name, "width": width, "megabytes": kernel.megabytes, **row} for row in found]
        usual = found[0]
        wrong = [row for row in found if not row["off"] <= 2e-3]
        ranked = sorted((row for row in found if row["off"] <= 2e-3), key=lambda row: row["milliseconds"])
        print(f"{name} {width}: {len(found)} run, {len(gone[name, width])} cannot, {len(wrong)} differ")
        for row in [usual, *ranked[: given.best]]:
            rate = kernel.megabytes / row["milliseconds"] / 1e3
            mark = "*" if row is usual else " "
            print(f"  {mark} {1e3 * row['milliseconds']:7.1f} us {rate:5.2f} TB/s  {row['config']}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(everything))


if __name__ == "__main__":
    main()
