"""The page: facts, charts and portraits in one file that asks the network for nothing."""

from __future__ import annotations

import base64
import importlib.resources
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.files import write_text
from aire_nerfstudio.record import KINDS, Snapshot
from aire_nerfstudio.report import charts
from aire_nerfstudio.report.facts import RunFacts
from aire_nerfstudio.report.portrait import Portrait

# Longest side of a picture on the page, JPEG's quality, and columns of the chart of contributions.
LONGEST_SIDE, QUALITY, MOMENTS = 560, 88, 5
# What a page may weigh; pictures become smaller until it does.
MOST_BYTES = 5_000_000


@dataclass(frozen=True)
class Scored:
    """Scores to show, and what they are of."""

    values: dict[str, float]
    of: str


def write_report(path: Path, runs: Sequence[RunFacts], portraits: Sequence[Sequence[Portrait]]) -> None:
    """Write the page about one run, or about two side by side; it appears only when whole.

    Args:
        path: the HTML file.
        runs: one or two.
        portraits: of each, in the same order; may be empty.

    Raises:
        InputError: another number of runs, or the file cannot be written.
    """
    if len(runs) not in (1, 2):
        raise InputError(f"a report shows one run or two side by side; {len(runs)} were given")
    side = LONGEST_SIDE
    text = _page(runs, portraits, side)
    while len(text.encode()) > MOST_BYTES and side > 64:
        side = int(side * 0.75)
        text = _page(runs, portraits, side)
    write_text(path, text)


def _page(runs: Sequence[RunFacts], portraits: Sequence[Sequence[Portrait]], side: int) -> str:
    source = importlib.resources.files("aire_nerfstudio.report").joinpath("page.html.j2").read_text("utf8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = lambda value: f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
    environment.filters["duration"] = duration
    panes = [_pane(run, shown, side) for run, shown in zip(runs, portraits, strict=True)]
    return environment.from_string(source).render(
        panes=panes,
        colours=charts.RUN_COLOURS,
        kinds=KINDS,
        curves=charts.curves(runs),
        sizes=charts.sizes(runs),
        has_psnr=all("psnr" in run.record.columns for run in runs if run.record is not None and run.record.steps),
    )


def _pane(run: RunFacts, portraits: Sequence[Portrait], side: int) -> dict[str, Any]:
    """What the template needs of a run."""
    shots = _moments(run)
    before, after = run.parameters
    return {
        "run": run,
        "change": 100 * (after / before - 1),
        "scored": _scored(run, portraits),
        "spans": _spans(run),
        "contributions": charts.contributions(shots) if shots else None,
        "spectrum": charts.spectrum([shots[0], shots[-1]]) if shots else None,
        "portraits": [
            {
                "title": portrait.title,
                "scores": portrait.scores,
                "pictures": {caption: data_uri(picture, side) for caption, picture in portrait.pictures.items()},
            }
            for portrait in portraits
        ],
    }


def _moments(run: RunFacts) -> list[Snapshot]:
    """The snapshots to draw: the first, the last events, and the end."""
    if run.record is None or run.now is None or not run.record.snapshots:
        return []
    first, *events = run.record.snapshots
    return [first, *events[-(MOMENTS - 2) :], replace(run.now, event="end")]


def _scored(run: RunFacts, portraits: Sequence[Portrait]) -> Scored | None:
    if run.scores:
        return Scored(run.scores, "all evaluation views (ns-eval)")
    views = [portrait.scores for portrait in portraits if portrait.scores]
    if not views:
        return None
    names = [name for name in views[0] if all(name in view for view in views)]
    means = {name: float(np.mean([view[name] for view in views])) for name in names}
    return Scored(means, f"the {len(views)} view{'s' if len(views) > 1 else ''} below")


def _spans(run: RunFacts) -> list[dict[str, Any]]:
    """Stretches between the events, with their share of the run."""
    edges = [(0, "train"), *((event["step"], event["event"]) for event in run.history if event["step"] < run.step)]
    spans = []
    for (start, name), (end, _) in zip(edges, [*edges[1:], (run.step, "")], strict=True):
        if end > start:
            after = {"densify": "densified", "prune": "after the removal", "unfreeze": "train"}.get(name, name)
            spans.append(
                {"name": after, "event": name, "start": start, "end": end, "share": 100 * (end - start) / run.step}
            )
    return spans


def duration(seconds: float) -> str:
    """Seconds in words: ``7.3 s``, ``4 min 12 s``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def data_uri(picture: np.ndarray, side: int) -> str:
    """``[H, W, 3]`` uint8 as a JPEG that a page holds itself, no side longer than ``side`` pixels."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
