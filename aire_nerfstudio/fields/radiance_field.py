"""Density and colour as two sine networks: FINER's NeRF set-up, as a nerfstudio field."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.fields.base_field import Field
from torch import Tensor

from aire_nerfstudio.fields.sine_layers import Activation
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops.contraction import contract, pull_back, radial_scale
from aire_nerfstudio.ops.radiance import Network, radiance_network
from aire_nerfstudio.ops.value_gradient import value_and_gradient
from aire_nerfstudio.shapes import AnyPoints3, Channels, PerRow, Points3

LOG_DENSITY_LIMIT = 15.0


class _TruncatedExp(torch.autograd.Function):
    """``exp(min(x, 15))``; backward multiplies by ``exp(clamp(x, -15, 15))``, so that no density is stuck."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y = torch.exp(x.clamp(max=LOG_DENSITY_LIMIT))
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        x, y = ctx.saved_tensors
        if torch.is_grad_enabled():
            return grad * torch.exp(x.clamp(-LOG_DENSITY_LIMIT, LOG_DENSITY_LIMIT))
        return grad * y.clamp_min(math.exp(-LOG_DENSITY_LIMIT))


def truncated_exp(x: Tensor) -> Tensor:
    """Density activation, any shape: ``exp`` bounded above by ``e^15``; its gradient neither dies nor bursts."""
    return _TruncatedExp.apply(x)


