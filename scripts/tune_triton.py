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
from aire_nerfstudio.ops import triton_launches as launches

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
PIPELINES = ((64, 2), (64, 3), (64, 4), (128, 2))


def _tiles(columns: int, has_sum: bool = True) -> list[Config]:
    """Tiles that divide ``columns``, of 32 to 128 sums a thread, whose steps fit into shared memory."""
    found = []
    for rows, wide, warps in itertools.product((32, 64, 128), (64, 128, 256), (4, 8)):
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
    columns = launches.up(width, kernels.PAD)
    depth = entry or columns
    x = torch.rand(rows, entry, device="cuda") if entry else _half(rows, columns)
    weight = torch.randn(width, entry, device="cuda") if entry else _half(columns, columns) * columns**-0.5
    bias, last = torch.randn(width, device="cuda"), torch.randn(max(out, 1), width, device="cuda")
    value = None if out else torch.empty(rows, columns, dtype=torch.float16, device="cuda")
    phase_type = torch.int16 if kind == 0 else torch.float32
    kept = None if entry else torch.zeros(rows, columns, dtype=phase_type, device="cuda")
    sizes = torch.empty(max(1, rows // 16 * columns // 32), device="cuda")
    y, norms = torch.zeros(columns // 32, rows, max(out, 1), device="cuda"), torch.empty(columns // 32, device="cuda")

    def launch(tile: Config) -> None:
        operands = (x, weight) if entry else (launches.left_of(x, tile), launches.right_of(weight, tile, True))
        kernels.layer_forward[launches.Grid.of(rows, columns, tile).programs](
            *operands, bias, last, launches.beside(value, tile), launches.beside(kept, tile), sizes, y, norms,
            rows, depth, columns, width, 30.0, KIND=kind, ENTRY=entry, OUT=out, STORE=not out, KEEP=True, **tile,
        )  # fmt: skip

    def read() -> list[Tensor]:
        found = [y.sum(0) if value is None else value.float(), *([] if kept is None else [kept.float()])]
        y.zero_()
        return found

    usual = kernels.forward_tile(columns, kind, bool(entry), _has_engine())
    return Kernel(launch, read, usual, _tiles(columns, not entry), _moved(x, value, kept))


def backward(width: int, rows: int, kind: int, entry: int = 0) -> Kernel:
    """A hidden layer's gradient; the first one's where ``entry``."""
    columns = launches.up(width, kernels.PAD)
    grad, weight = _half(rows, columns), _half(columns, columns) * columns**-0.5
    kept = None if entry else _kept(rows, columns, kind)
    x = torch.rand(rows, entry or 1, device="cuda")
    first, first_bias = torch.randn(width, max(entry, 1), device="cuda"), torch.randn(width, device="cuda")
    out = None if entry else torch.empty(rows, columns, dtype=torch.float16, device="cuda")
    factor = torch.full((1,), 1 / 30, device="cuda")
    parts = torch.zeros(-(-rows // 32) * (1 + entry) * columns, device="cuda")
    largest = torch.empty(-(-rows // 32) * columns // 16, device="cuda")

    def launch(tile: Config) -> None:
        kernels.layer_backward[launches.Grid.of(rows, columns, tile).programs](
            launches.left_of(grad, tile), launches.right_of(weight, tile, False), launches.beside(kept, tile), x,
            first, first_bias, factor, first, factor, factor, launches.beside(out, tile), parts, largest,
            rows, columns, columns, width, 30.0, KIND=kind, ENTRY=entry, BRANCH=0, STORE=not entry, **tile,
        )  # fmt: skip

    usual = kernels.backward_tile(columns, kind, bool(entry), _has_engine())
    return Kernel(launch, _reader(out, parts, 1 + entry, columns), usual, _tiles(columns), _moved(grad, kept, out))


def last_backward(width: int, rows: int, kind: int, out: int = 3) -> Kernel:
    """The last sine layer's gradient."""
    columns = launches.up(width, kernels.PAD)
    grad, weight = torch.randn(rows, out, device="cuda"), torch.randn(out, width, device="cuda")
    kept, factor = _kept(rows, columns, kind), torch.full((1,), 1 / 30, device="cuda")
    dz = torch.empty(rows, columns, dtype=torch.float16, device="cuda")
    parts = torch.zeros(-(-rows // 16) * (1 + out) * columns, device="cuda")
    largest = torch.empty(-(-rows // 16) * columns // 16, device="cuda")

    def launch(tile: Config) -> None:
        kernels.last_backward[launches.Grid.of(rows, columns, tile).programs](
            grad, weight, kept, grad, weight, weight, factor, dz, parts, largest, rows, columns, width, 30.0,
            KIND=kind, OUT=out, ENTRY=0, STORE=True, **tile,
        )  # fmt: skip

    found = [
        {"ROWS": high, "COLUMNS": wide, "BLOCKS": total // high, "AHEAD": ahead, "num_warps": warps}
        for high, wide, warps, ahead, total in itertools.product(
            (8, 16, 32), (64, 128), (2, 4, 8), (1, 3, 4), (128, 256, 512)
        )
        if columns % wide == 0 and 8 <= high * wide // (32 * warps) <= 16
    ]
    usual = kernels.last_tile()
    return Kernel(launch, _reader(dz, parts, 1 + out, columns), usual, found, _moved(grad, kept, dz))


def _has_engine() -> bool:
    return launches.has_copy_engine(torch.device("cuda", torch.cuda.current_device()))


def _kept(rows: int, columns: int, kind: int) -> Tensor:
    """Phases or z of any size."""
    if kind == 0:
        return torch.randint(-32768, 32767, (rows, columns), device="cuda", dtype=torch.int16)
    return torch.randn(rows, columns, device="cuda")


def _reader(out: Tensor | None, parts: Tensor, lines: int, columns: int) -> Callable[[], list[Tensor]]:
    def read() -> list[Tensor]:
        whole = parts[: len(parts) // (lines * columns) * lines * columns]
        found = [*([] if out is None else [out.float()]), whole.view(-1, lines, columns).sum(0)]
        parts.zero_()
        return found

    return read


def _moved(*tensors: Tensor | None) -> float:
    return sum(t.nbytes for t in tensors if t is not None) / 1e6


def outer(width: int, rows: int, *_: int) -> Kernel:
    """The weight gradient of a hidden layer, before its shares are added up."""
    columns = launches.up(width, kernels.PAD)
    grad, x = _half(rows, columns), _half(rows, columns)
    partial = torch.zeros(64, columns, columns, device="cuda")

    def launch(config: Config) -> None:
        share = launches.up(-(-rows // config["SHARES"]), config["DEPTH"])
        tile = {name: value for name, value in config.items() if name != "SHARES"}
        high, wide, depth = tile["BLOCK_N"], tile["BLOCK_K"], tile["DEPTH"]
        kernels.outer_product[columns // high, columns // wide, -(-rows // share)](
            launches.tiles(grad, depth, high), launches.tiles(x, depth, wide), partial, rows, columns, columns, share,
            **tile,
        )  # fmt: skip

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

    usual = kernels.outer_tile(columns, columns, _has_engine())
    return Kernel(launch, read, usual, others, _moved(grad, x))


def affine(width: int, rows: int, *_: int) -> Kernel:
    """The last layer."""
    columns = launches.up(width, kernels.PAD)
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
    return Kernel(launch, lambda: [y.clone()], kernels.AFFINE_TILE, found, _moved(x))


MAKERS: dict[str, Callable[[int, int, int], Kernel]] = {
    "forward-entry": lambda width, rows, kind: forward(width, rows, kind, 2),
    "forward": forward,
    "forward-last": lambda width, rows, kind: forward(width, rows, kind, 0, 3),
    "backward-last": last_backward,
    "backward": backward,
    "backward-entry": lambda width, rows, kind: backward(width, rows, kind, 2),
    "outer": outer,
    "affine": affine,
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
