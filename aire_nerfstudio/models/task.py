"""What a task (picture, NeRF, surface, flow) gives of itself, so that its network can be adapted and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nerfstudio.models.base_model import Model
from torch import Tensor, nn

from aire_nerfstudio.adaptation.base import Probe, Report
from aire_nerfstudio.adaptation.control import Refused
from aire_nerfstudio.fields.neurons import NeuronGroup
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.models.adaptive_config import AdaptiveModelConfig


class AdaptiveTask(Model):
    """The hooks of a task; what raises ``TypeError`` here every task has to give."""

    config: AdaptiveModelConfig
    field: nn.Module
    field_average: nn.Module | None
    network_name = "network"
    """What its layers are called in messages."""
    has_psnr = True
    """Whether the task's batches have a PSNR."""

    def adaptive_network(self, field: nn.Module) -> SineMLP:
        """The network that adapts, of ``field`` (the live one or its average)."""
        raise TypeError(f"{type(self).__name__} must define adaptive_network")

    def adaptive_groups(self, field: nn.Module) -> list[NeuronGroup]:
        """Its layers, input first."""
        return self.adaptive_network(field).neuron_groups(self.network_name)

    def adaptive_inputs(self, points: Tensor) -> Tensor:
        """Coordinates of the adaptive network, ``[N, d]``, at ``points [N, 3]`` of the world."""
        raise TypeError(f"{type(self).__name__} must define adaptive_inputs")

    def steps_per_epoch(self) -> int:
        """Optimizer steps that make an epoch of this task."""
        raise TypeError(f"{type(self).__name__} must define steps_per_epoch")

    def probe(self) -> Probe:
        """What the strategy may ask of the live field and the training data."""
        raise TypeError(f"{type(self).__name__} must define probe")

    def count_parameters(self) -> int:
        """Scalars in the trained field, whatever of it adapts."""
        return sum(parameter.numel() for parameter in self.field.parameters())

    def fixed_settings(self) -> dict[str, Any]:
        """Settings that change the function but no shape; a checkpoint of others is refused."""
        network = self.adaptive_network(self.field)
        return {
            "activation": network.activation,
            "first_omega": network.first_omega,
            "hidden_omega": network.hidden_omega,
        }

    def without_data(self) -> dict[str, Any]:
        """Metadata, plain values, with which the model is made where its data are not at hand; empty: it needs them."""
        return {}

    def on_change(self, report: Report) -> None:
        """Called after each change of the architecture."""

    def export(self, stem: Path) -> Path:
        """Write what the network stands for at present.

        Args:
            stem: the file, without its suffix.

        Returns:
            The file.

        Raises:
            Refused: the task has no such thing.
        """
        raise Refused("there is no file for this task but its checkpoint")

    def extra_pictures(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a report shows of a rendered view beside its colours, ``[H, W, 3]`` by caption."""
        return {}
