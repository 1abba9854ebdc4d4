"""The results of ``aire-bench`` as JSON, a Markdown table and a chart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aire_nerfstudio.bench.cases import Case
from aire_nerfstudio.bench.timing import Timed


class Result(NamedTuple):
    """One case, measured.

    Attributes:
        case: what.
        times: of each way that ran.
        megabytes: that each of them takes at its highest, None where unknown.
        failures: why each of the others did not run.
    """

    case: Case
    times: dict[str, Timed]
    megabytes: dict[str, float | None]
    failures: dict[str, str]


def table(results: Sequence[Result], machine: dict[str, Any]) -> str:
    """Medians, spans, ratios to the baseline, and the share of the machine's own rate of matrix products."""
    lines = [
        "# aire-bench",
        "",
        " | ".join(f"{name} {value}" for name, value in machine.items()),
        "",
        "Medians of repetitions in turn (fastest to slowest); times faster than the first way of the row's case; share "
        "of the rate at which this machine multiplies large matrices; highest memory over what was in use before.",
        "",
        "| case | width | points | way | ms | faster | share of peak | MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case, times, megabytes, failures in results:
        first = times.get(next(iter(case.ways), ""))
        for name, timed in times.items():
            low, high = timed.span
            share = case.flop / timed.median / 1e6 / machine["GFLOP/s"] if case.flop else None
            span = f"{_short(timed.median)} ({_short(low)} to {_short(high)})"
            cells = [
                case.name, str(case.width), f"{case.rows:,}", name, span,
                "" if first is None else f"{first.median / timed.median:.2f}",
                "" if share is None else f"{100 * share:.0f} %", _shown(megabytes[name]),
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
        for name, reason in failures.items():
            cells = [
                case.name,
                str(case.width),
                f"{case.rows:,}",
                name,
                f"did not run: {_one_cell(reason)}",
                "",
                "",
                "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write(results: Sequence[Result], machine: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``bench.json``, ``.md`` and ``.png``; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        {"case": case.name, "width": case.width, "points": case.rows, "flop": case.flop,
         "ms": {name: list(timed.milliseconds) for name, timed in times.items()}, "MiB": megabytes,
         "failures": failures}
        for case, times, megabytes, failures in results
    ]  # fmt: skip
    made = [folder / f"bench.{suffix}" for suffix in ("json", "md", "png")]
    made[0].write_text(json.dumps({"machine": machine, "results": entries}, indent=1))
    made[1].write_text(table(results, machine))
    _draw(results, made[2])
    return made


def _shown(megabytes: float | None) -> str:
    return "" if megabytes is None else f"{megabytes:,.0f}"


def _short(milliseconds: float) -> str:
    """Three digits at least."""
    return f"{milliseconds:.{1 if milliseconds >= 10 else 2 if milliseconds >= 1 else 3}f}"


def _one_cell(text: str) -> str:
    return text.replace("|", "/")


def _draw(results: Sequence[Result], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Ratios need the first way.
    results = [result for result in results if next(iter(result.case.ways), "") in result.times]
    lines = sum(1 + len(result.times) for result in results)
    figure, axes = plt.subplots(figsize=(8, 1.0 + 0.14 * lines), layout="constrained")
    names = list(dict.fromkeys(name for result in results for name in list(result.times)[1:]))
    # A colour for each way, darker the less exact its products are.
    kinds = list(dict.fromkeys(_without_precision(name) for name in names))
    hues = dict(zip(kinds, plt.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]
    colours = {name: _darker(hues[_without_precision(name)], name) for name in names}
    at, middles = 0.0, []
    for result in results:
        base, others = next(iter(result.times.values())).median, list(result.times.items())[1:]
        middles.append(at + (len(others) - 1) / 2)
        for name, timed in others:
            bars = axes.barh(at, base / timed.median, 1.0, color=colours[name])
            axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
            at += 1
        at += 1
    for name in names:
        axes.barh(0, 0, color=colours[name], label=name)
    axes.axvline(1, color="black", lw=0.8)
    axes.set_yticks(middles, [_label(result.case) for result in results])
    axes.set_ylim(-1, at)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set(xlabel="times faster than eager PyTorch (surface: double backward; flow: autograd)")
    figure.legend(fontsize=8, loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _without_precision(name: str) -> str:
    return name.removesuffix(", high").removesuffix(", medium")


def _darker(hue: tuple[float, float, float], name: str) -> tuple[float, ...]:
    share = 0.85 if name.endswith(", medium") else 0.45 if name.endswith(", high") else 0.0
    light = [1 - 0.55 * (1 - channel) for channel in hue]
    return tuple((1 - share) * a + share * 0.8 * b for a, b in zip(light, hue, strict=True))


def _label(case: Case) -> str:
    if case.name in ("marching", "compositing"):
        return f"{case.name}, {case.rows:,} rays"
    return f"{case.name}, {case.width} wide, {case.rows:,}"
