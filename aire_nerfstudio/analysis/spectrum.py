"""Theorem 1: which frequencies the second sine layer generates from the input frequencies, and how strongly."""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.sine_mlp import Affine, SineMLP


class Spectrum(NamedTuple):
    """``h(x) = sum_m amplitude_m sin(<frequency_m, x> + phase_m)``, strongest first.

    Attributes:
        frequencies: in radians per unit of ``x``, ``[M, d]``.
        amplitudes: of either sign, ``[M]``.
        phases: in radians, ``[M]``.
        captured: share of the sum of the squared amplitudes that these terms hold, in [0, 1]; with all terms it is 1.
    """

    frequencies: Tensor
    amplitudes: Tensor
    phases: Tensor
    captured: float

    def evaluate(self, x: Tensor) -> Tensor:
        """The sum at ``x [..., d]``, ``[...]``."""
        return (torch.sin(x.double() @ self.frequencies.T + self.phases) * self.amplitudes).sum(-1)


@torch.no_grad()
def neuron_spectrum(network: SineMLP, neuron: int, tolerance: float = 1e-4, max_terms: int = 100_000) -> Spectrum:
    """Expansion of one neuron of the second sine layer.

    ``sin(sum_l W_l sin(y_l) + b) = sum_k prod_l J_{k_l}(W_l) sin(<k, y> + b)`` with ``y = omega x + phi``; the factors
    of one input neuron after the other are multiplied out and small products dropped. The squares of all amplitudes
    add up to 1, which tells how much was kept. Source: AIRe, theorem 1 (Novello et al. 2025).

    Args:
        network: a SIREN with at least two sine layers.
        neuron: index in the second layer.
        tolerance: products below this are dropped, in (0, 1).
        max_terms: at most so many are kept, the strongest.

    Returns:
        The terms; those of equal frequency and phase (up to sign) are not merged.

    Raises:
        InputError: another activation, a single layer, or an index out of range.
    """
    if network.activation != "siren":
        raise InputError(f"theorem 1 expands siren networks; the activation is {network.activation!r}")
    if len(network.layers) < 3:
        raise InputError("theorem 1 expands the second sine layer; the network has one")
    first, second = cast(Affine, network.layers[0]), cast(Affine, network.layers[1])
    if not 0 <= neuron < second.weight.shape[0]:
        raise InputError(f"neuron is {neuron}; the second layer has the neurons 0 to {second.weight.shape[0] - 1}")
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance is {tolerance}; it must lie in (0, 1)")
    from scipy.special import jv

    omegas = (first.weight * network.first_omega).double().cpu()
    phis = (first.bias * network.first_omega).double().cpu()
    weights = (second.weight[neuron] * network.hidden_omega).double().cpu().numpy()
    frequencies = torch.zeros(1, omegas.shape[1], dtype=torch.float64)
    phases = (second.bias[neuron] * network.hidden_omega).double().cpu()[None]
    amplitudes = torch.ones(1, dtype=torch.float64)
    # Largest weights first: their products are the ones worth keeping.
    for index in np.argsort(-np.abs(weights), kind="stable"):
        top = 0
        while abs(jv(top + 1, weights[index])) >= tolerance or abs(weights[index]) > top + 1:
            top += 1
        orders = np.arange(-top, top + 1)
        factors = torch.from_numpy(jv(orders, weights[index]))
        k = torch.from_numpy(orders).double()
        products = (amplitudes[:, None] * factors).flatten()
        keep = products.abs() >= tolerance
        if int(keep.sum()) > max_terms:
            keep = products.abs() > products.abs().topk(max_terms + 1).values[-1]
        grown = (frequencies[:, None] + k[:, None] * omegas[index]).flatten(0, 1)
        shifted = (phases[:, None] + k * phis[index]).flatten()
        frequencies, phases, amplitudes = grown[keep], shifted[keep], products[keep]
    order = amplitudes.abs().argsort(descending=True, stable=True)
    return Spectrum(frequencies[order], amplitudes[order], phases[order], float(amplitudes.square().sum()))


def amplitude_bound(weights: Tensor, orders: Tensor) -> Tensor:
    """Theorem 1's bound ``prod_l (|W_l| / 2)^|k_l| / |k_l|!`` of an amplitude.

    Args:
        weights: ``[n]``, ``w0`` folded in.
        orders: integer ``k``, ``[M, n]``.

    Returns:
        ``[M]``.
    """
    k = orders.abs().double()
    logs = k * (weights.double().abs() / 2).clamp_min(1e-300).log() - torch.lgamma(k + 1)
    return logs.sum(-1).exp()
