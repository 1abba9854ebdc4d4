"""A comparison as Markdown, CSV and a page with the pictures side by side."""

from __future__ import annotations

import csv
import importlib.resources
import io
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from aire_nerfstudio.files import write_text
from aire_nerfstudio.report.page import data_uri, duration

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
        o = self.outcome
        return (
            f"PSNR {o['psnr']:.2f} dB, {o['parameters']:,} parameters, {o['steps']:,} steps in {duration(o['seconds'])}"
        )


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


def cells(entry: Entry) -> list[str]:
    """The row's cells after the label."""
    return [
        ABSENT if entry.outcome.get(name) is None else show(entry.outcome[name]) for name, (_, show) in COLUMNS.items()
    ]


def markdown(entries: Sequence[Entry], facts: dict[str, Any]) -> str:
    """The table, best PSNR first, then what could not run, with the commands."""
    lines = ["# Comparison", "", " | ".join(f"{name}: {value}" for name, value in facts.items()), ""]
    heads = ["method", *(title for title, _ in COLUMNS.values())]
    lines += ["| " + " | ".join(heads) + " |", "|---" + "|---:" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join([entry.label, *cells(entry)]) + " |" for entry in ranked(entries)]
    failed = [entry for entry in entries if entry.reason is not None]
    if failed:
        lines += ["", "Not run here:", ""] + [f"- {entry.label}: {entry.reason}" for entry in failed]
    lines += ["", NOTES, "", "```"]
    lines += [f"ns-train {shlex.join(entry.command)}" for entry in ranked(entries)] + ["```", ""]
    return "\n".join(lines)


NOTES = (
    "Scores of the same test views over white, by the same code. Parameters and weights are those that are trained; a "
    "checkpoint holds the optimizer as well. Training without set-up. Memory: CUDA's peak, on a CPU the process's "
    "highest resident size (PyTorch alone takes about 0.5 GB). n/a: could not be had."
)


def ranked(entries: Sequence[Entry]) -> list[Entry]:
    """Those that ran, best PSNR first."""
    return sorted((e for e in entries if e.reason is None), key=lambda e: -e.outcome["psnr"])


def table(entries: Sequence[Entry]) -> str:
    """CSV: plain numbers, one row a method, failures with their reason."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["label", "method", *COLUMNS, "reason", "command"])
    for entry in [*ranked(entries), *(e for e in entries if e.reason is not None)]:
        values = [entry.outcome.get(name, "") for name in COLUMNS]
        writer.writerow([entry.label, entry.method, *values, entry.reason or "", shlex.join(entry.command)])
    return out.getvalue()


def page(entries: Sequence[Entry], facts: dict[str, Any]) -> str:
    """HTML in one file: the table, and each shown view as all methods render it."""
    source = importlib.resources.files("aire_nerfstudio.compare").joinpath("page.html.j2").read_text("utf8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    best = ranked(entries)
    return environment.from_string(source).render(
        facts=facts,
        heads=[title for title, _ in COLUMNS.values()],
        rows=[(entry, cells(entry)) for entry in best],
        failed=[entry for entry in entries if entry.reason is not None],
        commands=[f"ns-train {shlex.join(entry.command)}" for entry in best],
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
            caption = f"{entry.label}: {entry.outcome['psnr_by_view'][index]:.2f} dB"
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
