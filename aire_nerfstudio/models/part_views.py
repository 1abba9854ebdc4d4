"""Views beside the usual ones: strong and weak neurons alone, and the frequencies that drive the network."""

from __future__ import annotations

import threading

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.models.base_model import Model
from torch import Tensor, nn

from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.control import Standing
from aire_nerfstudio.adaptation.importance import contribution, weakest
from aire_nerfstudio.fields.neurons import NeuronGroup
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.models.parts import driving_frequency, parts_of

# Points whose driving frequency is computed at once.
FREQUENCY_POINTS = 1 << 15


class PartViews(Model):
    """Gives an adaptive model the outputs ``important``, ``unimportant`` and ``frequency``, on request."""

    def __init__(self, *args, **kwargs) -> None:
        # Of each thread its own: a render that the viewer interrupts cannot leave its choice to training.
        self._rendering = threading.local()
        super().__init__(*args, **kwargs)

    @property
    def rendered_part(self) -> nn.Module | None:
        """The part of the field that this thread renders at present; None: the whole."""
        return getattr(self._rendering, "part", None)

    # --- of the adaptive model ---------------------------------------------------------------------------------------

    @property
    def evaluated_field(self) -> nn.Module:
        """The field that renders."""
        raise TypeError(f"{type(self).__name__} must define evaluated_field")

    def adaptive_network(self, field: nn.Module) -> SineMLP:
        """The network that adapts."""
        raise TypeError(f"{type(self).__name__} must define adaptive_network")

    def adaptive_groups(self, field: nn.Module) -> list[NeuronGroup]:
        """Its layers, input first."""
        raise TypeError(f"{type(self).__name__} must define adaptive_groups")

    def adaptive_inputs(self, points: Tensor) -> Tensor:
        """Coordinates of the adaptive network, ``[N, d]``, at ``points [N, 3]`` of the world."""
        raise TypeError(f"{type(self).__name__} must define adaptive_inputs")

    def extra_pictures(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a report shows of a rendered view beside its colours, ``[H, W, 3]`` by caption."""
        return {}

    def candidates(self, field: nn.Module) -> dict[int, Tensor]:
        """Which of its neurons would be chosen to go."""
        raise TypeError(f"{type(self).__name__} must define candidates")

    def standing(self) -> Standing:
        """Which neurons are to go."""
        raise TypeError(f"{type(self).__name__} must define standing")

    # -----------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> dict[str, Tensor]:
        """See nerfstudio; with ``shows_parts`` also ``important``, ``unimportant``, ``[H, W, 3]``, and ``frequency``.

        The last is ``[H, W, 1]`` in [0, 1]: the mean input frequency that drives the network there, each weighted by
        what its neuron gives, over the largest there is; 0 where a ray meets nothing.
        """
        self._rendering.part = None
        outputs = super().get_outputs_for_camera_ray_bundle(camera_ray_bundle)
        if not self.config.shows_parts:  # type: ignore[attr-defined]
            return outputs
        whole = self.evaluated_field
        try:
            for name, part in parts_of(whole, self.adaptive_groups, self._weak_neurons(whole)).items():
                self._rendering.part = part
                outputs[name] = super().get_outputs_for_camera_ray_bundle(camera_ray_bundle)["rgb"]
        finally:
            self._rendering.part = None
        outputs["frequency"] = self._frequency_map(camera_ray_bundle, outputs).to(outputs["rgb"])
        return outputs

    def _weak_neurons(self, field: nn.Module) -> dict[int, Tensor]:
        """Those that are to go; before they are chosen, those that would be; else the weakest, for the eye alone."""
        chosen = self.standing().targets
        if chosen:
            return {layer: torch.tensor(indices, dtype=torch.long) for layer, indices in chosen.items()}
        candidates = self.candidates(field)
        if candidates:
            return candidates
        config: AireConfig = self.config.adaptation  # type: ignore[attr-defined]
        groups = self.adaptive_groups(field)
        layers = [layer for layer in config.prune_layers if layer < len(groups)]
        return {
            layer: weakest(contribution(groups[layer]), round(config.prune_fraction * groups[layer].width)).cpu()
            for layer in layers
        }

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
