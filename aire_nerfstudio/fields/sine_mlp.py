"""A sine MLP whose widths may change while it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from aire_nerfstudio.fields.neurons import NeuronGroup, Slot
from aire_nerfstudio.fields.sine_layers import ACTIVATIONS, Activation, activate, initialise
from aire_nerfstudio.ops.sine_network import mean_square_step, sine_network
from aire_nerfstudio.shapes import AnyChannels, AnyPoints, AnyRows, Channels, Points, Scalar

# Where torch keeps a module's.
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Affine(nn.Module):
    """``x -> x W^T + b`` with its sizes read from the weight, so that they never go stale when neurons come and go.

    Starts as ``torch.nn.Linear`` does. Shapes: ``weight [n_out, n_in]``, ``bias [n_out]``.
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        linear = nn.Linear(n_in, n_out)
        self.weight = nn.Parameter(linear.weight.detach())
        self.bias = nn.Parameter(linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """``[..., n_in] -> [..., n_out]``."""
        return nn.functional.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Current sizes."""
        return f"{self.weight.shape[1]} -> {self.weight.shape[0]}"


class Evaluator(Protocol):
    """Something else that computes what :func:`~aire_nerfstudio.ops.sine_network.reference` defines; no gradients."""

    def __call__(
        self, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation,
        omegas: Sequence[float], detach_finer_scale: bool = False, /,
    ) -> Tensor:  # fmt: skip
        """``[..., d] -> [..., out]``."""


class SineMLP(nn.Module):
    """``x -> sine layers of widths [n_1, ..., n_k] -> affine``.

    Args:
        in_features: coordinates per point, ``d``.
        widths: widths of the sine layers, each at least 1.
        out_features: output channels.
        activation: ``siren``, ``finer`` or ``spder``.
        first_omega: ``w0`` of the first layer.
        hidden_omega: ``w0`` of the other sine layers; also scales the output layer's initialisation.
        first_bias_scale: if given, first biases are drawn from ``U(-k, k)`` (FINER).
        detach_finer_scale: FINER's published backward; wrong wherever the loss takes d/dx.

    Attributes:
        evaluator: what evaluates the network in evaluation mode without gradients; None: this package's ops.

    Raises:
        ValueError: a width below 1, no width, or an unknown activation.
    """

    def __init__(
        self,
        in_features: int,
        widths: Sequence[int],
        out_features: int,
        activation: Activation = "siren",
        first_omega: float = 30.0,
        hidden_omega: float = 30.0,
        first_bias_scale: float | None = None,
        detach_finer_scale: bool = False,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths {list(widths)} must be a non-empty list of integers of at least 1")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
        if first_omega <= 0 or hidden_omega <= 0:
            raise ValueError(f"omegas must be positive; got first {first_omega}, hidden {hidden_omega}")
        self.activation: Activation = activation
        self.first_omega = first_omega
        self.hidden_omega = hidden_omega
        self.detach_finer_scale = detach_finer_scale
        self.evaluator: Evaluator | None = None
        self.layers = nn.ModuleList(
            Affine(n_in, n_out) for n_in, n_out in pairwise((in_features, *widths, out_features))
        )
        for index, layer in enumerate(self.affines()):
            is_first = index == 0
            initialise(layer.weight, first_omega if is_first else hidden_omega, is_first)
            if is_first and first_bias_scale is not None:
                nn.init.uniform_(layer.bias, -first_bias_scale, first_bias_scale)

    def affines(self) -> list[Affine]:
        """The affine maps, input first, the output's last."""
        return [cast(Affine, layer) for layer in self.layers]

    @property
    def widths(self) -> list[int]:
        """Current widths of the sine layers."""
        return [layer.weight.shape[0] for layer in self.affines()[:-1]]

    @property
    def in_features(self) -> int:
        """Coordinates per point."""
        return self.affines()[0].weight.shape[1]

    @property
    def out_features(self) -> int:
        """Output channels."""
        return self.affines()[-1].weight.shape[0]

    @property
    def num_parameters(self) -> int:
        """Number of scalars, weights and biases together."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: AnyPoints) -> AnyChannels:
        """Evaluate at ``x`` of shape ``[..., d]`` (each coordinate in [-1, 1]); returns ``[..., out]``."""
        if self.has_hooks():
            return self.layers[-1](self.hidden(x))
        return self._evaluate(x, None)

    def _evaluate(self, x: Tensor, outputs: int | None) -> Tensor:
        if self.evaluator is None or self.training or torch.is_grad_enabled():
            return sine_network(x, *self.for_ops(outputs))
        # The whole network: its first output alone would be another one to it.
        y = self.evaluator(x, *self.for_ops())
        return y if outputs is None else y[..., :outputs]

    def first_output(self, x: AnyPoints) -> AnyRows:
        """The first output alone, ``[...]``, at ``x [..., d]``."""
        if self.has_hooks():
            return self(x)[..., 0]
        return self._evaluate(x, 1).squeeze(-1)

    def mean_square_step(self, x: Points, target: Channels) -> Scalar:
        """``((self(x) - target) ** 2).mean()``, ``[]``, faster where one ``backward`` of it is all that follows.

        Args:
            x: ``[N, d]``.
            target: ``[N, out]``.
        """
        if self.has_hooks():
            return (self(x) - target).square().mean()
        return mean_square_step(x, target, *self.for_ops())

    def has_hooks(self) -> bool:
        """Whether someone waits for the layers to be called, such as torch.nn.utils.prune."""
        return any(getattr(layer, kind) for layer in self.layers for kind in HOOKS)

    def is_watched(self) -> bool:
        """Whether someone waits for the network or its layers to be called, or for any module of a process."""
        everywhere = (getattr(torch.nn.modules.module, f"_global{kind}") for kind in HOOKS)
        is_own = type(self).forward is SineMLP.forward
        return self.has_hooks() or not is_own or any(getattr(self, kind) for kind in HOOKS) or any(everywhere)

    def for_ops(self, outputs: int | None = None) -> tuple[list[Tensor], list[Tensor], Activation, list[float], bool]:
        """Weights, biases, activation, ``w0`` of each sine layer, FINER's switch: as the functions of ``ops`` take.

        Args:
            outputs: the first so many of the network's outputs alone; None: all.
        """
        weights: list[Tensor] = [layer.weight for layer in self.affines()]
        biases: list[Tensor] = [layer.bias for layer in self.affines()]
        if outputs is not None:
            weights[-1], biases[-1] = weights[-1][:outputs], biases[-1][:outputs]
        return weights, biases, self.activation, [omega for _, omega in self.sine_layers()], self.detach_finer_scale

    def hidden(self, x: Tensor) -> Tensor:
        """Output of the last sine layer, ``[..., n_k]``, at ``x [..., d]``."""
        for h in self._outputs(x):
            x = h
        return x

    @torch.no_grad()
    def layer_outputs(self, x: Tensor) -> list[Tensor]:
        """Outputs of every sine layer, ``[[..., n_1], ..., [..., n_k]]``, at ``x [..., d]``; without gradients."""
        return list(self._outputs(x))

    def _outputs(self, x: Tensor) -> Iterator[Tensor]:
        for layer, omega in self.sine_layers():
            x = activate(layer(x), self.activation, omega, self.detach_finer_scale)
            yield x

    def sine_layers(self) -> Iterator[tuple[Affine, float]]:
        """Each sine layer's affine map and ``w0``, input first."""
        for index, layer in enumerate(self.affines()[:-1]):
            yield layer, self.first_omega if index == 0 else self.hidden_omega

    def neuron_groups(self, prefix: str = "layer") -> list[NeuronGroup]:
        """One group a sine layer, input neurons first; names are ``{prefix}.{i}``."""
        return [
            NeuronGroup(
                name=f"{prefix}.{index}",
                weight=Slot(here.weight, 0),
                bias=Slot(here.bias, 0),
                outgoing=Slot(after.weight, 1),
                next_bias=after.bias,
            )
            for index, (here, after) in enumerate(pairwise(self.affines()))
        ]


def widths_in(state_dict: Mapping[str, Tensor], prefix: str = "") -> list[int]:
    """Widths of the sine layers of the :class:`SineMLP` saved under ``prefix``, read from its shapes alone.

    Raises:
        KeyError: no such network in ``state_dict``.
    """
    shapes: list[int] = []
    while (key := f"{prefix}layers.{len(shapes)}.weight") in state_dict:
        shapes.append(state_dict[key].shape[0])
    if not shapes:
        raise KeyError(f"no sine network under {prefix!r} in the state dict")
    return shapes[:-1]
