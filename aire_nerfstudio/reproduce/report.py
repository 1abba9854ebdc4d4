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
from aire_nerfstudio.reproduce.experiment import Cell, Choice, Experiment
from aire_nerfstudio.reproduce.store import Store

# A measured value meets the paper's when it falls short of it by no more than it is printed with.
ROUNDING = 0.005


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
        if not math.isfinite(self.mean):
            return "none"  # A network without a surface, or that diverged.
        digits = {"parameters": 0, "chamfer_x100": 3}.get(
            self.cell.metric, 5 if self.cell.metric.startswith("chamfer_") else 2
        )
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
            values.append(math.nan if value is None else float(value))
        measured.append(Measured(cell, tuple(values)))
    return measured


def verdict(difference: float) -> str:
    """``met`` or ``short by x``, given ours minus the paper's in the direction that is better."""
    return "met" if difference >= -ROUNDING else f"short by {-difference:.2f}"


def markdown(experiment: Experiment, choice: Choice, measured: list[Measured], machines: Sequence[str]) -> str:
    """The table, the gains and the settings, as a page; ``machines``: what the fits ran on."""
    is_papers = choice.budget == "paper"
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
                line.append("" if entry is None or entry.cell.paper is None else _beside(entry, is_papers))
        out.append("| " + " | ".join(line) + " |")
    if experiment.gains:
        out += ["", "| difference | ours | paper | |", "|---|---|---|---|"]
        for gain in experiment.gains:
            a, b = found[gain.row, gain.column], found[gain.minus, gain.column]
            pairs = [x / y if gain.is_ratio else x - y for x, y in zip(a.values, b.values, strict=True)]
            ours, deviation = statistics.fmean(pairs), spread(pairs)
            shape = ".2f" if gain.is_ratio else "+.2f"
            around = "" if deviation is None else f" +- {deviation:.2f}"
            paper = "" if gain.paper is None else f"{gain.paper:{shape}}"
            sign = 1 if gain.is_better == "higher" else -1
            judged = "" if gain.paper is None or not math.isfinite(ours) else verdict(sign * (ours - gain.paper))
            between = "/" if gain.is_ratio else "-"
            out.append(
                f"| {gain.row} {between} {gain.minus}, {gain.column} | {ours:{shape}}{around} | {paper} | {judged} |"
            )
    if not is_papers:
        out += ["", "The paper's numbers are for its own budget; only the differences can be compared, with care."]
    out += ["", *experiment.notes]
    return "\n".join(out).rstrip() + "\n"


def _beside(entry: Measured, is_papers: bool) -> str:
    paper = entry.cell.paper
    assert paper is not None
    if not is_papers:
        return f"{paper:g}"
    if not math.isfinite(entry.mean):
        return f"{paper:g}, short"
    sign = 1 if entry.cell.is_better == "higher" else -1
    return f"{paper:g}, {verdict(sign * (entry.mean - paper))}"


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
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"{experiment.name}.md"
    machines = sorted({store.machine_of(fit) for fit in experiment.fits()})
    page.write_text(markdown(experiment, choice, measured, machines))
    page.with_suffix(".json").write_text(as_json(experiment, choice, measured, machines, store))
    page.with_suffix(".csv").write_text(as_csv(measured))
    return page


def _finite(value: float) -> Any:
    return value if math.isfinite(value) else None
