"""An average of a network's weights beside its training, as ``ns-train`` keeps one and evaluates it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from aire_nerfstudio.adaptation.base import Report
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.fields.weight_average import WeightAverage
from aire_nerfstudio.reproduce.training import Watcher

# Of ns-train's surfaces and flows.
DECAY = 0.95


class Averaged(Watcher):
    """Follows a network; begins anew where its neurons change.

    Args:
        live: the network that is trained.
        total: steps of the training.

    Attributes:
        network: its average, without gradients.
    """

    def __init__(self, live: SineMLP, total: int) -> None:
        self._live, self._average = live, WeightAverage(DECAY, None)
        self._average.fit(total)
        self._begin()

    def after(self, reports: Sequence[Report]) -> None:
        """The old average has other neurons."""
        self._begin()

    def stepped(self, step: int) -> None:
        """Follow."""
        self._average.update(self.network, self._live, step)

    def _begin(self) -> None:
        self.network = copy.deepcopy(self._live).requires_grad_(False)
