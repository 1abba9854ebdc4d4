"""The page: facts, charts and portraits in one file that asks the network for nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.files import write_text
from aire_nerfstudio.record import KINDS, Snapshot
from aire_nerfstudio.report import charts
from aire_nerfstudio.report.facts import RunFacts
from aire_nerfstudio.report.portrait import Portrait, mean_scores, views_in_words
from aire_nerfstudio.report.template import fill

# Longest side of a picture on the page, JPEG's quality, and columns of the chart of contributions.
LONGEST_SIDE, QUALITY, MOMENTS = 560, 88, 5
# What a page may weigh; pictures become smaller until it does.
MOST_BYTES, SHORTEST_SIDE = 5_000_000, 64


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
    # Drawn once, whatever size the pictures come to have.
    drawn = {
        "colours": charts.RUN_COLOURS,
        "kinds": KINDS,
        "curves": charts.curves(runs),
        "sizes": charts.sizes(runs),
        "tasks": list(dict.fromkeys(run.task for run in runs)),
        "has_psnr": charts.quality(runs) == "psnr",
    }
    panes = [_pane(run, shown) for run, shown in zip(runs, portraits, strict=True)]
    side = LONGEST_SIDE
    while True:
        shown = [{**pane, "portraits": _shown(views, side)} for pane, views in zip(panes, portraits, strict=True)]
        text = fill("aire_nerfstudio.report", panes=shown, **drawn)
        if len(text.encode()) <= MOST_BYTES or side <= SHORTEST_SIDE:
            break
        side = int(side * 0.75)
    write_text(path, text)


def _pane(run: RunFacts, portraits: Sequence[Portrait]) -> dict[str, Any]:
    """What the template needs of a run, its pictures apart."""
    shots = _moments(run)
    before, after = run.parameters
    return {
        "run": run,
        "change": 100 * (after / before - 1),
        "scored": _scored(run, portraits),
        "spans": _spans(run),
        "contributions": charts.contributions(shots) if shots else None,
        "spectrum": charts.spectrum([shots[0], shots[-1]]) if shots else None,
    }


def _shown(portraits: Sequence[Portrait], side: int) -> list[dict[str, Any]]:
    """The portraits with pictures of at most ``side`` pixels."""
    return [
        {
            "title": portrait.title,
            "scores": portrait.scores,
            "pictures": {caption: data_uri(picture, side) for caption, picture in portrait.pictures.items()},
        }
        for portrait in portraits
    ]


def _moments(run: RunFacts) -> list[Snapshot]:
    """The snapshots to draw: the first, the last events, and the end."""
    if run.record is None or run.now is None or not run.record.snapshots:
        return []
    first, *events = run.record.snapshots
    return [first, *events[-(MOMENTS - 2) :], replace(run.now, event="end")]


def _scored(run: RunFacts, portraits: Sequence[Portrait]) -> Scored | None:
    if run.scores:
        return Scored(run.scores, "all evaluation views (ns-eval)")
    means, count = mean_scores(portraits)
    return Scored(means, f"the {views_in_words(count)} below") if count else None


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


def data_uri(picture: np.ndarray, side: int) -> str:
    """``[H, W, 3]`` uint8 as a JPEG that a page holds itself, no side longer than ``side`` pixels."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
