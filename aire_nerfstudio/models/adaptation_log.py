"""What an adaptation did: events, curves and snapshots, kept for checkpoints and told as they come."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import nerfstudio.configs.base_config  # noqa: F401 - its writer and this import each other, in this order alone
import torch
from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE
from rich.table import Table

from aire_nerfstudio import distributed
from aire_nerfstudio.adaptation.base import PlannedEvent, Report, widths
from aire_nerfstudio.adaptation.budget import count_parameters
from aire_nerfstudio.adaptation.layers import ends
from aire_nerfstudio.fields.neurons import NeuronGroup
from aire_nerfstudio.models.removal_check import RemovalCheck
from aire_nerfstudio.models.task import AdaptiveTask
from aire_nerfstudio.notices import warn
from aire_nerfstudio.record import RunRecord, Snapshot

# The event of a training that went back to its last good state.
RETURN = "return"
Targets = Mapping[int, Sequence[int]]


class AdaptationLog:
    """Of one run, earlier processes included.

    Args:
        task: whose network adapts.
    """

    def __init__(self, task: AdaptiveTask) -> None:
        self._task = task
        self.record = RunRecord()
        """Curves and snapshots."""
        self.history: list[dict[str, Any]] = []
        """Events, as plain data."""
        self.initial_parameters = task.count_parameters()
        """Of the trained field when the run began."""
        self.steps_per_iteration = 1
        """What nerfstudio counts its own curves in."""

    @property
    def _groups(self) -> list[NeuronGroup]:
        return self._task.adaptive_groups(self._task.field)

    @property
    def _first_omega(self) -> float:
        return self._task.adaptive_network(self._task.field).first_omega

    def begin(self, total_steps: int) -> None:
        """Take the first snapshot of a run of so many steps."""
        self.record = RunRecord(total_steps)
        self.record.begin(self._groups, self._first_omega)

    def snapshot(self, step: int, targets: Targets) -> Snapshot:
        """How the neurons of the live network stand after ``step``."""
        return self.record.snapshot(step, "now", self._groups, targets, self._first_omega)

    # --- as it happens ----------------------------------------------------------------------------------------------

    def print_plan(self, begins_at: int, plan: Sequence[PlannedEvent], total_steps: int) -> None:
        """Draw the table of what is to come."""
        task = self._task
        table = Table(title=f"{type(task).__name__}, variant {task.config.variant}", title_justify="left")
        for column in ("step", "event", "widths after", "parameters after"):
            table.add_column(column, justify="right" if column in ("step", "parameters after") else "left")
        table.add_row(str(begins_at), "start", str(list(widths(self._groups))), f"{task.count_parameters():,}")
        for planned in plan:
            known = planned.widths
            after = ("", "") if known is None else (str(list(known)), f"{self._parameters_with(known):,}")
            table.add_row(f"{planned.step:,}", planned.event, *after)
        table.add_row(f"{total_steps:,}", "end", "", "")
        CONSOLE.print(table)

    def add_change(self, report: Report, targets: Targets) -> None:
        """Keep and tell a change of the architecture, just made; ``targets``: the neurons that are to go after it."""
        self._add(report)
        self.record.follow(report, self._groups, targets, self._first_omega)

    def _add(self, report: Report) -> None:
        # Of several changes before one step each has its own.
        count = self._parameters_with(report.after)
        change = 100 * (count / self.initial_parameters - 1)
        self.history.append(
            {
                "step": report.step,
                "event": report.event,
                "counts": list(report.counts),
                "before": list(report.before),
                "after": list(report.after),
                "parameters": count,
                "by_hand": report.by_hand,
            }
        )
        what = f"{report.event} by hand" if report.by_hand else report.event
        CONSOLE.log(
            f"step {report.step:,}: {what} {list(report.counts)} | widths {list(report.before)} -> "
            f"{list(report.after)} | {count:,} parameters ({change:+.2f} %)"
        )
        iteration = report.step // self.steps_per_iteration
        writer.put_scalar(name=f"Adaptation/{report.event}", scalar=sum(report.counts), step=iteration)
        self.write_sizes(iteration)

    def _parameters_with(self, adapted: Sequence[int]) -> int:
        """Parameters of the trained field where the adaptive network has these widths."""
        groups = self._groups
        n_in, n_out = ends(groups)
        others = self._task.count_parameters() - count_parameters(n_in, widths(groups), n_out)
        return others + count_parameters(n_in, adapted, n_out)

    def add_event(self, step: int, event: str, by_hand: bool = False) -> None:
        """Keep and tell an event of the training that changes no width."""
        now = widths(self._groups)
        self._add(Report(step, event, (0,) * len(now), now, now, by_hand=by_hand))

    def write_sizes(self, iteration: int) -> None:
        """Parameters and widths to nerfstudio's writer: TensorBoard, wandb, comet."""
        writer.put_scalar(name="Adaptation/parameters", scalar=self._task.count_parameters(), step=iteration)
        for index, group in enumerate(self._groups):
            writer.put_scalar(name=f"Adaptation/width {index}", scalar=group.width, step=iteration)

    def note(self, step: int, losses: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Keep what the step gave for the curves.

        Args:
            step: the optimizer step.
            losses: of the batch, by name; all but the adaptation's penalty add up to the curve ``loss``.
            metrics: of the batch, by name.
        """
        if not self.record.is_due(step):
            return
        given = {name: torch.as_tensor(value).detach() for name, value in {**losses, **metrics}.items()}
        loss = torch.stack([given[name] for name in losses if name != "adaptation_loss"]).sum()
        scalars = {"loss": loss, **{name: value for name, value in given.items() if value.numel() == 1}}
        if distributed.count() > 1:
            scalars = {name: value.float().clone() for name, value in scalars.items()}
            distributed.average(list(scalars.values()))
        self.record.add(step, scalars, widths(self._groups), self._task.count_parameters())

    # --- whether a removal is within theorem 2 ----------------------------------------------------------------------

    def expect_removal(self, step: int, targets: Targets) -> RemovalCheck:
        """Say what theorem 2 allows a removal of ``targets`` to change, before it is done."""
        check = RemovalCheck(self._task.adaptive_network(self._task.field), targets)
        CONSOLE.log(
            f"step {step:,}: by theorem 2 the removal changes no output of the network by more than {check.bound:.3g}"
        )
        return check

    def compare_removal(self, check: RemovalCheck, step: int) -> None:
        """Say what the removal did change, and keep it beside the event."""
        effect = check.effect(self._task.adaptive_network(self._task.field))
        for event in self.history:
            if event["event"] == "prune" and event["step"] == step:
                event.update(effect=effect, bound=check.bound)
        if check.is_within(effect):
            CONSOLE.log(f"step {step:,}: it changed them by at most {effect:.3g}")
        else:
            warn(
                f"step {step:,}: the removal changed an output by {effect:.3g}, more than theorem 2 "
                f"allows ({check.bound:.3g}): the weights or this device's arithmetic are not sound"
            )

    # --- in a checkpoint --------------------------------------------------------------------------------------------

    @property
    def changes_by_hand(self) -> int:
        """How many times a person changed the architecture or the schedule."""
        return sum(bool(event.get("by_hand")) for event in self.history)

    @property
    def has_returned(self) -> bool:
        """Whether training went back once to its last good state."""
        return any(event["event"] == RETURN for event in self.history)

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain Python values only."""
        return {
            "history": copy.deepcopy(self.history),
            "initial_parameters": self.initial_parameters,
            "parameters": self._task.count_parameters(),
            "record": self.record.to_dict(),
        }

    def load_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what :meth:`to_dict` gave."""
        self.history = copy.deepcopy(saved["history"])
        self.initial_parameters = int(saved["initial_parameters"])
        if "record" in saved:  # earlier releases kept none
            self.record = RunRecord.from_dict(saved["record"])
