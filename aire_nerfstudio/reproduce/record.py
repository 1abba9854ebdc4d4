"""What the figures need from inside a fit: reconstructions and contributions around its events."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from aire_nerfstudio.adaptation.base import Report
from aire_nerfstudio.adaptation.importance import contribution
from aire_nerfstudio.analysis.split import split_outputs
from aire_nerfstudio.data.picture import Picture, pixel_centres
from aire_nerfstudio.fields.sine_mlp import SineMLP


class Recorder:
    """Watches one fit; see :func:`~aire_nerfstudio.reproduce.image_fit.fit_image`.

    Args:
        picture: the truth, kept beside what was recorded.
        device: of the fit.
    """

    def __init__(self, picture: Picture, device: str) -> None:
        self._picture, self._device, self._n_new = picture, device, 0
        self.arrays: dict[str, np.ndarray] = {"truth": picture.floats().numpy()}

    def before(self, network: SineMLP, event: str, count: int) -> None:
        """Just before an event (``decay`` or ``prune``) on ``count`` neurons of the input layer."""
        self.arrays[f"contributions_{event}"] = contribution(network.neuron_groups()[0]).detach().cpu().numpy()
        self.arrays[f"new_{event}"] = np.array(self._n_new)
        self.arrays[f"picture_before_{event}"] = self._picture_of(network)
        if count:
            important, rest = self._parts(network, count)
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
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        with unfinished.open("wb") as file:
            np.savez_compressed(file, **self.arrays)  # type: ignore[arg-type]
        unfinished.replace(path)

    @torch.no_grad()
    def _picture_of(self, network: SineMLP) -> np.ndarray:
        return np.concatenate([self._shape(network(points)) for points in self._points()]).reshape(self._size())

    def _parts(self, network: SineMLP, count: int) -> tuple[np.ndarray, np.ndarray]:
        parts = [split_outputs(network, points, 0, count) for points in self._points()]
        first, second = (np.concatenate([self._shape(p[i]) for p in parts]).reshape(self._size()) for i in (0, 1))
        return first, second

    def _points(self):
        picture = self._picture
        index = torch.arange(picture.height * picture.width)
        for part in index.split(1 << 16):
            yield pixel_centres(part, picture.height, picture.width).to(self._device)

    @staticmethod
    def _shape(values: torch.Tensor) -> np.ndarray:
        return (0.5 * (values + 1)).clamp(0, 1).cpu().numpy().astype(np.float16)

    def _size(self) -> tuple[int, int, int]:
        return self._picture.height, self._picture.width, self._picture.channels
