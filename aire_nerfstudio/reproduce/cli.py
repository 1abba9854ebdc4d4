"""``aire-reproduce``: run a table or figure of the paper and set it beside the paper's numbers."""

from __future__ import annotations

import argparse
import os
import typing
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown

from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.errors import InputError, exit_on_bad_input
from aire_nerfstudio.files import check_place
from aire_nerfstudio.reproduce.experiment import BudgetName, Choice, Kind
from aire_nerfstudio.reproduce.experiments import EXPERIMENTS, kind_of, make_experiment
from aire_nerfstudio.reproduce.figures import draw
from aire_nerfstudio.reproduce.parts import parse_part, part_of
from aire_nerfstudio.reproduce.report import measure, write_report
from aire_nerfstudio.reproduce.runner import run_fits
from aire_nerfstudio.reproduce.store import Store

SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "images": (".png", ".tif", ".jpg", ".jpeg"),
    "surfaces": (".ply", ".obj", ".stl", ".off", ".xyz"),
}


def parse_changes(texts: list[str]) -> tuple[tuple[str, object], ...]:
    """``NAME=VALUE`` settings of AIRe's configuration as (name, value), sorted.

    Raises:
        InputError: not of that form, no such setting, or a value of another type.
    """
    known = typing.get_type_hints(AireConfig)
    changes: dict[str, object] = {}
    for text in texts:
        name, has_value, value = text.partition("=")
        if not has_value or name not in known:
            raise InputError(f"--set {text!r}: it must be NAME=VALUE with NAME one of {', '.join(known)}")
        kinds = (known[name], *typing.get_args(known[name]))
        try:
            if value in kinds or (value == "none" and type(None) in kinds):
                changes[name] = value if value in kinds else None
            elif name in ("prune_layers", "prune_counts"):
                changes[name] = tuple(int(part) for part in value.split(",") if part)
            elif int in kinds:
                changes[name] = int(value)
            elif float in kinds:
                changes[name] = float(value)
            else:
                raise ValueError
        except ValueError as error:
            choices = ", ".join(str(kind) for kind in kinds[1:] if isinstance(kind, str))
            hint = f"; choose one of {choices}" if choices else ""
            raise InputError(f"--set {text!r}: {value!r} is no value of {name}{hint}") from error
    return tuple(sorted(changes.items(), key=lambda item: item[0]))


def choose_sources(folder: Path, names: list[str] | None, kind: Kind) -> tuple[str, ...]:
    """File names in ``folder``: those that are named (with or without suffix), or all pictures or shapes.

    Raises:
        InputError: no such folder or file, or none at all.
    """
    if not folder.is_dir():
        raise InputError(f"--data {folder} is no folder; give one with pictures (the paper's: 16 of DIV2K) or shapes")
    suffixes = SUFFIXES[kind]
    present = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in suffixes)
    if not present:
        raise InputError(f"--data {folder} holds no {kind} ({', '.join(suffixes)})")
    chosen = present if names is None else []
    for name in names or ():
        matches = [file for file in present if name in (file, Path(file).stem)]
        if not matches:
            raise InputError(f"{name}: {folder} has no such file among its {kind}; it has {', '.join(present)}")
        if name not in matches and len(matches) > 1:
            raise InputError(f"{name} names {' and '.join(matches)} of {folder}; give the suffix, too")
        chosen.append(name if name in matches else matches[0])
    chosen = list(dict.fromkeys(chosen))
    stems = [Path(file).stem for file in chosen]
    twin = next((file for file in chosen if stems.count(Path(file).stem) > 1), None)
    if twin is not None:
        raise InputError(f"{folder} has several files called {Path(twin).stem}; name the one to take, e.g. {twin}")
    return tuple(chosen)


