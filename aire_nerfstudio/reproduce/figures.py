"""Pictures of an experiment: curve, contributions, spectra, error maps, the two parts, heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from aire_nerfstudio.files import write_whole
from aire_nerfstudio.reproduce.arrays import load_arrays
from aire_nerfstudio.reproduce.experiment import Experiment
from aire_nerfstudio.reproduce.fit import Fit
from aire_nerfstudio.reproduce.flow_fit import FlowFit
from aire_nerfstudio.reproduce.image_fit import ImageFit
from aire_nerfstudio.reproduce.report import Measured
from aire_nerfstudio.reproduce.store import Store
from aire_nerfstudio.reproduce.surface_figures import beside_the_truth, moments, write_coloured

STAGES = {"densify": "#cfe3f7", "decay": "#f9dcc0", "prune": "#d8efd3"}
NAMES = {"densify": "densified", "decay": "decay", "prune": "fine-tuning"}


def draw(experiment: Experiment, measured: Sequence[Measured], store: Store, folder: Path) -> list[Path]:
    """Draw what fits the experiment into ``folder``; returns the files: PNG, and PLY of coloured surfaces."""
    if experiment.grid is not None:
        return [_save(heat_map(experiment, measured), folder / f"{experiment.name}.png")]
    rows: dict[str, Fit] = {}
    for m in measured:
        # Where a row holds several variants, each has a curve of its own.
        known = rows.setdefault(m.cell.row, m.cell.fits[0])
        if known.variant != m.cell.fits[0].variant:
            rows.setdefault(f"{m.cell.row} {m.cell.fits[0].variant}", m.cell.fits[0])
    found = {row: store.load(fit) for row, fit in rows.items()}
    runs = {row: figures for row, figures in found.items() if figures is not None}
    made = [_save(curves(runs, experiment.curve), folder / f"{experiment.name}-curves.png")]
    if not experiment.is_recorded:
        return made
    if isinstance(next(iter(rows.values())), ImageFit):
        for row, fit in rows.items():
            path = folder / f"{experiment.name}-{_as_name(row)}.png"
            made.append(_save(around_the_removal(load_arrays(store.record_path(fit)), row), path))
        return made
    # Each shape's fits of the first seed, in the rows' order.
    shapes: dict[str, dict[str, Fit]] = {}
    for m in measured:
        for fit in m.cell.fits:
            shapes.setdefault(fit.source, {}).setdefault(m.cell.row, fit)
    for source, fits in shapes.items():
        name = f"{experiment.name}-{Path(source).stem}"
        kept = [(row, fit, load_arrays(store.record_path(fit)), store.load(fit) or {}) for row, fit in fits.items()]
        if isinstance(kept[0][1], FlowFit):
            flows = [(row, arrays, figures) for row, _, arrays, figures in kept]
            made.append(_save(moments(flows, f"{experiment.title}: {source}"), folder / f"{name}.png"))
            continue
        shown = [(row, arrays, figures.get("chamfer_x100")) for row, _, arrays, figures in kept]
        made.append(_save(beside_the_truth(shown, f"{experiment.title}: {source}"), folder / f"{name}.png"))
        made += [write_coloured(arrays, folder / f"{name}-{_as_name(row)}.ply") for row, arrays, _ in shown]
    return made


def _as_name(row: str) -> str:
    return row.replace(" ", "-").replace(",", "")


def curves(runs: Mapping[str, Mapping[str, Any]], label: str = "PSNR of the training batch (dB)") -> plt.Figure:
    """The training curves, one line a run; bands show the stages of the first run that has any, by its name."""
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    whose, staged = next(((row, figures) for row, figures in runs.items() if figures["events"]), ("", None))
    if staged is not None:
        events = [(step, name) for step, name, _ in staged["events"] if name in STAGES]
        ends = [step for step, _ in events[1:]] + [staged["steps"]]
        for (begin, name), end in zip(events, ends, strict=True):
            axes.axvspan(begin, end, color=STAGES[name], label=f"{NAMES[name]} ({whose})", lw=0)
    for row, figures in runs.items():
        steps, values = zip(*figures["curve"], strict=True)
        axes.plot(steps, [np.nan if value is None else value for value in values], lw=1.3, label=row)
    axes.set(xlabel="step", ylabel=label)
    axes.margins(x=0)
    axes.legend(fontsize=8, ncols=2, loc="best")
    return figure


def around_the_removal(arrays: Mapping[str, np.ndarray], title: str) -> plt.Figure:
    """Contributions, the split into strong and weak neurons, spectra around the removal, and the final error."""
    figure, axes = plt.subplots(3, 4, figsize=(13, 9.4), layout="constrained")
    figure.suptitle(title)
    for ax, event, words in (
        (axes[0, 0], "densify", "at the densification"), (axes[0, 1], "decay", "when the decay begins"),
        (axes[0, 2], "prune", "before the removal"),
    ):  # fmt: skip
        name = f"contributions_{event}"
        if name not in arrays:
            ax.set_axis_off()
            continue
        values = np.asarray(arrays[name], dtype=np.float64)
        n_new = int(arrays[f"new_{event}"])
        is_new = np.arange(len(values)) >= len(values) - n_new
        order = np.argsort(-values)
        places = np.arange(len(values))
        ax.bar(places, values[order], width=1.0, color=np.where(is_new[order], "#d9730d", "#4878a8"))
        ax.set(title=f"contributions {words}", xlabel="input neurons, strongest first", yscale="log")
        if n_new:
            ax.plot([], [], "s", color="#d9730d", label="added by densification")
            ax.legend(fontsize=8)
    _image(axes[0, 3], arrays.get("truth"), "truth")
    for row, event, words in ((1, "decay", "as the decay begins"), (2, "prune", "before the removal")):
        for column, part in enumerate(("important", "unimportant")):
            name = f"{part}_before_{event}"
            _image(axes[row, column], arrays.get(name), f"{part} neurons alone,\n{words}")
    if "picture_before_prune" in arrays and "picture_after_prune" in arrays:
        before, after = (np.asarray(arrays[f"picture_{when}_prune"], dtype=np.float64) for when in ("before", "after"))
        spectrum = np.abs(np.fft.fftshift(np.fft.fft2((after - before).mean(-1), norm="ortho")))
        shown = axes[1, 2].imshow(np.log10(spectrum + 1e-6), cmap="magma", vmin=-4, vmax=1)
        figure.colorbar(shown, ax=axes[1, 2], shrink=0.8, label="log10")
        axes[1, 2].set(title="|FFT| of the change by the removal", xticks=[], yticks=[])
        _image(axes[1, 3], after, "just after the removal")
    else:
        axes[1, 2].set_axis_off()
        axes[1, 3].set_axis_off()
    if "picture_end" in arrays:
        end, truth = (np.asarray(arrays[name], dtype=np.float64) for name in ("picture_end", "truth"))
        shown = axes[2, 2].imshow(np.abs(end - truth).mean(-1), cmap="viridis", vmin=0, vmax=0.1)
        figure.colorbar(shown, ax=axes[2, 2], shrink=0.8)
        axes[2, 2].set(title="|error| at the end", xticks=[], yticks=[])
        _image(axes[2, 3], end, "at the end")
    return figure


def heat_map(experiment: Experiment, measured: Sequence[Measured]) -> plt.Figure:
    """Mean PSNR over a grid of two settings."""
    assert experiment.grid is not None
    columns = list(dict.fromkeys(m.cell.column for m in measured))
    rows = list(dict.fromkeys(m.cell.row for m in measured))
    values = np.full((len(rows), len(columns)), np.nan)
    for m in measured:
        values[rows.index(m.cell.row), columns.index(m.cell.column)] = m.mean
    figure, axes = plt.subplots(figsize=(1.2 * len(columns) + 2.6, 0.9 * len(rows) + 1.8), layout="constrained")
    shown = axes.imshow(values, cmap="viridis", origin="lower", aspect="auto")
    figure.colorbar(shown, label="test PSNR (dB)")
    middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
    for (i, j), value in np.ndenumerate(values):
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="black" if value > middle else "white")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel=experiment.grid[0], ylabel=experiment.grid[1])
    axes.set_title(experiment.title, fontsize=10)
    return figure


def _image(axes: Any, picture: np.ndarray | None, title: str) -> None:
    if picture is None:
        axes.set_axis_off()
        return
    values = np.asarray(picture, dtype=np.float64).clip(0, 1)
    axes.imshow(values[..., 0] if values.shape[-1] < 3 else values[..., :3], cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)


def _save(figure: plt.Figure, path: Path) -> Path:
    write_whole(path, lambda name: figure.savefig(name, dpi=110))
    plt.close(figure)
    return path
