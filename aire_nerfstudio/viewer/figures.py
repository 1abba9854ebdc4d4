"""The panel's plots: record and snapshot -> plotly figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from aire_nerfstudio.record import KINDS, RunRecord, Snapshot, kinds_of

# Events that mark a curve; the beginning of each of many rounds would cover it.
MOST_MARKS = 24


def contribution_figure(snapshot: Snapshot) -> go.Figure:
    """Contributions of all neurons, strongest first, one row of bars a layer."""
    names = [f"layer {index}: {len(layer.births)} neurons" for index, layer in enumerate(snapshot.layers)]
    figure = make_subplots(rows=len(names), cols=1, subplot_titles=names, vertical_spacing=0.4 / len(names))
    for row, layer in enumerate(snapshot.layers, start=1):
        rank = layer.ranks
        for kind, mask in kinds_of(snapshot, row - 1).items():
            bars = go.Bar(
                x=rank[mask].tolist(),
                y=_rounded(layer.contributions[mask]),
                name=kind,
                marker={"color": KINDS[kind], "line": {"width": 0}},
                showlegend=row == 1,
                legendgroup=kind,
            )
            figure.add_trace(bars, row=row, col=1)
        figure.update_xaxes(showticklabels=False, range=[-0.5, len(rank) - 0.5], row=row, col=1)
    figure.update_yaxes(nticks=4)
    figure.update_annotations(font_size=10)
    figure.update_layout(bargap=0, **_layout())
    return figure


def curve_figure(record: RunRecord, history: Sequence[dict[str, Any]]) -> go.Figure:
    """Loss on a logarithmic axis, PSNR where there is one, and the events as dashed lines."""
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    loss = go.Scatter(x=record.steps, y=record.columns.get("loss", []), name="loss", line={"color": "#9aa4b2"})
    figure.add_trace(loss, secondary_y=False)
    # Powers of ten alone may leave an axis without a number.
    figure.update_yaxes(type="log", exponentformat="power", tickmode="auto", nticks=6, secondary_y=False)
    if "psnr" in record.columns:
        psnr = go.Scatter(x=record.steps, y=record.columns["psnr"], name="PSNR [dB]", line={"color": "#ffd369"})
        figure.add_trace(psnr, secondary_y=True)
        figure.update_yaxes(showgrid=False, tickmode="auto", nticks=6, secondary_y=True)
    figure.update_traces(mode="lines", line={"width": 1.5})
    for event in history[-MOST_MARKS:]:
        mark = {"line": {"dash": "dash", "width": 1, "color": event_colour(event["event"])}}
        figure.add_vline(x=event["step"], annotation_text=event["event"], annotation_font_size=9, **mark)
    figure.update_layout(_layout())
    return figure


def event_colour(event: str) -> str:
    """Colour that stands for an event."""
    return {"densify": KINDS["new"], "decay": KINDS["targeted"], "prune": KINDS["targeted"]}.get(event, "#9aa4b2")


def frequency_figure(snapshot: Snapshot) -> go.Figure:
    """The input neurons' frequencies: in the plane for two coordinates, else length against contribution."""
    figure = go.Figure()
    contributions = snapshot.layers[0].contributions.nan_to_num(0.0, 0.0, 0.0)
    largest = float(contributions.max().clamp_min(1e-12))
    for kind, mask in kinds_of(snapshot, 0).items():
        frequencies, given = snapshot.frequencies[mask], contributions[mask]
        is_plane = snapshot.frequencies.shape[1] == 2
        size = [3 + 9 * math.sqrt(value / largest) for value in given.tolist()]
        points = go.Scatter(
            x=_rounded(frequencies[:, 0] if is_plane else frequencies.norm(dim=1)),
            y=_rounded(frequencies[:, 1] if is_plane else given),
            mode="markers",
            name=kind,
            marker={"color": KINDS[kind], "size": size if is_plane else 5, "opacity": 0.8, "line": {"width": 0}},
        )
        figure.add_trace(points)
    if snapshot.frequencies.shape[1] == 2:
        figure.update_layout(xaxis_title="ω<sub>x</sub> [rad per unit]", yaxis_title="ω<sub>y</sub>")
        figure.update_yaxes(scaleanchor="x")
    else:
        figure.update_layout(xaxis_title="|ω| [rad per unit]", yaxis_title="contribution")
    figure.update_layout(_layout())
    return figure


def _rounded(values: Tensor) -> list[float]:
    """Four digits: a figure goes to every browser again at each update."""
    return [float(f"{value:.4g}") for value in values.tolist()]


_AXIS = {"gridcolor": "#343a43", "linecolor": "#343a43", "zeroline": False, "automargin": True}
# viser draws a plot first at width 0, for which plotly takes the template's: its own 700 pixels would widen the panel
# for good.
_TEMPLATE = {
    "layout": {
        "width": 240,
        "height": 200,
        "font": {"size": 10, "color": "#c9d1d9"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 8, "r": 8, "t": 24, "b": 48},
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "annotationdefaults": {"font": {"size": 10}},
    }
}


def empty_figure() -> go.Figure:
    """A plot before there is anything to draw."""
    return go.Figure(layout=_layout())


def _layout() -> dict[str, Any]:
    return {"template": _TEMPLATE}
