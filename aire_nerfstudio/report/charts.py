"""A report's charts, as SVG; several runs in one are told apart by colour."""

from __future__ import annotations

import io
import itertools
import math
import re
import zlib
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aire_nerfstudio.record import KINDS, RunRecord, Snapshot, kinds_of
from aire_nerfstudio.report.facts import RunFacts

RUN_COLOURS = ("#2563eb", "#d97706")
EVENT_COLOURS = {"densify": KINDS["new"], "decay": "#f59e0b", "prune": KINDS["targeted"]}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": "#475569",
    "xtick.color": "#64748b",
    "ytick.color": "#64748b",
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "svg.fonttype": "none",
    "svg.hashsalt": "aire",
}
# Events that mark a chart; of many rounds the last.
MOST_MARKS = 40
# Of what is drawn in pixels.
DOTS_PER_INCH = 200


def quality(runs: Sequence[RunFacts]) -> str | None:
    """The curve that tells the runs' quality: ``psnr`` where all that were recorded have one, else ``loss``."""
    columns = [record.columns for _, record, _ in _recorded(runs)]
    if not columns:
        return None
    return "psnr" if all("psnr" in column for column in columns) else "loss"


def curves(runs: Sequence[RunFacts]) -> str | None:
    """Quality over steps; of a single run with its events as lines. None without records."""
    name = quality(runs)
    if name is None:
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.6, 3.0), layout="constrained")
        for run, record, colour in _recorded(runs):
            axes.plot(record.steps, record.columns[name], color=colour, linewidth=1.1)
            if len(runs) == 1:
                _mark(axes, run)
        axes.set_xlabel("step")
        axes.set_ylabel("PSNR of the batch [dB]" if name == "psnr" else "loss")
        if name == "loss":
            axes.set_yscale("log")
        return _svg(figure, "Training curve")


def sizes(runs: Sequence[RunFacts]) -> str | None:
    """Parameters over steps, and quality over parameters, side by side; None without records."""
    name = quality(runs)
    if name is None:
        return None
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 2.8), layout="constrained")
        for _, record, colour in _recorded(runs):
            left.step(record.steps, record.parameters, where="post", color=colour)
            smooth = _smoothed_at_each_size(record.columns[name], record.parameters)
            right.plot(record.parameters, smooth, color=colour, linewidth=0.8, alpha=0.6)
            right.plot(record.parameters[-1], smooth[-1], "o", color=colour, markersize=5)
            right.plot(record.parameters[0], smooth[0], "o", color=colour, markersize=5, fillstyle="none")
        left.set_xlabel("step")
        left.set_ylabel("parameters")
        left.set_ylim(bottom=0)
        right.set_xlabel("parameters")
        mean = "running mean at each size"
        right.set_ylabel(f"PSNR [dB], {mean}" if name == "psnr" else f"loss, {mean}")
        if name == "loss":
            right.set_yscale("log")
        return _svg(figure, "Size over steps, and quality over size; ring: start, dot: end")


def _recorded(runs: Sequence[RunFacts]) -> list[tuple[RunFacts, RunRecord, str]]:
    """Runs that have curves, their records and their colours."""
    coloured = zip(runs, RUN_COLOURS, strict=False)
    return [(run, run.record, colour) for run, colour in coloured if run.record is not None and run.record.steps]


def contributions(shots: Sequence[Snapshot]) -> str:
    """Contributions of all neurons, strongest first: one row a layer, one column a moment."""
    rows = len(shots[0].layers)
    with plt.rc_context({**STYLE, "font.size": 8}):
        figure, grid = plt.subplots(
            rows, len(shots), figsize=(8.6, 0.6 + 1.15 * rows), layout="constrained", sharey="row", squeeze=False
        )
        for column, shot in enumerate(shots):
            for row, layer in enumerate(shot.layers):
                axes: Axes = grid[row][column]
                rank = layer.ranks
                edges = np.arange(len(rank) + 1) - 0.5
                for kind, mask in kinds_of(shot, row).items():
                    heights = np.zeros(len(rank))
                    heights[rank[mask].numpy()] = layer.contributions[mask].numpy()
                    # Drawn in pixels: a shape a neuron would outweigh the report's pictures.
                    axes.stairs(heights, edges, fill=True, color=KINDS[kind], linewidth=0, rasterized=True)
                axes.set_ylim(bottom=0)
                axes.set_xlim(-0.5, len(rank) - 0.5)
                axes.set_xticks([])
                axes.grid(False)
                axes.set_xlabel(f"{len(rank)} neurons", labelpad=2)
                if column == 0:
                    axes.set_ylabel(f"layer {row}")
                if row == 0:
                    axes.set_title(f"{shot.event} · step {shot.step:,}", fontsize=8)
        return _svg(figure, "Contributions of the neurons")


