"""Density and colour networks as one on CUDA, through Triton: see :mod:`~aire_nerfstudio.ops.radiance`.

The one network's sine layers are those of both. What joins them is the product of the density network's last weights,
but the first one's, and of the colour network's first; directions are further inputs of that layer, and lie where the
values before it have padding. The logarithm of the density is a branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aire_nerfstudio.ops import triton_network
from aire_nerfstudio.ops.activations import Activation
from aire_nerfstudio.ops.arguments import check_unchanged, fit_together, shapes_of
from aire_nerfstudio.ops.create_graph import gradients_by_reference
from aire_nerfstudio.ops.radiance import Network, reference
from aire_nerfstudio.ops.triton_launches import finish, measure, on_device
from aire_nerfstudio.ops.triton_network import KINDS, NARROW, Branch, Kept, backward_layers, forward_layers


def is_possible(x: Tensor, directions: Tensor, density: Network, colour: Network) -> bool:
    """Whether two networks at ``x [N, d]`` and ``directions [N, e]`` may and can be one here.

    ``d``, ``e`` and the colours are 4 or less, the density's sine layers two or more.
    """
    if not triton_network.is_possible(x, density.weights, density.biases) or len(density.weights) < 3:
        return False
    others = directions, *colour.weights, *colour.biases
    if x.requires_grad or directions.requires_grad or x.dim() != 2 or directions.dim() != 2:
        return False
    if len(directions) != len(x) or any(t.dtype != torch.float32 or t.device != x.device for t in others):
        return False
    features = density.weights[-1].shape[0] - 1
    entry = x.new_empty(0, directions.shape[1] + features)
    if features < 1 or len(colour.weights) < 2 or not fit_together(entry, colour.weights, colour.biases):
        return False
    return all(0 < size <= NARROW for size in (x.shape[1], directions.shape[1], colour.weights[-1].shape[0]))


def triton_radiance(
    x: Tensor, directions: Tensor, density: Network, colour: Network, activation: Activation,
    detach_finer_scale: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As :func:`~aire_nerfstudio.ops.radiance.reference`, where :func:`is_possible`."""
    kind = KINDS[activation, detach_finer_scale and activation == "finer"]
    omegas = tuple(map(float, density.omegas)), tuple(map(float, colour.omegas))
    settings = (activation, omegas, detach_finer_scale, kind, torch.is_grad_enabled())
    parameters = (*density.weights, *colour.weights, *density.biases, *colour.biases)
    with on_device(x):
        return _TritonRadiance.apply(x, directions, settings, *parameters)


