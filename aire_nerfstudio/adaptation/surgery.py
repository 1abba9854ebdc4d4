"""Growing and pruning neurons in place: the only file that reads ``optimizer.state``.

Every edit keeps the identity of the ``nn.Parameter``: whatever holds it (module, optimizer, gradient clipping,
scheduler) goes on holding the right one. The values live in a new tensor, exchanged by ``torch.utils.swap_tensors``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.neurons import NeuronGroup, Slot
from aire_nerfstudio.shapes import NewColumns, NewRows, PerNew

TensorEdit = Callable[[Tensor], Tensor]


class SurgeryError(InputError):
    """A change of architecture that cannot be made; the message names the layer, the rule and the fix."""


def grow(
    group: NeuronGroup,
    weight: NewRows,
    bias: PerNew,
    outgoing: NewColumns,
    optimizers: Iterable[Optimizer] = (),
) -> None:
    """Append ``k`` neurons to a layer, in place.

    The optimizer moments of old neurons stay as they are; those of new ones start at zero; ``step`` is kept.

    Args:
        group: the layer, ``n`` neurons.
        weight: incoming rows, ``[k, n_in]``.
        bias: ``[k]``.
        outgoing: outgoing columns, ``[n_out, k]``. Zero columns leave the network's function unchanged.
        optimizers: those that may hold the layer's parameters.

    Raises:
        SurgeryError: shapes that do not fit the group, or values that are not finite. Nothing is changed then.
    """
    for what, new, slot in (
        ("weight", weight, group.weight),
        ("bias", bias, group.bias),
        ("outgoing", outgoing, group.outgoing),
    ):
        expected = list(slot.parameter.shape)
        expected[slot.dim] = weight.shape[0]
        if list(new.shape) != expected:
            raise SurgeryError(f"{group.name}: new {what} has shape {list(new.shape)}; it must be {expected}")
        if not torch.isfinite(new).all():
            raise SurgeryError(f"{group.name}: new {what} has values that are not finite")
    optimizers = list(optimizers)
    _append(group.weight, weight, optimizers)
    _append(group.bias, bias, optimizers)
    _append(group.outgoing, outgoing, optimizers)


def prune(group: NeuronGroup, remove: Tensor | Sequence[int], optimizers: Iterable[Optimizer] = ()) -> None:
    """Remove neurons from a layer, in place; survivors keep their values, moments and order.

    Args:
        group: the layer, ``n`` neurons.
        remove: distinct indices in ``[0, n)``, any order; empty is a no-op.
        optimizers: those that may hold the layer's parameters.

    Raises:
        SurgeryError: an index out of range or repeated, or no neuron would be left. Nothing is changed then.
    """
    device = group.weight.parameter.device
    indices = torch.as_tensor(remove, dtype=torch.long, device=device)
    keep = torch.ones(group.width, dtype=torch.bool, device=device)
    if indices.numel() and (indices.min() < 0 or indices.max() >= group.width):
        raise SurgeryError(f"{group.name}: indices to prune must lie in [0, {group.width}); got {indices.tolist()}")
    keep[indices] = False
    if int((~keep).sum()) != indices.numel():
        raise SurgeryError(f"{group.name}: indices to prune must be distinct; got {indices.tolist()}")
    if not keep.any():
        raise SurgeryError(
            f"{group.name}: pruning {indices.numel()} of {group.width} neurons would leave none; prune at most "
            f"{group.width - 1}"
        )
    if not indices.numel():
        return
    survivors = keep.nonzero().squeeze(1)
    optimizers = list(optimizers)
    for slot in group.slots():
        _edit(slot.parameter, partial(torch.index_select, dim=slot.dim, index=survivors), None, optimizers)


@torch.no_grad()
def mask(parameter: Tensor, alive: Tensor, optimizers: Iterable[Optimizer] = ()) -> None:
    """Set the dead entries of a parameter, and their optimizer moments, to zero, in place.

    Args:
        parameter: any shape.
        alive: bool, the same shape.
        optimizers: those that may hold the parameter.
    """
    parameter *= alive
    for optimizer in optimizers:
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and key != "step":
                value *= alive


def resize_to(parameter: nn.Parameter, shape: Sequence[int], optimizers: Iterable[Optimizer] = ()) -> None:
    """Give a parameter another shape, filled with zeros, keeping its identity: the step before loading values into it.

    Args:
        parameter: any trainable tensor.
        shape: the shape to take; when equal to the present one nothing happens.
        optimizers: those that may hold it; their moments are zeroed at the new shape.
    """
    if tuple(parameter.shape) == tuple(shape):
        return
    _edit(parameter, lambda t: t.new_zeros(tuple(shape)), None, list(optimizers))


def _append(slot: Slot, new: Tensor, optimizers: list[Optimizer]) -> None:
    dim = slot.dim

    def with_values(t: Tensor) -> Tensor:
        return torch.cat([t, new.to(t)], dim)

    def with_zeros(t: Tensor) -> Tensor:
        return torch.cat([t, torch.zeros_like(new, dtype=t.dtype, device=t.device)], dim)

    _edit(slot.parameter, with_values, with_zeros, optimizers)


@torch.no_grad()
def _edit(
    parameter: nn.Parameter, edit: TensorEdit, edit_state: TensorEdit | None, optimizers: list[Optimizer]
) -> None:
    """Apply ``edit`` to the values and ``edit_state`` (default: ``edit``) to every state tensor of the old shape."""
    old_shape = parameter.shape
    replacement = nn.Parameter(edit(parameter.detach()).contiguous(), requires_grad=parameter.requires_grad)
    # The gradient of the old shape must not reach the next optimizer step.
    parameter.grad = None
    torch.utils.swap_tensors(parameter, replacement)
    edit_state = edit_state or edit
    for optimizer in optimizers:
        state = optimizer.state.get(parameter)
        if not state:
            continue
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == old_shape and key != "step":
                state[key] = edit_state(value).contiguous()
