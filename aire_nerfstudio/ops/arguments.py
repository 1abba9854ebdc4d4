"""What compiled ops for sine networks have in common: when they are used, and how a network is handed to them."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aire_nerfstudio.ops.activations import ACTIVATIONS
from aire_nerfstudio.ops.backend import Library, is_off

# Activations whose derivatives are compiled, by their number there: SPDER's second has no bound at 0.
SMOOTH = {"siren": 0, "finer": 1}
# Below so many rows the call costs more than it saves.
FEWEST_ROWS = 64
# A tensor class that does not want to see what is done with it.
LEFT_TO_TORCH = torch._C._disabled_torch_dispatch_impl


def can_compile(library: Library, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> bool:
    """Whether the library may and can be used for a network at ``x [..., d]``.

    It takes float32 on CPU, 64 rows or more, a sine layer or more, outside autocast, compilation, tracing,
    ``torch.func``, forward-mode differentiation and dispatch modes, and only shapes that fit together: the reference
    says what is wrong with others.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or is_transformed():
        return False
    if x.dim() == 0 or x.numel() < FEWEST_ROWS * max(1, x.shape[-1]):
        return False
    if len(weights) < 2 or any(t.dtype != torch.float32 or t.device != x.device for t in (*weights, *biases)):
        return False
    if not are_plain(x, *weights, *biases):
        return False
    return fit_together(x, weights, biases) and library.load() is not None


def check_network(
    weights: Sequence[Tensor], biases: Sequence[Tensor], activation: str, omegas: Sequence[float]
) -> None:
    """What shapes do not say, and a library would read past.

    Raises:
        ValueError: there is no layer, there are not as many biases as weights and one omega less, positive numbers,
            or the activation is unknown.
    """
    if not weights:
        raise ValueError("a network has a layer or more; got no weights")
    if len(biases) != len(weights) or any(bias is None for bias in biases):
        raise ValueError(
            f"each of {len(weights)} weights needs a bias; got {sum(b is not None for b in biases)} biases"
        )
    if len(omegas) != len(weights) - 1:
        raise ValueError(f"{len(weights) - 1} sine layers need as many omegas; got {len(omegas)}")
    if any(isinstance(omega, Tensor) for omega in omegas):
        raise ValueError("omegas must be numbers; no gradients reach tensors")
    if not all(0 < omega < math.inf for omega in omegas):
        raise ValueError(f"omegas must be positive; got {list(omegas)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")


def check_sine_layers(weights: Sequence[Tensor]) -> None:
    """What derivatives in closed form begin with.

    Raises:
        ValueError: there is no sine layer.
    """
    if len(weights) < 2:
        raise ValueError("derivatives in closed form need a sine layer before the last one; got one weight")


def shapes_of(tensors: Sequence[Tensor]) -> list[torch.Size]:
    """For :func:`check_unchanged`."""
    return [t.shape for t in tensors]


def check_unchanged(shapes: Sequence[torch.Size], parameters: Sequence[Tensor]) -> None:
    """Refuse a backward pass through a network whose neurons were added or removed since: what is kept would not fit.

    Raises:
        RuntimeError: a shape is another.
    """
    for before, parameter in zip(shapes, parameters, strict=True):
        if parameter.shape != before:
            raise RuntimeError(
                f"a parameter was {list(before)} in the forward pass and is {list(parameter.shape)} now; finish "
                "backward before neurons are added or removed"
            )


def fit_together(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> bool:
    """Whether the shapes of a network at ``x [..., d]``, and of its layers among themselves, fit."""
    width = x.shape[-1]
    for weight, bias in zip(weights, biases, strict=True):
        if weight.dim() != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            return False
        width = weight.shape[0]
    return True


def is_transformed() -> bool:
    """Whether a call into a library would go past what torch does with the call, or is switched off."""
    return (
        is_off()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # as torch.onnx.export does
        or torch._C._functorch.peek_interpreter_stack() is not None  # vmap, grad, jvp...
        or torch.autograd.forward_ad._current_level >= 0
    )


def are_plain(*tensors: Tensor) -> bool:
    """Whether tensors lie in memory as they are, and no dispatch mode wants to see what is done with them."""
    if torch._C._len_torch_dispatch_stack():
        return False
    return all(t.layout == torch.strided and type(t).__torch_dispatch__ is LEFT_TO_TORCH for t in tensors)


def solid(tensor: Tensor) -> Tensor:
    """Contiguous memory with a tensor's values, outside the graph: some tensors are a promise of them."""
    tensor = tensor.detach()
    if tensor._is_zerotensor():
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return tensor.resolve_neg().contiguous()


class Arguments:
    """A network as the library wants it; keeps alive what the pointers point to."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor], omegas: Sequence[float]) -> None:
        self._tensors = [solid(t) for t in (*weights, *biases)]
        count = len(weights)
        sizes = [weights[0].shape[1], *(w.shape[0] for w in weights)]
        self.layers = ctypes.c_int(count - 1)
        self.sizes = (ctypes.c_int64 * len(sizes))(*sizes)
        self.weights = pointers(self._tensors[:count])
        self.biases = pointers(self._tensors[count:])
        self.omegas = (ctypes.c_float * len(omegas))(*omegas)
        self.network = (self.layers, self.sizes, self.weights, self.biases, self.omegas)


def pointers(tensors: Sequence[Tensor]) -> Any:
    """``float* const*``."""
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """``float*``, null for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def threads() -> ctypes.c_int:
    """As many as torch uses."""
    return ctypes.c_int(torch.get_num_threads())


def checked(status: int) -> None:
    """Raise what a status other than 0 of a sine network's library stands for."""
    if status == 1:
        raise MemoryError("a compiled sine network ran out of memory; take fewer rows at a time")
    if status != 0:
        raise RuntimeError(f"a compiled sine network refused its arguments (status {status})")
