"""SIREN, FINER and SPDER: which there are, and how a layer's weight starts. The functions: ``ops/activations.py``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aire_nerfstudio.ops.activations import ACTIVATIONS, Activation, activate, finer, siren, spder

__all__ = ["ACTIVATIONS", "Activation", "activate", "finer", "initialise", "siren", "spder"]


@torch.no_grad()
def initialise(weight: Tensor, omega: float, is_first: bool) -> None:
    """SIREN's initialisation of one weight, in place; biases keep ``torch.nn.Linear``'s own.

    Args:
        weight: ``[n_out, n_in]``.
        omega: ``w0`` of the activation that follows (for the output layer: of the last sine layer).
        is_first: first layer: ``U(-1/n_in, 1/n_in)``; others: ``U(-sqrt(6/n_in)/w0, sqrt(6/n_in)/w0)``.
    """
    n_in = weight.shape[1]
    bound = 1 / n_in if is_first else math.sqrt(6 / n_in) / omega
    weight.uniform_(-bound, bound)
