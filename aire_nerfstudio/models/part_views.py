"""Views beside the usual ones: strong and weak neurons alone, and the frequencies that drive the network."""

from __future__ import annotations

import threading
from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor, nn

from aire_nerfstudio.models.adaptation_run import AdaptationRun
from aire_nerfstudio.models.parts import driving_frequency, parts_of
from aire_nerfstudio.models.task import AdaptiveTask

# Points whose driving frequency is computed at once.
FREQUENCY_POINTS = 1 << 15


class PartViews(AdaptiveTask):
    """Gives an adaptive model the outputs ``important``, ``unimportant`` and ``frequency``, on request."""

    adaptation: AdaptationRun
    reported: tuple[str, ...] = ("shows_parts",)
    """Settings that a report switches on for its first view."""

    def __init__(self, *args, **kwargs) -> None:
        # Of each thread its own: a render that the viewer interrupts cannot leave its choice to training.
        self._rendering = threading.local()
        super().__init__(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Without what a thread renders at present."""
        return {name: value for name, value in self.__dict__.items() if name != "_rendering"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._rendering = threading.local()

    @property
    def rendered_part(self) -> nn.Module | None:
        """The part of the field that this thread renders at present; None: the whole."""
        return getattr(self._rendering, "part", None)

    @property
    def evaluated_field(self) -> nn.Module:
        """The field that renders: the live one in training, its average otherwise."""
        if self.training:
            return self.field
        if self.rendered_part is not None:
            return self.rendered_part
        return self.field if self.field_average is None else self.field_average

    @torch.no_grad()
    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> dict[str, Tensor]:
        """See nerfstudio; with ``shows_parts`` also ``important``, ``unimportant``, ``[H, W, 3]``, and ``frequency``.

        The last is ``[H, W, 1]`` in [0, 1]: the mean input frequency that drives the network there, each weighted by
        what its neuron gives, over the largest there is; 0 where a ray meets nothing.
        """
        self._rendering.part = None
        outputs = super().get_outputs_for_camera_ray_bundle(camera_ray_bundle)
        if not self.config.shows_parts:
            return outputs
        whole = self.evaluated_field
        try:
            weak = self.adaptation.weak_neurons(self.adaptive_groups(whole))
            for name, part in parts_of(whole, self.adaptive_groups, weak).items():
                self._rendering.part = part
                outputs[name] = super().get_outputs_for_camera_ray_bundle(camera_ray_bundle)["rgb"]
        finally:
            self._rendering.part = None
        outputs["frequency"] = self._frequency_map(camera_ray_bundle, outputs).to(outputs["rgb"])
        return outputs

    def _frequency_map(self, rays: RayBundle, outputs: dict[str, Tensor]) -> Tensor:
        device, shape = self.device, outputs["depth"].shape
        is_met = outputs["accumulation"].flatten().to(device) > 0.5
        depth = outputs["depth"].reshape(-1, 1).to(device)
        points = rays.origins.reshape(-1, 3).to(device) + depth * rays.directions.reshape(-1, 3).to(device)
        network = self.adaptive_network(self.evaluated_field)
        values = points.new_zeros(len(points))
        if is_met.any():
            parts = self.adaptive_inputs(points[is_met]).split(FREQUENCY_POINTS)
            values[is_met] = torch.cat([driving_frequency(network, part) for part in parts])
        return values.view(shape)