class _TritonRadiance(torch.autograd.Function):
    """Launches of one network with a branch; the product that joins the two is PyTorch's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, directions: Tensor, settings: tuple, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        _, omegas, _, kind, is_grad_enabled = settings
        rows, beside = x.detach().contiguous(), directions.detach().contiguous()
        keeps = is_grad_enabled and any(ctx.needs_input_grad)
        weights, biases, branch, branch_bias = _joined(parameters, len(omegas[0]), beside)
        shares, kept, branched = forward_layers(rows, weights, biases, sum(omegas, ()), kind, keeps, branch)
        if keeps:
            ctx.settings, ctx.shapes = settings, shapes_of(parameters)
            ctx.count = len(parameters)
            ctx.save_for_backward(x, directions, *parameters, weights[branch.layer + 1], *kept.flat())
        return finish(branched, branch_bias).squeeze(1), finish(shares, biases[-1])

    @staticmethod
    def backward(ctx: Any, d_first: Tensor, d_colour: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, directions, *saved = ctx.saved_tensors
        parameters, joint, kept = saved[: ctx.count], saved[ctx.count], Kept.of(saved[ctx.count + 1 :])
        check_unchanged(ctx.shapes, parameters)
        needs = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():
            return None, None, None, *_by_reference(ctx.settings, needs, x, directions, parameters, d_first, d_colour)
        activation, omegas, detach, kind, _ = ctx.settings
        layers = len(omegas[0])
        weights, biases, branch, _ = _joined(parameters, layers, directions.detach().contiguous(), joint)
        measured = measure(d_colour.contiguous()[None], None, None)[0]
        branched = measure(d_first.contiguous()[None, :, None], None, None)[0]
        settings = (activation, sum(omegas, ()), detach, kind)
        _, found = backward_layers(measured, weights, biases, kept, settings, False, None, 1.0, branch, branched)
        gradients = _parted(found, parameters, layers)
        return None, None, None, *(g if need else None for g, need in zip(gradients, needs, strict=True))


def _joined(
    parameters: Sequence[Tensor], layers: int, beside: Tensor, joint: Tensor | None = None
) -> tuple[list[Tensor], list[Tensor], Branch, Tensor]:
    """One network's weights and biases, its branch and that one's bias.

    Args:
        parameters: all weights of the density network, of the colour network, all biases of both.
        layers: sine layers of the density network.
        beside: ``[N, e]``.
        joint: the weight that joins the two ``[m, n + e]``, where it is known; its bias then is not wanted.
    """
    plain = [p.detach().contiguous() for p in parameters]
    count, extra = len(plain) // 2, beside.shape[1]
    weights, biases = plain[:count], plain[count:]
    (after, entry), (after_bias, entry_bias) = weights[layers : layers + 2], biases[layers : layers + 2]
    bias = entry_bias
    if joint is None:
        width = after.shape[1]
        joint = entry.new_empty(len(entry), width + extra)
        torch.mm(entry[:, extra:], after[1:], out=joint[:, :width])
        joint[:, width:] = entry[:, :extra]
        bias = torch.addmv(entry_bias, entry[:, extra:], after_bias[1:])
    branch = Branch(layers - 1, after[:1], beside)
    joined = [*weights[:layers], joint, *weights[layers + 2 :]], [*biases[:layers], bias, *biases[layers + 2 :]]
    return *joined, branch, after_bias[:1]


def _parted(found: Sequence[Tensor], parameters: Sequence[Tensor], layers: int) -> list[Tensor]:
    """Gradients of ``parameters``, of those of the one network and its branch."""
    count = len(parameters) // 2
    after, entry = (p.detach() for p in parameters[layers : layers + 2])
    after_bias = parameters[count + layers].detach()
    *gradients, d_branch, d_branch_bias = found
    weights, biases = gradients[: count - 1], gradients[count - 1 :]
    width, joint, bias = after.shape[1], weights[layers], biases[layers]
    extra = joint.shape[1] - width
    d_after, d_after_bias, d_entry = torch.empty_like(after), torch.empty_like(after_bias), torch.empty_like(entry)
    d_entry[:, :extra] = joint[:, width:]
    torch.mm(joint[:, :width], after[1:].t(), out=d_entry[:, extra:])
    d_entry[:, extra:].addr_(bias, after_bias[1:])
    d_after[:1], d_after_bias[:1] = d_branch, d_branch_bias
    torch.mm(entry[:, extra:].t(), joint[:, :width], out=d_after[1:])
    torch.mv(entry[:, extra:].t(), bias, out=d_after_bias[1:])
    return [
        *weights[:layers], d_after, d_entry, *weights[layers + 1 :],
        *biases[:layers], d_after_bias, bias, *biases[layers + 1 :],
    ]  # fmt: skip


def _by_reference(
    settings: tuple, needs: Sequence[bool], x: Tensor, directions: Tensor, parameters: Sequence[Tensor],
    d_first: Tensor, d_colour: Tensor,
) -> list[Tensor | None]:  # fmt: skip
    """With ``create_graph``: through the reference, so that derivatives of derivatives are right."""
    activation, omegas, detach, *_ = settings
    count, layers = len(parameters) // 2, len(omegas[0])

    def networks(*parameters: Tensor) -> tuple[Tensor, Tensor]:
        weights, biases = parameters[:count], parameters[count:]
        both = [
            Network(weights[part], biases[part], w0)
            for part, w0 in zip((slice(layers + 1), slice(layers + 1, None)), omegas, strict=True)
        ]
        return reference(x, directions, both[0], both[1], activation, detach)

    return gradients_by_reference(networks, parameters, needs, [d_first, d_colour])
