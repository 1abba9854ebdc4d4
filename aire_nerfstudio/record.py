"""What a run was like: its curves, its events and how its neurons stood at each, in a form a checkpoint can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aire_nerfstudio.adaptation.base import Report
from aire_nerfstudio.adaptation.importance import contribution
from aire_nerfstudio.fields.neurons import NeuronGroup

# Points of a curve, before every second one is dropped; and pictures of the neurons that are kept.
CURVE_POINTS, SNAPSHOTS = 1000, 24
# Kinds of neurons and the colours that viewer and report give them.
KINDS = {"surviving": "#4c8dff", "new": "#2fbf71", "targeted": "#ff6b5e"}


@dataclass(frozen=True)
class LayerSnapshot:
    """A layer's neurons at a moment.

    Attributes:
        contributions: L1 norms of the outgoing columns, ``[n]``.
        births: optimizer step at which each was added, 0: there from the start, ``[n]``.
        is_target: whether it is to go, ``[n]``.
    """

    contributions: Tensor
    births: Tensor
    is_target: Tensor

    @property
    def ranks(self) -> Tensor:
        """Place of each neuron by contribution, 0 the strongest, ``[n]``."""
        return self.contributions.argsort(descending=True).argsort()


@dataclass(frozen=True)
class Snapshot:
    """All layers at a moment.

    Attributes:
        step: optimizer steps done.
        event: what had just happened: ``start``, an event's name, or ``now``.
        layers: input first.
        frequencies: of the input neurons, in radians per unit, ``[n, d]``.
    """

    step: int
    event: str
    layers: tuple[LayerSnapshot, ...]
    frequencies: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain Python values only."""
        layers = [[layer.contributions, layer.births, layer.is_target] for layer in self.layers]
        return {"step": self.step, "event": self.event, "layers": layers, "frequencies": self.frequencies}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Snapshot:
        """What :meth:`to_dict` gave."""
        layers = tuple(LayerSnapshot(*layer) for layer in saved["layers"])
        return cls(int(saved["step"]), str(saved["event"]), layers, saved["frequencies"])


def kinds_of(snapshot: Snapshot, layer: int) -> dict[str, Tensor]:
    """Masks ``[n]`` of a layer's neurons by kind: ``targeted`` wins over ``new``, the others are ``surviving``."""
    neurons = snapshot.layers[layer]
    is_new = (neurons.births > 0) & ~neurons.is_target
    return {"surviving": ~is_new & ~neurons.is_target, "new": is_new, "targeted": neurons.is_target}


def _read(scalars: Sequence[Tensor]) -> list[float]:
    """Scalars of one device."""
    return torch.stack([s.detach().double().reshape(()) for s in scalars]).tolist() if scalars else []


