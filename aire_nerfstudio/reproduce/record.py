"""What the figures need from inside a fit: reconstructions and contributions around its events."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from aire_nerfstudio.adaptation.base import Report
from aire_nerfstudio.adaptation.importance import contribution
from aire_nerfstudio.analysis.split import split_outputs
from aire_nerfstudio.data.picture import Picture
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.reproduce.arrays import save_arrays
from aire_nerfstudio.reproduce.evaluate import reconstruction, whole_picture


class Recorder:
    """Watches one fit; see :func:`~aire_nerfstudio.reproduce.image_fit.fit_image`.

    Args:
        picture: the truth, kept beside what was recorded.
        device: of the fit.
    """

    def __init__(self, picture: Picture, device: str) -> None:
        self._picture, self._device, self._n_new = picture, device, 0
        self.arrays: dict[str, np.ndarray] = {"truth": picture.floats().numpy()}

    def before(self, network: SineMLP, event: str, layer: int, count: int) -> None:
        """Just before an event (``decay`` or ``prune``) on ``count`` neurons of a sine layer."""
        self.arrays[f"contributions_{event}"] = contribution(network.neuron_groups()[0]).detach().cpu().numpy()
        self.arrays[f"new_{event}"] = np.array(self._n_new)
        self.arrays[f"picture_before_{event}"] = self._picture_of(network)
        if count:
            important, rest = self._parts(network, layer, count)
            self.arrays[f"important_before_{event}"] = important
            self.arrays[f"unimportant_before_{event}"] = rest

    def after(self, network: SineMLP, reports: Sequence[Report]) -> None:
        """Just after the changes of a step."""
        for report in reports:
            if report.event == "densify":
                self.arrays["contributions_densify"] = contribution(network.neuron_groups()[0]).detach().cpu().numpy()
                self._n_new = report.counts[0]
                self.arrays["new_densify"] = np.array(self._n_new)
            elif report.event == "prune":
                self.arrays["picture_after_prune"] = self._picture_of(network)

    def end(self, network: SineMLP) -> None:
        """After the last step."""
        self.arrays["picture_end"] = self._picture_of(network)

    def save(self, path: Path) -> None:
        """Write an ``.npz``."""
        save_arrays(path, self.arrays)

    def _picture_of(self, network: SineMLP) -> np.ndarray:
        return reconstruction(network, self._picture, self._device).numpy().astype(np.float16)

    def _parts(self, network: SineMLP, layer: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        def both(points: torch.Tensor) -> torch.Tensor:
            return torch.cat(split_outputs(network, points, layer, count), dim=-1)

        important, rest = whole_picture(self._picture, self._device, both).chunk(2, dim=-1)
        return important.numpy().astype(np.float16), rest.numpy().astype(np.float16)
