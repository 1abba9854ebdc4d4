"""A finished experiment as JSON, CSV and a Markdown table that sets it beside the paper's numbers."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.files import write_text
from aire_nerfstudio.reproduce.experiment import Cell, Choice, Experiment
from aire_nerfstudio.reproduce.store import Store


@dataclass(frozen=True)
class Measured:
    """A cell and what was measured for it.

    Attributes:
        values: one a fit, in the order of the cell's fits.
    """

    cell: Cell
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over files and seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation, None of a single fit or where a value is not finite."""
        return spread(self.values)

    def text(self) -> str:
        """``mean +- std``, as few digits as make sense."""
        if math.isnan(self.mean):
            return "none"  # A network without a surface, or that diverged.
        if math.isinf(self.mean):
            return f"{self.mean}"  # A perfect fit's PSNR.
        metric = self.cell.metric.removeprefix("averaged_")
        digits = {"parameters": 0, "chamfer_x100": 3}.get(metric, 5 if metric.startswith("chamfer_") else 2)
        around = "" if self.spread is None else f" +- {self.spread:.{digits}f}"
        return f"{self.mean:,.{digits}f}{around}"


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation, None of fewer than two values or where one is not finite."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def measure(experiment: Experiment, store: Store) -> list[Measured]:
    """Read the figures of every cell.

    Raises:
        InputError: a fit has not been run, or lacks the figure.
    """
    measured = []
    for cell in experiment.cells:
        values = []
        for fit in cell.fits:
            figures = store.load(fit)
            if figures is None or cell.metric not in figures:
                raise InputError(f"{store.path(fit)} with {cell.metric} is not there; run the experiment first")
            value = figures[cell.metric]
            values.append(math.nan if value is None else cell.factor * float(value))
        measured.append(Measured(cell, tuple(values)))
    return measured


def verdict(difference: float, rounding: float = 0.005) -> str:
    """``met`` or ``short by x``.

    Args:
        difference: ours minus the paper's, in the direction that is better.
        rounding: half a unit of the paper's last digit.
    """
    digits = max(0, round(-math.log10(2 * rounding)))
    return "met" if difference >= -rounding else f"short by {-difference:.{digits}f}"


def is_judged(cell: Cell, experiment: Experiment, choice: Choice) -> bool:
    """Whether the paper's number may be held against ours: same protocol, and its average over the same files."""
    if choice.budget != "paper" or choice.changes or not cell.is_judged:
        return False
    return cell.is_of_file or _is_of_all(experiment, choice)


def _is_of_all(experiment: Experiment, choice: Choice) -> bool:
    """Whether the files are those over which the paper's averages are."""
    return {Path(name).stem for name in choice.sources} == experiment.averaged