def spectrum(shots: Sequence[Snapshot]) -> str:
    """Input frequencies at the start and at the end: in the plane for two coordinates, else by their length."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(shots), figsize=(8.6, 3.4), layout="constrained", squeeze=False)
        is_plane = shots[0].frequencies.shape[1] == 2
        reach = 1.05 * max(float(shot.frequencies.abs().max()) for shot in shots)
        longest = 1.05 * max(float(shot.frequencies.norm(dim=1).max()) for shot in shots)
        for shot, ax in zip(shots, axes[0], strict=True):
            given = shot.layers[0].contributions
            largest = float(given.max().clamp_min(1e-12))
            for kind, mask in kinds_of(shot, 0).items():
                if is_plane:
                    size = (4 + 40 * given[mask] / largest).tolist()
                    x, y = shot.frequencies[mask, 0].tolist(), shot.frequencies[mask, 1].tolist()
                    ax.scatter(x, y, s=size, color=KINDS[kind], alpha=0.75, linewidths=0)
                else:
                    lengths = shot.frequencies[mask].norm(dim=1).tolist()
                    ax.scatter(lengths, given[mask].tolist(), s=10, color=KINDS[kind], alpha=0.75, linewidths=0)
            if is_plane:
                ax.set_xlim(-reach, reach)
                ax.set_ylim(-reach, reach)
                ax.set_aspect("equal")
                ax.set_xlabel("ω_x [rad per unit]")
                ax.set_ylabel("ω_y")
            else:
                ax.set_xlim(0, longest)
                ax.set_xlabel("|ω| [rad per unit]")
                ax.set_ylabel("contribution")
            ax.set_title(f"{shot.event} · step {shot.step:,} · {len(given)} neurons", fontsize=9)
        return _svg(figure, "Input frequencies")


def _mark(axes: Axes, run: RunFacts) -> None:
    for event in run.history[-MOST_MARKS:]:
        colour = EVENT_COLOURS.get(event["event"], "#94a3b8")
        axes.axvline(event["step"], color=colour, linewidth=1, linestyle=(0, (4, 3)))
    if len(run.history) <= 12:
        for event in run.history:
            name = f" {event['event']}{' (by hand)' if event.get('by_hand') else ''}".replace("$", r"\$")
            axes.annotate(
                name, (event["step"], 1.0), xycoords=("data", "axes fraction"), fontsize=8, color="#475569",
                rotation=90, va="top", ha="left",
            )  # fmt: skip


def _smoothed_at_each_size(values: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """A running mean that begins anew where the size changes: before and after a removal are two networks."""
    out: list[float] = []
    for _, group in itertools.groupby(range(len(values)), key=lambda index: sizes[index]):
        out += _smoothed([values[index] for index in group])
    return out


def _smoothed(values: Sequence[float], pace: float = 0.05) -> list[float]:
    """A running mean, which what is not finite leaves as it is; NaN before the first finite value."""
    out, mean = [], math.nan
    for value in values:
        if math.isfinite(value):
            mean = value if math.isnan(mean) else mean + pace * (value - mean)
        out.append(mean)
    return out


def _svg(figure: Figure, label: str) -> str:
    """The figure as an ``<svg>`` element whose ids clash with no other's."""
    text = io.StringIO()
    figure.savefig(text, format="svg", dpi=DOTS_PER_INCH, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    body = text.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    # Equal pictures have equal ids, which nothing refers to.
    body = re.sub(r'(<image [^>]*?) id="[^"]*"', r"\1", body)
    # matplotlib numbers its ids anew in every figure.
    tag = f"f{zlib.crc32(body.encode()):08x}"
    body = re.sub(r'id="([^"]+)"', rf'id="{tag}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{tag}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{tag}-\1"', body)
    return body.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
