"""What AIRe remembers between steps; plain data in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aire_nerfstudio.adaptation.schedule import Schedule


@dataclass
class AireState:
    """Where a run stands. ``targets[i]`` are the chosen neurons of layer ``layers[i]``.

    ``caps[i]`` are their contributions when chosen; ``saliency`` are running scores, one ``[n]`` a layer.
    """

    schedule: Schedule
    is_densified: bool = False
    is_decaying: bool = False
    is_pruned: bool = False
    layers: tuple[int, ...] = ()
    targets: list[Tensor] = field(default_factory=list)
    caps: list[Tensor] = field(default_factory=list)
    saliency: list[Tensor] = field(default_factory=list)
    _on_device: tuple[list[Tensor], torch.device, dict[int, Tensor]] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def targets_on(self, device: torch.device) -> dict[int, Tensor]:
        """Chosen neurons of each layer, on ``device``: copied once a choice, since a copy waits for the device."""
        there = self._on_device
        if there is None or there[0] is not self.targets or there[1] != device:
            copied = {layer: chosen.to(device) for layer, chosen in zip(self.layers, self.targets, strict=True)}
            there = self._on_device = (self.targets, device, copied)
        return there[2]

    @property
    def removal_at(self) -> int | None:
        """The step before which the chosen neurons go, if that is still to come."""
        return None if self.is_pruned else self.schedule.prune_at

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain Python values only."""
        return {
            "schedule": {
                "total": self.schedule.total,
                "densify_at": self.schedule.densify_at,
                "decay_start": self.schedule.decay_start,
                "prune_at": self.schedule.prune_at,
            },
            "is_densified": self.is_densified,
            "is_decaying": self.is_decaying,
            "is_pruned": self.is_pruned,
            "layers": list(self.layers),
            "targets": [t.cpu() for t in self.targets],
            "caps": [t.cpu() for t in self.caps],
            "saliency": [t.cpu() for t in self.saliency],
        }

    def load_dict(self, saved: dict[str, Any]) -> None:
        """Restore what :meth:`to_dict` gave; the saved schedule replaces the configured one."""
        self.schedule = Schedule(**saved["schedule"])
        self.is_densified = bool(saved["is_densified"])
        self.is_decaying = bool(saved["is_decaying"])
        self.is_pruned = bool(saved["is_pruned"])
        self.layers = tuple(saved["layers"])
        self.targets = [t.clone() for t in saved["targets"]]
        self.caps = [t.clone() for t in saved["caps"]]
        self.saliency = [t.clone() for t in saved["saliency"]]
