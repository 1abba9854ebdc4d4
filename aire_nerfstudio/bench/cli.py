"""``aire-bench``: how fast sine networks train and run here, against PyTorch, in one process."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from aire_nerfstudio.bench.cases import Case, flow_case, image_cases, ray_cases, surface_case, with_precisions
from aire_nerfstudio.bench.memory import peak_megabytes
from aire_nerfstudio.bench.report import Result, table, write
from aire_nerfstudio.bench.timing import reason, time_in_turn
from aire_nerfstudio.errors import InputError, exit_on_bad_input
from aire_nerfstudio.fields.sine_layers import Activation
from aire_nerfstudio.files import check_place
from aire_nerfstudio.machine import machine
from aire_nerfstudio.ops import tcnn
from aire_nerfstudio.ops.backend import LIBRARIES, is_off
from aire_nerfstudio.ops.build import BuildError, compiler
from aire_nerfstudio.ops.host_memory import keep_freed_memory
from aire_nerfstudio.ops.processors import capability, kind_for

KINDS = ["image", "surface", "flow", "rays"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aire-bench", description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--batches", type=int, nargs="+", default=[16_384], help="points a step")
    parser.add_argument(
        "--cases",
        nargs="+",
        default=KINDS,
        choices=KINDS,
    )
    parser.add_argument("--activation", default="siren", choices=get_args(Activation), help="of the image cases")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--precisions", nargs="*", default=["high", "medium"], choices=["high", "medium"],
        help="of torch.set_float32_matmul_precision, beside float32 (highest)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, help="of the CPU; default: torch's own choice")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--ways",
        nargs="+",
        help="only these, as tables name them, and each case's baseline: 'ours, graph, medium'",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it warms up for minutes")
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for bench.json, .md and .png")
    return parser


@exit_on_bad_input
def main(arguments: list[str] | None = None) -> None:
    """Time, report, draw."""
    given = _parser().parse_args(arguments)
    for name in ("widths", "batches", "repeats", "threads"):
        value = getattr(given, name)
        if value is not None and min(value if isinstance(value, list) else [value]) < 1:
            raise InputError(f"--{name} is {value}; it must be at least 1")
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {given.device}: there is no CUDA device; use cpu")
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    keep_freed_memory()
    torch.manual_seed(0)
    console = Console(quiet=given.quiet)
    for library in LIBRARIES:
        if given.device == "cpu" and (is_off() or library.load() is None):
            console.print(
                f"[yellow]{library.name} is not compiled ({library.reason or 'AIRE_OPS is off'}): ours is eager"
            )
    if given.device != "cpu":
        console.print("[yellow]on CUDA ours is eager but for closed forms, rays, and networks at precision medium")
        missing = tcnn.why_not(torch.device(given.device))
        if missing is not None:
            console.print(f"[yellow]{missing}")
    is_compiled = given.device == "cpu" and not is_off() and all(library.load() is not None for library in LIBRARIES)
    ops = [capability() if is_compiled else "none"]
    if is_compiled:
        ops += [f"{kind_for(name)} ({name})" for name in given.precisions]
    with_compile = not given.no_compile
    if with_compile and given.device == "cpu":
        try:
            compiler()
        except BuildError as error:
            console.print(f"[yellow]torch.compile is left out: {error}")
            with_compile = False
    check_place("--out", given.out, is_folder=True)
    # Rays meet no network.
    plan: list[tuple[str, int, int]] = [
        (kind, width, batch)
        for kind in given.cases
        for width in (given.widths if kind != "rays" else [0])
        for batch in given.batches
    ]
    results: list[Result] = []
    known: dict[str, None] = {}
    about = {
        **machine(given.device), "threads": torch.get_num_threads(), "ops": ", ".join(ops),
        "activation": given.activation, "GFLOP/s": round(peak(given.device)),
    }  # fmt: skip
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(plan))
        for kind, width, batch in plan:
            what = f"{batch:,} rays" if kind == "rays" else f"{kind}, {width} wide, {batch:,} points"
            progress.update(bar, description=what)
            try:
                cases = _cases(kind, width, batch, given, with_compile)
            except Exception as error:  # memory, say
                cases = []
                results.append(Result(Case(kind, width, batch, {}), {}, {}, {"all": reason(error)}))
                _say_failures(results[-1], console)
            while cases:
                case = _whole(cases.pop(0), given)
                known |= dict.fromkeys(case.ways)
                if given.ways is None or any(name in case.ways for name in given.ways):
                    results.append(_measured(only(case, given.ways), given))
                    _say_failures(results[-1], console)
            # What there is so far: whoever has to stop here keeps it.
            if results:
                made = write(results, about, given.out)
            progress.advance(bar)
    if not results:
        raise InputError(f"--ways is {'; '.join(given.ways)}; of these cases there are: {'; '.join(known)}")
    console.print(Markdown(table(results, about)))
    console.print("wrote " + ", ".join(str(path) for path in made), markup=False, soft_wrap=True)


def _whole(plain: Case, given: Any) -> Case:
    """The case at all precisions."""
    is_rays = plain.name in ("marching", "compositing")
    return plain if is_rays else with_precisions(plain, given.precisions, given.device)


def only(case: Case, names: list[str] | None) -> Case:
    """The case with its baseline and the ways that are named; None: with all."""
    if names is None:
        return case
    return replace(case, ways={name: way for i, (name, way) in enumerate(case.ways.items()) if i == 0 or name in names})


def _measured(case: Case, given: Any) -> Result:
    """A case's times and memory; what it held on the device, graphs among it, is given back."""
    torch._dynamo.reset()
    times, failures = time_in_turn(case.ways, given.repeats, given.device)
    # A graph's memory is its own from its capture on, and nothing is asked for in a replay.
    megabytes = {name: None if "graph" in name else peak_megabytes(case.ways[name], given.device) for name in times}
    return Result(replace(case, ways=dict.fromkeys(case.ways, _gone)), times, megabytes, failures)


def _say_failures(result: Result, console: Console) -> None:
    for name, said in result.failures.items():
        console.print(f"[yellow]{result.case.name}, {name}, did not run: {escape(said)}")


def _gone() -> None:
    """In place of a way that has been measured."""


def _cases(kind: str, width: int, batch: int, given: Any, with_compile: bool) -> list[Case]:
    if kind == "image":
        return image_cases(width, batch, given.activation, given.device, with_compile)
    if kind == "rays":
        return ray_cases(batch, given.device)
    return [(surface_case if kind == "surface" else flow_case)(width, batch, given.device)]


def peak(device: str, size: int = 2048, repeats: int = 5) -> float:
    """Rate of large matrix products in float32, in GFLOP/s: the fastest of some."""
    a, b = torch.rand(size, size, device=device), torch.rand(size, size, device=device)
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        a @ b
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best / 1e9


if __name__ == "__main__":
    main()