def markdown(experiment: Experiment, choice: Choice, measured: list[Measured], machines: Sequence[str]) -> str:
    """The table, the gains and the settings, as a page; ``machines``: what the fits ran on."""
    # Differences of the same files stay comparable at another budget.
    is_of_all = _is_of_all(experiment, choice) and not choice.changes
    out = [f"# {experiment.title}", ""]
    out += [
        f"Budget **{choice.budget}** | {len(choice.sources)} file(s): {', '.join(choice.sources)} | seed(s) "
        f"{', '.join(map(str, choice.seeds))} | {'; '.join(machines)}",
        "",
    ]
    if choice.changes:
        out += ["AIRe with " + ", ".join(f"{name} = {value}" for name, value in choice.changes), ""]
    columns = list(dict.fromkeys(m.cell.column for m in measured))
    rows = list(dict.fromkeys(m.cell.row for m in measured))
    found = {(m.cell.row, m.cell.column): m for m in measured}
    has_paper = {
        column: any(m.cell.paper is not None for m in measured if m.cell.column == column) for column in columns
    }
    head = [""]
    for column in columns:
        head += [column, f"paper: {column}"] if has_paper[column] else [column]
    out += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        line = [row]
        for column in columns:
            entry = found.get((row, column))
            line.append("" if entry is None else entry.text())
            if has_paper[column]:
                line.append(
                    ""
                    if entry is None or entry.cell.paper is None
                    else _beside(entry, is_judged(entry.cell, experiment, choice))
                )
        out.append("| " + " | ".join(line) + " |")
    if experiment.gains:
        out += ["", "| difference | ours | paper | |", "|---|---|---|---|"]
        for gain in experiment.gains:
            a, b = found[gain.row, gain.column], found[gain.minus, gain.column]
            pairs = [x / y if gain.is_ratio else x - y for x, y in zip(a.values, b.values, strict=True)]
            ours, deviation = statistics.fmean(pairs), spread(pairs)
            shape = ".2f" if gain.is_ratio else "+.2f"
            number = f"{ours:{shape}}" if math.isfinite(ours) else "none"
            around = "" if deviation is None else f" +- {deviation:.2f}"
            paper = "" if gain.paper is None else f"{gain.paper:{shape}}"
            sign = 1 if gain.is_better == "higher" else -1
            judged = ""
            if gain.paper is not None and is_of_all and math.isfinite(ours):
                judged = verdict(sign * (ours - gain.paper), gain.rounding)
            between = "/" if gain.is_ratio else "-"
            out.append(f"| {gain.row} {between} {gain.minus}, {gain.column} | {number}{around} | {paper} | {judged} |")
    if choice.budget != "paper":
        out += ["", "The paper's numbers are for its own budget; only the differences can be compared, with care."]
    has_averages = any(m.cell.paper is not None and not m.cell.is_of_file for m in measured)
    if not _is_of_all(experiment, choice) and (has_averages or any(g.paper is not None for g in experiment.gains)):
        out += ["", _of_which_files(sorted(experiment.averaged))]
    out += ["", *experiment.notes]
    return "\n".join(out).rstrip() + "\n"


def _of_which_files(names: Sequence[str]) -> str:
    if not names:
        return "The paper does not say which files its numbers are of; ours are not held against them."
    files = ", ".join(names) if len(names) <= 5 else f"{len(names)} files ({names[0]} to {names[-1]})"
    return f"The paper's averages are over {files}; ours, over other files, are not held against them."


def _beside(entry: Measured, is_judged: bool) -> str:
    paper = entry.cell.paper
    assert paper is not None
    if not is_judged:
        return f"{paper:g}"
    if not math.isfinite(entry.mean):
        return f"{paper:g}, short"
    sign = 1 if entry.cell.is_better == "higher" else -1
    return f"{paper:g}, {verdict(sign * (entry.mean - paper), entry.cell.rounding)}"


def as_json(
    experiment: Experiment, choice: Choice, measured: list[Measured], machines: Sequence[str], store: Store
) -> str:
    """Every value, with the key of the fit it comes from."""
    return json.dumps(
        {
            "experiment": experiment.name,
            "budget": choice.budget,
            "sources": choice.sources,
            "seeds": choice.seeds,
            "changes": dict(choice.changes),
            "machines": list(machines),
            "cells": [
                {
                    "row": m.cell.row,
                    "column": m.cell.column,
                    "metric": m.cell.metric,
                    "mean": _finite(m.mean),
                    "std": m.spread,
                    "paper": m.cell.paper,
                    "fits": {store.key(fit): _finite(value) for fit, value in zip(m.cell.fits, m.values, strict=True)},
                }
                for m in measured
            ],
        },
        indent=1,
    )


def as_csv(measured: list[Measured]) -> str:
    """One line a fit and cell."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "column", "source", "seed", "value", "paper"])
    for m in measured:
        for fit, value in zip(m.cell.fits, m.values, strict=True):
            writer.writerow([m.cell.row, m.cell.column, fit.source, fit.seed, value, m.cell.paper])
    return file.getvalue()


def write_report(experiment: Experiment, choice: Choice, store: Store, folder: Path) -> Path:
    """Write ``NAME.md``, ``.json`` and ``.csv`` into ``folder``; returns the Markdown file."""
    measured = measure(experiment, store)
    page = folder / f"{experiment.name}.md"
    machines = sorted({store.machine_of(fit) for fit in experiment.fits()})
    write_text(page, markdown(experiment, choice, measured, machines))
    write_text(page.with_suffix(".json"), as_json(experiment, choice, measured, machines, store))
    write_text(page.with_suffix(".csv"), as_csv(measured))
    return page


def _finite(value: float) -> Any:
    return value if math.isfinite(value) else None