class SineRadianceField(Field):
    """``(position, direction) -> (density, colour)``; positions in ``[-1, 1]^3`` or anywhere, raw unit directions.

    ``h = density_net(u)``, ``1 + n_features`` wide; ``sigma = exp(h_0)``; ``rgb = sigmoid(colour_net([d, h_1..]))``;
    ``u = x``, or where space is contracted ``contract(x)``, with ``sigma = exp(h_0) / max(1, m^2)``, ``m = max |x_i|``.

    Args:
        centre: world position of the cube's centre, ``[3]``.
        half_side: half the cube's side in world units; densities are per unit of the normalised cube.
        density_widths: sine layers of the density network.
        colour_widths: sine layers of the colour network.
        n_features: features passed from density to colour.
        activation: ``siren``, ``finer`` or ``spder``.
        first_omega: ``w0`` of the first layer of either network.
        hidden_omega: ``w0`` of the others.
        first_bias_scale: FINER's ``k``; None: ``torch.nn.Linear``'s biases.
        detach_finer_scale: FINER's published backward.
        is_contracted: whether the networks know all of space, contracted, or the cube alone.
    """

    centre: Tensor
    half_side: Tensor

    def __init__(
        self,
        centre: Tensor,
        half_side: float,
        density_widths: Sequence[int] = (182, 182, 182),
        colour_widths: Sequence[int] = (182, 182, 182),
        n_features: int = 182,
        activation: Activation = "siren",
        first_omega: float = 30.0,
        hidden_omega: float = 1.0,
        first_bias_scale: float | None = None,
        detach_finer_scale: bool = True,
        is_contracted: bool = False,
    ) -> None:
        super().__init__()
        self.is_contracted = is_contracted
        self.register_buffer("centre", centre.float())
        self.register_buffer("half_side", torch.tensor(float(half_side)))

        def network(n_in: int, widths: Sequence[int], n_out: int) -> SineMLP:
            return SineMLP(
                n_in, widths, n_out, activation, first_omega, hidden_omega, first_bias_scale, detach_finer_scale
            )

        self.density_net = network(3, density_widths, 1 + n_features)
        self.colour_net = network(n_features + 3, colour_widths, 3)

    def widths(self) -> dict[str, list[int]]:
        """Current widths of both networks."""
        return {"density": self.density_net.widths, "colour": self.colour_net.widths}

    def normalise(self, positions: AnyPoints3) -> AnyPoints3:
        """World positions ``[..., 3]`` to where the scene's cube is ``[-1, 1]^3``."""
        return (positions - self.centre) / self.half_side

    def inputs(self, x: AnyPoints3) -> AnyPoints3:
        """Inputs of the density network, in ``[-1, 1]^3``, at normalised positions ``[..., 3]``."""
        return contract(x) if self.is_contracted else x

    def features(self, x: Points3) -> tuple[PerRow, Channels]:
        """Density ``[...]`` per normalised unit and features ``[..., n_features]`` at normalised ``x [..., 3]``."""
        h = self.density_net(self.inputs(x))
        logarithm, features = h.split([1, h.shape[-1] - 1], -1)
        return self._spread(truncated_exp(logarithm.squeeze(-1).float()), x), features

    def density_and_colour(self, x: Points3, directions: Points3) -> tuple[PerRow, Points3]:
        """:meth:`features`'s density ``[N]`` and :meth:`colour` ``[N, 3]`` in one, for training.

        Args:
            x: normalised positions ``[N, 3]``.
            directions: unit vectors ``[N, 3]``.
        """
        networks = self.density_net, self.colour_net
        if any(network.is_watched() for network in networks):
            sigma, features = self.features(x)
            return sigma, self.colour(directions, features)
        net = self.density_net
        density, colour = (Network.of(network.for_ops()) for network in networks)
        logarithm, rgb = radiance_network(
            self.inputs(x), directions, density, colour, net.activation, net.detach_finer_scale
        )
        return self._spread(truncated_exp(logarithm.float()), x), torch.sigmoid(rgb.float())

    def density(self, x: Points3) -> PerRow:
        """Density ``[...]`` per normalised unit at normalised positions ``[..., 3]``, without the features."""
        return self._spread(self.density_of(self.inputs(x)), x)

    def density_of(self, inputs: Points3) -> PerRow:
        """What the density network gives for :meth:`inputs` ``[..., 3]``, ``[...]``: density in the cube's middle."""
        return truncated_exp(self.density_net.first_output(inputs).float())

    def _spread(self, density: PerRow, x: Points3) -> PerRow:
        """Density where space is contracted: spread over what a radial step there stands for.

        Else the nearly endless space outside is opaque from the start, and training puts everything there.
        """
        return density * radial_scale(x) if self.is_contracted else density

    def colour(self, directions: Points3, features: Channels) -> Points3:
        """RGB in [0, 1], ``[..., 3]``, for unit directions ``[..., 3]``."""
        return torch.sigmoid(self.colour_net(torch.cat([directions.to(features), features], -1)).float())

    def normals(self, x: Points3) -> Points3:
        """Outward unit normals ``[..., 3]``: minus the direction of the density's gradient at normalised ``x``.

        Uses FINER's exact derivative even when training with the detached one. Zero where the gradient vanishes.
        """
        # The exponential is monotone: the logarithm of the density has the same normals and never overflows.
        weights, biases, activation, omegas, _ = self.density_net.for_ops(1)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            points = x.detach().float().reshape(-1, x.shape[-1])
            _, gradient = value_and_gradient(self.inputs(points), weights, biases, activation, omegas)
            if self.is_contracted:
                gradient = pull_back(points, gradient)
        return -torch.nn.functional.normalize(gradient.view(x.shape), dim=-1)

    # nerfstudio's own interface, used by its samplers, exporters and anything written against ``Field``.

    def get_density(self, ray_samples: RaySamples) -> tuple[Tensor, Tensor]:
        """Density per world unit ``[..., 1]`` and features at the samples."""
        sigma, features = self.features(self.normalise(ray_samples.frustums.get_positions()))
        return sigma[..., None] / self.half_side, features

    def get_outputs(self, ray_samples: RaySamples, density_embedding: Tensor | None = None) -> dict:
        """Colour of the samples; ``density_embedding`` are the features of :meth:`get_density`."""
        if density_embedding is None:
            raise ValueError("SineRadianceField.get_outputs needs the features that get_density returned")
        return {FieldHeadNames.RGB: self.colour(ray_samples.frustums.directions, density_embedding)}

    def density_fn(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        """Density per world unit ``[..., 1]`` at world positions ``[..., 3]``; zero outside what the networks know."""
        x = self.normalise(positions)
        inside = (self.inputs(x).abs() <= 1).all(-1)
        return (torch.where(inside, self.density(x), 0.0) / self.half_side)[..., None]
