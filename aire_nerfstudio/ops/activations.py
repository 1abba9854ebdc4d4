"""SIREN, FINER and SPDER: the activations in PyTorch.

With ``z = W h + b`` the three activations are

========  =======================================  ==========================================
name      value                                    derivative with respect to ``z``
========  =======================================  ==========================================
siren     ``sin(w0 z)``                            ``w0 cos(w0 z)``
finer     ``sin(w0 (1 + |z|) z)``                  ``w0 (1 + 2|z|) cos(w0 (1 + |z|) z)``
spder     ``sin(w0 z) sqrt(|w0 z|)``               exact; 0 at ``z = 0``
========  =======================================  ==========================================

Sources: SIREN, Sitzmann et al. 2020; FINER, Liu et al. 2024; SPDER, Shah and Sitawarin 2023.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Activation = Literal["siren", "finer", "spder"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)


def siren(z: Tensor, omega: float) -> Tensor:
    """``sin(omega z)``, any shape."""
    return torch.sin(omega * z)


def finer(z: Tensor, omega: float, detach_scale: bool = False) -> Tensor:
    """``sin(omega (1 + |z|) z)``, any shape.

    Args:
        z: pre-activations, any shape.
        omega: frequency factor ``w0``.
        detach_scale: treat ``1 + |z|`` as a constant in backward, as FINER's published image and NeRF runs did.
            Derivatives with respect to coordinates are then wrong: never combine it with a loss on d/dx.
    """
    scale = 1 + z.abs()
    if detach_scale:
        scale = scale.detach()
    return torch.sin(omega * scale * z)


class _SpderFunction(torch.autograd.Function):
    """``sin(u) sqrt(|u|)`` with the derivative's limit 0 at ``u = 0``, where autograd of sqrt would give NaN."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor) -> Tensor:
        return torch.sin(u) * torch.sqrt(u.abs())

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        (u,) = ctx.saved_tensors
        return grad * _spder_derivative(u)

    @staticmethod
    def jvp(ctx, tangent: Tensor) -> Tensor:  # type: ignore[override]
        (u,) = ctx.saved_tensors
        return tangent * _spder_derivative(u)


def _spder_derivative(u: Tensor) -> Tensor:
    """``cos(u) sqrt|u| + sin(u) sign(u) / (2 sqrt|u|)``, differentiable again away from 0 and finite at 0."""
    is_zero = u == 0
    safe = torch.where(is_zero, torch.ones_like(u), u)
    root = torch.sqrt(safe.abs())
    derivative = torch.cos(safe) * root + torch.sin(safe) * torch.sign(safe) / (2 * root)
    return torch.where(is_zero, torch.zeros_like(u), derivative)


def spder(z: Tensor, omega: float) -> Tensor:
    """``sin(omega z) sqrt(|omega z|)``, any shape; first derivative exact and 0 at ``z = 0``.

    The second derivative grows as ``1/sqrt(|z|)`` towards ``z = 0``; at exactly 0 it is returned as 0.
    """
    u = omega * z
    if torch.compiler.is_compiling():  # takes no derivatives of our own
        is_zero = u == 0
        safe = torch.where(is_zero, torch.ones_like(u), u)
        return torch.where(is_zero, torch.zeros_like(u), torch.sin(safe) * safe.abs().sqrt())
    return _SpderFunction.apply(u)


def activate(z: Tensor, activation: Activation, omega: float, detach_finer_scale: bool = False) -> Tensor:
    """Apply one of the three activations elementwise; see the table at the top of the module.

    Raises:
        ValueError: ``activation`` is not one of ``siren``, ``finer``, ``spder``.
    """
    if activation == "siren":
        return siren(z, omega)
    if activation == "finer":
        return finer(z, omega, detach_finer_scale)
    if activation == "spder":
        return spder(z, omega)
    raise ValueError(f"activation {activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")


def derivatives(z: Tensor, activation: Activation, omega: float, order: int) -> tuple[Tensor, Tensor, Tensor]:
    """An activation, its first and (``order`` 2) second derivative at pre-activations of any shape, each of that shape.

    With ``order`` 1 the third is empty. SPDER's first derivative is 0 at 0, as for :func:`spder`.

    Raises:
        ValueError: an unknown activation, or ``order`` 2 of SPDER, whose second derivative has no bound near 0.
    """
    none = z.new_empty(0)
    if activation == "siren":
        u = omega * z
        sine, cosine = torch.sin(u), torch.cos(u)
        return sine, omega * cosine, -(omega**2) * sine if order > 1 else none
    if activation == "finer":
        size = z.abs()
        u, rate = omega * (1 + size) * z, omega * (1 + 2 * size)
        sine, cosine = torch.sin(u), torch.cos(u)
        bend = 2 * omega * torch.sign(z) * cosine - rate.square() * sine if order > 1 else none
        return sine, rate * cosine, bend
    if activation != "spder":
        raise ValueError(f"activation {activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
    if order > 1:
        raise ValueError("SPDER's second derivative is not bounded near 0; take siren or finer")
    return spder(z, omega), omega * _spder_derivative(omega * z), none