class RunRecord:
    """Curves over the whole run and snapshots at its events.

    Curves are kept at about 1,000 steps whatever the run's length; reading a value from a device waits for it, so that
    most steps read none.

    Args:
        total_steps: of the run.
    """

    def __init__(self, total_steps: int = CURVE_POINTS) -> None:
        self.stride = max(1, math.ceil(total_steps / CURVE_POINTS))
        self.steps: list[int] = []
        self.columns: dict[str, list[float]] = {}
        self.widths: list[list[int]] = []
        self.parameters: list[int] = []
        self.births: list[Tensor] = []
        self.snapshots: list[Snapshot] = []

    def is_due(self, step: int) -> bool:
        """Whether the curves want the values of ``step``."""
        return step % self.stride == 0

    def add(self, step: int, values: Mapping[str, Tensor | float], widths: Sequence[int], parameters: int) -> None:
        """Append a point of the curves.

        Args:
            step: its optimizer step; earlier ones are ignored.
            values: scalars by name.
            widths: of the layers after that step.
            parameters: of the trained field.
        """
        if self.steps and step <= self.steps[-1]:
            return
        # In one go: each value that is read from a GPU by itself waits for it.
        there = {name: value for name, value in values.items() if isinstance(value, Tensor) and value.is_cuda}
        read = dict(zip(there, _read(list(there.values())), strict=True))
        for name, value in values.items():
            column = self.columns.setdefault(name, [math.nan] * len(self.steps))
            column.append(float(read.get(name, value)))
        self.steps.append(step)
        for column in self.columns.values():
            column.extend([math.nan] * (len(self.steps) - len(column)))
        self.widths.append(list(widths))
        self.parameters.append(parameters)
        if len(self.steps) > 2 * CURVE_POINTS:
            self._thin()

    def _thin(self) -> None:
        self.stride *= 2
        keep = [index for index, step in enumerate(self.steps) if step % self.stride == 0]
        self.steps = [self.steps[i] for i in keep]
        self.columns = {name: [column[i] for i in keep] for name, column in self.columns.items()}
        self.widths, self.parameters = [self.widths[i] for i in keep], [self.parameters[i] for i in keep]

    def begin(self, groups: Sequence[NeuronGroup], omega: float) -> None:
        """Take the network's first snapshot; see :meth:`snapshot`."""
        self.births = [torch.zeros(group.width, dtype=torch.long) for group in groups]
        self.snapshots = [self.snapshot(0, "start", groups, {}, omega)]

    def follow(
        self, report: Report, groups: Sequence[NeuronGroup], targets: Mapping[int, Sequence[int]], omega: float
    ) -> None:
        """Keep up with a change of the architecture, just made."""
        for layer, (before, after) in enumerate(zip(report.before, report.after, strict=True)):
            births = self.births[layer]
            gone = report.indices[layer] if report.event == "prune" and report.indices else ()
            if gone:
                keep = torch.ones(before, dtype=torch.bool)
                keep[list(gone)] = False
                births = births[keep]
            if after > len(births):
                births = torch.cat([births, torch.full((after - len(births),), report.step, dtype=torch.long)])
            self.births[layer] = births
        self.snapshots.append(self.snapshot(report.step, report.event, groups, targets, omega))
        if len(self.snapshots) > SNAPSHOTS:
            # The first and the latest say most; of those between, every second goes.
            self.snapshots = [self.snapshots[0], *self.snapshots[1:-2:2], *self.snapshots[-2:]]

    @torch.no_grad()
    def snapshot(
        self,
        step: int,
        event: str,
        groups: Sequence[NeuronGroup],
        targets: Mapping[int, Sequence[int]],
        omega: float,
    ) -> Snapshot:
        """How the neurons stand.

        Args:
            step: optimizer steps done.
            event: see :class:`Snapshot`.
            groups: the layers.
            targets: indices of the neurons that are to go, by layer.
            omega: ``w0`` of the first layer.
        """
        layers = []
        for index, group in enumerate(groups):
            is_target = torch.zeros(group.width, dtype=torch.bool)
            is_target[list(targets.get(index, ()))] = True
            # A variant's own surgery may have said nothing of what it did.
            is_known = index < len(self.births) and len(self.births[index]) == group.width
            births = self.births[index].clone() if is_known else torch.zeros(group.width, dtype=torch.long)
            layers.append(LayerSnapshot(contribution(group).float().cpu().clone(), births, is_target))
        frequencies = (omega * groups[0].weight.parameter).float().cpu().clone()
        return Snapshot(step, event, tuple(layers), frequencies)

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain Python values only."""
        return {
            "stride": self.stride,
            "steps": torch.tensor(self.steps, dtype=torch.long),
            "columns": {name: torch.tensor(column, dtype=torch.float64) for name, column in self.columns.items()},
            "widths": torch.tensor(self.widths, dtype=torch.long),
            "parameters": torch.tensor(self.parameters, dtype=torch.long),
            "births": [births.clone() for births in self.births],
            "snapshots": [shot.to_dict() for shot in self.snapshots],
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> RunRecord:
        """What :meth:`to_dict` gave."""
        record = cls()
        record.stride = int(saved["stride"])
        record.steps, record.parameters = saved["steps"].tolist(), saved["parameters"].tolist()
        record.columns = {name: column.tolist() for name, column in saved["columns"].items()}
        record.widths = saved["widths"].tolist()
        record.births = [births.clone() for births in saved["births"]]
        record.snapshots = [Snapshot.from_dict(shot) for shot in saved["snapshots"]]
        return record