def default_source(kind: Kind) -> Path:
    """What is learned where no --data is given: scikit-image's astronaut, the bunny of the pymeshlab wheel."""
    if kind == "images":
        from aire_nerfstudio.data.image_views import ensure_default_picture

        return ensure_default_picture()
    from aire_nerfstudio.data.demo_scene import bunny_path

    return bunny_path()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aire-reproduce", description=__doc__)
    parser.add_argument("experiment", help=f"one of {', '.join(EXPERIMENTS)}, or all")
    parser.add_argument(
        "--budget", default="cpu", choices=typing.get_args(BudgetName),
        help="smoke: seconds, only shows that it runs; cpu: minutes; pictures reduced to 128 pixels and 128 neurons "
        "wide, surfaces 64 neurons wide; crop: the middle 128 pixels of each picture instead; paper",
    )  # fmt: skip
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of pictures, or of shapes; without it scikit-image's astronaut, pymeshlab's bunny",
    )
    parser.add_argument("--images", "--shapes", nargs="+", dest="sources", help="names of files in it; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds of the initialisation; default: 0")
    parser.add_argument("--out", type=Path, default=Path("reproduce"), help="results; finished fits are not run again")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precision", default="highest", choices=["highest", "high", "medium"],
        help="of products (torch.set_float32_matmul_precision); highest, float32, is what the results here have",
    )  # fmt: skip
    parser.add_argument(
        "--cuda-graph", action="store_true",
        help="steps as CUDA graphs: sooner where a step is small, the same but for rounding",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument("--jobs", type=int, help="fits at a time; default: one a core, on a GPU 4")
    parser.add_argument(
        "--part", metavar="NUMBER/COUNT",
        help="run this part of the fits and make no report: for a Slurm array (scripts/sweep.sbatch) or several GPUs "
        "(scripts/sweep.sh); the same command without --part then finds them finished",
    )  # fmt: skip
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE",
        help="settings of AIRe that differ from the paper's, e.g. decay=scheduled decay_start=20 prune_at=40",
    )  # fmt: skip
    return parser


@exit_on_bad_input
def main(arguments: list[str] | None = None) -> None:
    """Run, report, draw."""
    given = _parser().parse_args(arguments)
    names = [given.experiment]
    if given.experiment == "all" and given.data is None and given.sources:
        raise InputError(f"{given.sources[0]} names a file of --data, which is not given; give the folder it is in")
    if given.experiment == "all":
        kind = "images" if given.budget == "crop" else _kind_in(given.data)
        names = [name for name in EXPERIMENTS if kind is None or kind_of(name) == kind]
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {given.device}: there is no CUDA device; use cpu")
    if given.cuda_graph and not given.device.startswith("cuda"):
        raise InputError(f"--cuda-graph with --device {given.device}: there are graphs on CUDA only; leave it out")
    jobs = (4 if given.device.startswith("cuda") else os.cpu_count() or 1) if given.jobs is None else given.jobs
    if jobs < 1:
        raise InputError(f"--jobs is {jobs}; it must be at least 1")
    changes = parse_changes(given.set)
    part = None if given.part is None else parse_part(given.part)
    console = Console(quiet=given.quiet)
    check_place("--out", given.out, is_folder=True)
    results = given.out / given.budget
    if given.precision != "highest":
        results = results / given.precision
    if changes:
        results = results / "-".join(f"{name}={value}" for name, value in changes).replace(" ", "")
    check_place("--out", results, is_folder=True)
    planned = []
    failures: list[str] = []
    for name in names:
        data, chosen = given.data, given.sources
        if data is None:
            path = default_source(kind_of(name))
            data, chosen = path.parent, chosen or [path.name]
        choice = Choice(given.budget, choose_sources(data, chosen, kind_of(name)), tuple(given.seeds), changes)
        store = Store(given.out / "fits", data, given.device, given.precision, given.cuda_graph)
        try:
            planned.append((make_experiment(name, choice), choice, data, store))
        except InputError as error:
            if len(names) == 1:
                raise
            failures.append(f"{name}: {error}")
    for experiment, choice, data, store in planned:
        console.print(f"[bold]{experiment.title}[/] ({experiment.name}, budget {given.budget})")
        if part is not None and experiment.is_timed:
            failures.append(f"{experiment.name}: its fits are timed one at a time; run it without --part")
            continue
        fits = experiment.fits() if part is None else part_of(experiment.fits(), *part)
        try:
            run_fits(
                fits, data, store, given.device, jobs, console, experiment.is_recorded,
                experiment.is_timed,
            )  # fmt: skip
        except InputError as error:
            failures.append(f"{experiment.name}: {error}")
            continue
        if part is not None:
            continue
        page = write_report(experiment, choice, store, results)
        console.print(Markdown(page.read_text("utf8")))
        made = draw(experiment, measure(experiment, store), store, results)
        console.print(f"wrote {page} (.json, .csv) and {', '.join(map(str, made))}", markup=False, soft_wrap=True)
    if failures:
        raise InputError("; ".join(failures))


def _kind_in(folder: Path | None) -> Kind | None:
    """What a folder holds; None: not told, or both."""
    if folder is None or not folder.is_dir():
        return None
    found = [kind for kind, suffixes in SUFFIXES.items() if any(p.suffix.lower() in suffixes for p in folder.iterdir())]
    return found[0] if len(found) == 1 else None


if __name__ == "__main__":
    main()
