"""Inference of a trained SIREN by tiny-cuda-nn (tinycudann), where it is installed.

tiny-cuda-nn's networks have one width, no biases and no w0, and compute in float16. A network is brought to that form:
w0 goes into the weights, layers are padded to one width, and biases are carried by a constant neuron in each layer,
since sin(pi / 2) = 1. The first layer's phases are float16 there: at |z| of 16 to 32 they are 0.016 apart, which limits
how exact a picture or a surface can be; :meth:`TcnnNetwork.error` measures it.

Layout of its parameters (``CutlassMLP``, read from its sources): matrices row by row, ``[width, inputs]``,
``[width, width]`` for each further layer, ``[outputs, width]``, with inputs and outputs padded to multiples of 16.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aire_nerfstudio.ops.activations import Activation
from aire_nerfstudio.ops.sine_network import reference

ALIGNMENT = 16
INSTALL = (
    "it is not on the package index: with the CUDA toolkit and a GPU there, pip install --no-build-isolation "
    "git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch"
)


class TcnnUnavailableError(RuntimeError):
    """tinycudann cannot run this network here; the message says why and what to do."""


class Folded(NamedTuple):
    """A sine network in tiny-cuda-nn's form.

    Attributes:
        config: of ``tinycudann.Network``.
        n_inputs: coordinates and the constant, not padded.
        n_outputs: not padded.
        parameters: all matrices, flat, float32.
    """

    config: dict[str, Any]
    n_inputs: int
    n_outputs: int
    parameters: Tensor


def fold(
    weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation, omegas: Sequence[float]
) -> Folded:
    """Bring a network into tiny-cuda-nn's form; its inputs are then the coordinates followed by a 1.

    Args:
        weights: ``[n_1, d], ..., [out, n_k]``.
        biases: ``[n_1], ..., [out]``.
        activation: ``siren``; the others have no counterpart.
        omegas: ``w0`` of each sine layer.

    Raises:
        TcnnUnavailableError: another activation.
    """
    if activation != "siren":
        raise TcnnUnavailableError(f"tiny-cuda-nn has plain sines only, and the network is a {activation.upper()}")
    width = _padded(max(w.shape[0] for w in weights[:-1]) + 1)
    out = weights[-1].shape[0]
    matrices = []
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        is_first, is_last = index == 0, index == len(weights) - 1
        rows = _padded(out) if is_last else width
        columns = _padded(weight.shape[1] + 1) if is_first else width
        # Where the constant is: behind the coordinates, then the last neuron.
        constant = weight.shape[1] if is_first else width - 1
        omega = 1.0 if is_last else omegas[index]
        matrix = weight.new_zeros(rows, columns)
        matrix[: weight.shape[0], : weight.shape[1]] = omega * weight
        matrix[: weight.shape[0], constant] = omega * bias
        if not is_last:
            matrix[width - 1, constant] = math.pi / 2
        matrices.append(matrix.flatten())
    config = {
        "otype": "CutlassMLP", "activation": "Sine", "output_activation": "None", "n_neurons": width,
        "n_hidden_layers": len(weights) - 1,
    }  # fmt: skip
    return Folded(config, weights[0].shape[1] + 1, out, torch.cat(matrices).detach())


class TcnnNetwork(nn.Module):
    """A SIREN evaluated by tiny-cuda-nn; no gradients.

    Args:
        weights: ``[n_1, d], ..., [out, n_k]``, on CUDA.
        biases: ``[n_1], ..., [out]``.
        activation: ``siren``.
        omegas: ``w0`` of each sine layer.

    Raises:
        TcnnUnavailableError: not installed, not on CUDA, or another activation.
    """

    def __init__(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation, omegas: Sequence[float],
        *_: object,
    ) -> None:  # fmt: skip
        super().__init__()
        reason = why_not(weights[0].device)
        if reason is not None:
            raise TcnnUnavailableError(reason)
        import tinycudann

        self._arguments = (weights, biases, activation, omegas)
        folded = fold(weights, biases, activation, omegas)
        self._network = tinycudann.Network(folded.n_inputs, folded.n_outputs, folded.config)
        expected = self._network.params.numel()
        if expected != folded.parameters.numel():
            raise TcnnUnavailableError(
                f"this version of tiny-cuda-nn lays its parameters out otherwise: it has {expected}, and "
                f"{folded.parameters.numel()} were made for it"
            )
        with torch.no_grad():
            self._network.params.copy_(folded.parameters)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """``[N, d] -> [N, out]``, float16."""
        return self._network(torch.cat([x, x.new_ones(len(x), 1)], -1))

    @torch.no_grad()
    def error(self, x: Tensor) -> float:
        """Root mean square difference from the network in float32 at ``x [N, d]``."""
        weights, biases, activation, omegas = self._arguments
        return float((self(x).float() - reference(x, weights, biases, activation, omegas)).square().mean().sqrt())


class TcnnEvaluator:
    """Evaluates a network by tiny-cuda-nn, brought to its form again whenever a weight has changed."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._network: TcnnNetwork | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> TcnnEvaluator:
        return TcnnEvaluator()

    @torch.no_grad()
    def __call__(
        self, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation,
        omegas: Sequence[float], *_: object,
    ) -> Tensor:  # fmt: skip
        """As :func:`~aire_nerfstudio.ops.sine_network.reference`, ``[..., d] -> [..., out]``, float32; no gradients.

        Raises:
            TcnnUnavailableError: see :class:`TcnnNetwork`.
        """
        key = tuple((t.data_ptr(), t._version, tuple(t.shape)) for t in (*weights, *biases))
        if self._network is None or key != self._key:
            self._key, self._network = key, TcnnNetwork(weights, biases, activation, omegas)
        out = weights[-1].shape[0]
        if x.numel() == 0:
            return x.new_zeros(*x.shape[:-1], out)
        return self._network(x.reshape(-1, x.shape[-1])).float().view(*x.shape[:-1], out)


def evaluator(activation: Activation) -> TcnnEvaluator | None:
    """What ``AIRE_INFERENCE`` asks to evaluate networks by outside training; None: this package's own ops.

    Raises:
        TcnnUnavailableError: it asks for what is not here.
    """
    asked = os.environ.get("AIRE_INFERENCE", "own")
    if asked == "own":
        return None
    if asked != "tinycudann":
        raise TcnnUnavailableError(f"AIRE_INFERENCE is {asked!r}; it must be own or tinycudann")
    if activation != "siren":
        raise TcnnUnavailableError(
            f"AIRE_INFERENCE is tinycudann, which has plain sines only, not {activation.upper()}"
        )
    reason = why_not(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if reason is not None:
        raise TcnnUnavailableError(f"AIRE_INFERENCE is tinycudann, and {reason}; or unset it")
    return TcnnEvaluator()


def why_not(device: torch.device) -> str | None:
    """Why tinycudann cannot be used on a device, with what to do; None where it can."""
    if importlib.util.find_spec("tinycudann") is None:
        return f"tinycudann is not installed; {INSTALL}"
    if device.type != "cuda":
        return f"tinycudann runs on CUDA only, and the network is on {device}; move it to a GPU"
    return None


def _padded(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
