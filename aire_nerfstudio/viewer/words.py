"""The panel's lines of text."""

from __future__ import annotations

from aire_nerfstudio.adaptation.aire_config import BYTES_PER_PARAMETER
from aire_nerfstudio.adaptation.control import Status
from aire_nerfstudio.record import RunRecord, Snapshot


def stage_line(status: Status, step: int, clock: int, is_frozen: bool) -> str:
    """The stages in a row, the present one bold, and what comes when."""
    if not status.spans:
        return f"Step {step:,}. This variant has no schedule."
    now = status.span_at(clock)
    names = " → ".join(f"**{span.name}**" if span is now else span.name for span in status.spans)
    following = next((span for span in status.spans if span.start > clock), None)
    then = "" if following is None else f" · {following.name} at {following.start + step - clock:,}"
    frozen = " · **frozen**" if is_frozen else ""
    return f"{names}\n\nStep {step:,} of {status.spans[-1].end:,}{then}{frozen}"


def progress_percent(status: Status, clock: int) -> float:
    """How much of the schedule is over, in [0, 100]."""
    if not status.spans:
        return 0.0
    return min(100.0, 100 * clock / status.spans[-1].end)


def size_table(snapshot: Snapshot, record: RunRecord, status: Status, before: int, now: int) -> str:
    """Widths, parameters and bytes, at the start and now."""
    start = record.snapshots[0].layers if record.snapshots else snapshot.layers
    change = 100 * (now / before - 1)
    line = f"**{now:,}** parameters, {now * BYTES_PER_PARAMETER / 1000:,.0f} kB; at first {before:,} ({change:+.1f} %)"
    rows = [line, "", "| layer | first | now | new | to go |", "|---|---|---|---|---|"]
    for index, (old, layer) in enumerate(zip(start, snapshot.layers, strict=True)):
        new, going = int((layer.births > 0).sum()), len(status.targets.get(index, ()))
        rows.append(f"| {index} | {len(old.births)} | {len(layer.births)} | {new} | {going} |")
    return "\n".join(rows)
