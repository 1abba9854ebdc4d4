"""A comparison as Markdown, CSV and a page with the pictures side by side."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aire_nerfstudio.files import write_text
from aire_nerfstudio.report.page import data_uri
from aire_nerfstudio.report.template import duration, fill

PICTURE_SIDE, SHOWN_VIEWS = 320, 4
ABSENT = "n/a"


@dataclass(frozen=True)
class Entry:
    """A method's row.

    Attributes:
        label: its name.
        method: as ``ns-train`` knows it.
        command: arguments of ``ns-train``.
        outcome: of its trial; empty where there is none.
        folder: of its pictures.
        reason: why it has no outcome.
    """

    label: str
    method: str
    command: tuple[str, ...]
    outcome: dict[str, Any]
    folder: Path | None
    reason: str | None

    def in_words(self) -> str:
        """One line."""
        if self.reason is not None:
            return self.reason
        o, psnr = self.outcome, mean(self, "psnr", len(self.outcome["scores"]))
        size = f"{o['parameters']:,} parameters"
        return f"PSNR {psnr:.2f} dB, {size}, {o['steps']:,} steps in {duration(o['seconds'])}"


def _bytes(value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value / 1e6:.2f} MB" if value < 1e8 else f"{value / 1e6:,.0f} MB"


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "psnr": ("PSNR [dB]", lambda v: f"{v:.2f}"),
    "ssim": ("SSIM", lambda v: f"{v:.3f}"),
    "lpips": ("LPIPS", lambda v: f"{v:.3f}"),
    "parameters": ("parameters", lambda v: f"{v:,}"),
    "weight_bytes": ("weights", _bytes),
    "checkpoint_bytes": ("checkpoint", _bytes),
    "seconds": ("training", duration),
    "steps": ("steps", lambda v: f"{v:,}"),
    "render_seconds": ("render a view", lambda v: f"{v:.3g} s"),
    "memory": ("peak memory", _bytes),
    "views": ("views", str),
}


def common_views(entries: Sequence[Entry]) -> int:
    """How many views all that ran have rendered: means over them compare."""
    return min((len(entry.outcome["scores"]) for entry in entries if entry.reason is None), default=0)


def mean(entry: Entry, score: str, views: int) -> float | None:
    """A score's mean over the first views; None where one lacks it."""
    values = [view.get(score) for view in entry.outcome["scores"][:views]]
    return float(np.mean(values)) if values and None not in values else None


def figures(entry: Entry, views: int) -> dict[str, Any]:
    """The row's figures, scores as means over the first views."""
    scores = {name: mean(entry, name, views) for name in ("psnr", "ssim", "lpips")}
    return {**entry.outcome, **scores, "views": views}


def cells(entry: Entry, views: int) -> list[str]:
    """The row's cells after the label."""
    found = figures(entry, views)
    return [ABSENT if found.get(name) is None else show(found[name]) for name, (_, show) in COLUMNS.items()]


def command_line(entry: Entry) -> str:
    """What ``ns-train`` was given, with the length of the run."""
    method, *rest = entry.command
    length = ["--max-num-iterations", str(entry.outcome["trial"]["steps"])] if "trial" in entry.outcome else []
    return f"ns-train {shlex.join([method, *length, *rest])}"


def markdown(entries: Sequence[Entry], facts: dict[str, Any]) -> str:
    """The table, best PSNR first, then what could not run, with the commands."""
    views = common_views(entries)
    lines = ["# Comparison", "", " | ".join(f"{name}: {value}" for name, value in facts.items()), ""]
    heads = ["method", *(title for title, _ in COLUMNS.values())]
    lines += ["| " + " | ".join(heads) + " |", "|---" + "|---:" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join([_escaped(e.label), *cells(e, views)]) + " |" for e in ranked(entries)]
    failed = [entry for entry in entries if entry.reason is not None]
    if failed:
        lines += ["", "Not run here:", ""] + [f"- {entry.label}: {entry.reason}" for entry in failed]
    lines += ["", NOTES, "", "```"]
    lines += [command_line(entry) for entry in ranked(entries)] + ["```", ""]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


NOTES = (
    "Scores of the same test views over white, by the same code; views: how many all methods rendered in their time. "
    "Parameters and weights are those that are trained; a checkpoint holds the optimizer and buffers as well. Training "
    "without set-up; what a method makes within its first steps counts. Memory of the training: on CUDA torch's own "
    "peak, on a CPU the highest resident size with child processes (PyTorch alone takes about 0.5 GB). n/a: could not "
    "be had."
)


def ranked(entries: Sequence[Entry]) -> list[Entry]:
    """Those that ran, best PSNR first; what is not a number last."""
    views = common_views(entries)

    def place(entry: Entry) -> float:
        psnr = mean(entry, "psnr", views)
        return math.inf if psnr is None or math.isnan(psnr) else -psnr

    return sorted((entry for entry in entries if entry.reason is None), key=place)


def table(entries: Sequence[Entry]) -> str:
    """CSV: plain numbers, one row a method, failures with their reason."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["label", "method", *COLUMNS, "reason", "command"])
    for entry in [*ranked(entries), *(e for e in entries if e.reason is not None)]:
        found = {} if entry.reason is not None else figures(entry, common_views(entries))
        values = ["" if found.get(name) is None else found[name] for name in COLUMNS]
        writer.writerow([entry.label, entry.method, *values, entry.reason or "", shlex.join(entry.command)])
    return out.getvalue()


def page(entries: Sequence[Entry], facts: dict[str, Any]) -> str:
    """HTML in one file: the table, and each shown view as all methods render it."""
    best = ranked(entries)
    return fill(
        "aire_nerfstudio.compare",
        facts=facts,
        heads=[title for title, _ in COLUMNS.values()],
        rows=[(entry, cells(entry, common_views(entries))) for entry in best],
        failed=[entry for entry in entries if entry.reason is not None],
        commands=[command_line(entry) for entry in best],
        notes=NOTES,
        views=_views(best),
    )


def _views(entries: Sequence[Entry]) -> list[dict[str, str]]:
    """Captions and pictures of the views that all methods rendered."""
    if not entries:
        return []
    count = min(SHOWN_VIEWS, *(len(entry.outcome["renders"]) for entry in entries))
    views = []
    for index in range(count):
        first = entries[0]
        shown = {"truth": _picture(first, first.outcome["truths"][index])}
        for entry in entries:
            caption = f"{entry.label}: {entry.outcome['scores'][index]['psnr']:.2f} dB"
            shown[caption] = _picture(entry, entry.outcome["renders"][index])
        views.append(shown)
    return views


def _picture(entry: Entry, name: str) -> str:
    assert entry.folder is not None
    with Image.open(entry.folder / name) as file:
        return data_uri(np.asarray(file.convert("RGB")), PICTURE_SIDE)


def write_all(entries: Sequence[Entry], facts: dict[str, Any], folder: Path) -> list[Path]:
    """Write comparison.md, .csv and .html; returns the files."""
    texts = {"md": markdown(entries, facts), "csv": table(entries), "html": page(entries, facts)}
    paths = []
    for suffix, text in texts.items():
        path = folder / f"comparison.{suffix}"
        write_text(path, text)
        paths.append(path)
    return paths
