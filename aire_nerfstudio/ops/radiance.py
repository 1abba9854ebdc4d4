"""Density and colour of points, two sine networks of which the second takes the first one's features, in one op.

Equivalent PyTorch: :func:`reference`. Features are an affine map of the density network's last values, and so is what
the colour network's first layer makes of them: the two maps are one, of their weights' product. Where the op is
compiled, features are never computed: there is one product of all points less each way, and no feature goes through
memory. Derivatives where it is:

=================  ==============  ================================================================
derivative         compiled        remark
=================  ==============  ================================================================
weights, biases    yes             of both networks, also through the product of the two maps
positions          no              :func:`radiance_network` is the reference's where they ask for it
directions         no              likewise
second (all)       by reference    with ``create_graph``, in float32
=================  ==============  ================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aire_nerfstudio.ops.activations import Activation
from aire_nerfstudio.ops.arguments import check_network
from aire_nerfstudio.ops.sine_network import sine_network


class Network(NamedTuple):
    """A sine network, as :func:`~aire_nerfstudio.ops.sine_network.reference` takes it.

    Attributes:
        weights: ``[n_1, d], [n_2, n_1], ..., [out, n_k]``.
        biases: ``[n_1], ..., [out]``.
        omegas: ``w0`` of each sine layer.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    omegas: Sequence[float]

    @classmethod
    def of(cls, given: tuple[Sequence[Tensor], Sequence[Tensor], Any, Sequence[float], bool]) -> Network:
        """Of what :meth:`~aire_nerfstudio.fields.sine_mlp.SineMLP.for_ops` gives."""
        weights, biases, _, omegas, _ = given
        return cls(weights, biases, omegas)


def reference(
    x: Tensor, directions: Tensor, density: Network, colour: Network, activation: Activation,
    detach_finer_scale: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The specification: ``h = density(x)``, then ``h_0`` and ``colour([directions, h_1..])``.

    Args:
        x: ``[N, d]``.
        directions: ``[N, e]``.
        density: with ``1 + n`` outputs.
        colour: with ``e + n`` inputs.
        activation: of both, ``siren``, ``finer`` or ``spder``.
        detach_finer_scale: FINER's published backward.

    Returns:
        ``[N]`` and ``[N, out]``.
    """
    h = sine_network(x, *density[:2], activation, density.omegas, detach_finer_scale)
    # Split rather than indexed: going back, that is one pass through memory instead of five.
    first, features = h.split([1, h.shape[-1] - 1], -1)
    entry = torch.cat([directions.to(features), features], -1)
    return first.squeeze(-1), sine_network(entry, *colour[:2], activation, colour.omegas, detach_finer_scale)


def radiance_network(
    x: Tensor, directions: Tensor, density: Network, colour: Network, activation: Activation,
    detach_finer_scale: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As :func:`reference`, in one op on CUDA at precision ``medium``, where the sizes allow it.

    Raises:
        ValueError: biases or omegas that are not as many as the layers, or an unknown activation.
    """
    from aire_nerfstudio.ops.triton_radiance import is_possible, triton_radiance

    for network in (density, colour):
        check_network(network.weights, network.biases, activation, network.omegas)
    op = triton_radiance if is_possible(x, directions, density, colour) else reference
    return op(x, directions, density, colour, activation, detach_finer_scale)
