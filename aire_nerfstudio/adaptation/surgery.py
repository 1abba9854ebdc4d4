"""Growing and pruning neurons in place: the only file that reads ``optimizer.state``.

Every edit keeps the ``nn.Parameter`` itself: whatever holds it (module, optimizer, gradient clipping, scheduler, a
weak reference) goes on holding the right one, with its hooks and attributes. Only its data become others. Hooks on
autograd's accumulator of its gradient end there (``register_multi_grad_hook``); DistributedDataParallel is refused.

Optimizers that keep a parameter's state in tensors of its shape are known: those of ``torch.optim`` but LBFGS,
Adafactor and Muon. The moments of new neurons start where the optimizer starts them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.neurons import NeuronGroup, Slot
from aire_nerfstudio.shapes import NewColumns, NewRows, PerNew

TensorEdit = Callable[[Tensor], Tensor]
# Of a state tensor, and what the optimizer starts it with.
StateEdit = Callable[[Tensor, float], Tensor]


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
        SurgeryError: shapes that do not fit the group, values that are not finite, a weight that is computed from
            others, or an optimizer whose state cannot be cut. Nothing is changed then.
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
    _check_slots(group, optimizers)
    _append(group.weight, weight, optimizers)
    _append(group.bias, bias, optimizers)
    _append(group.outgoing, outgoing, optimizers)


def prune(group: NeuronGroup, remove: Tensor | Sequence[int], optimizers: Iterable[Optimizer] = ()) -> None:
    """Remove neurons from a layer, in place; survivors keep their values, moments and order.

    Args:
        group: the layer, ``n`` neurons.
        remove: distinct whole numbers in ``[0, n)``, any order; empty is a no-op.
        optimizers: those that may hold the layer's parameters.

    Raises:
        SurgeryError: an index that is none, out of range or repeated, no neuron would be left, a weight that is
            computed from others, or an optimizer whose state cannot be cut. Nothing is changed then.
    """
    device = group.weight.parameter.device
    given = torch.as_tensor(remove, device=device)
    if given.numel() and (given.dtype == torch.bool or given.is_floating_point() or given.is_complex()):
        raise SurgeryError(
            f"{group.name}: what to prune must be whole numbers, indices of neurons; got {given.dtype}"
            f"{' (a mask: take mask.nonzero())' if given.dtype == torch.bool else ''}"
        )
    indices = given.to(torch.long).flatten()
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
    _check_slots(group, optimizers)
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
    optimizers = list(optimizers)
    _check_state("a parameter", parameter, optimizers)
    _edit(parameter, lambda t: t.new_zeros(tuple(shape)), None, optimizers)


def _check_slots(group: NeuronGroup, optimizers: list[Optimizer]) -> None:
    """Whether all of a layer can be edited, before any of it is."""
    wrapped = _in_data_parallel()
    for slot in group.slots():
        if not (isinstance(slot.parameter, nn.Parameter) and slot.parameter.is_leaf):
            raise SurgeryError(
                f"{group.name}: a weight is no parameter but computed from others (torch.nn.utils.prune or "
                "parametrize); make it permanent first: prune.remove, parametrize.remove_parametrizations"
            )
        if id(slot.parameter) in wrapped:
            raise SurgeryError(
                f"{group.name}: its parameters are in a DistributedDataParallel, whose buckets have their shapes; drop "
                "the wrapper before, and wrap the network again after"
            )
        _check_state(group.name, slot.parameter, optimizers)


def _in_data_parallel() -> set[int]:
    """Of all parameters that some DistributedDataParallel averages: it would go on without a word, and not average."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return set()
    wrappers = [o for o in gc.get_objects() if issubclass(type(o), nn.parallel.DistributedDataParallel)]
    return {id(parameter) for wrapper in wrappers for parameter in wrapper.parameters()}


def _check_state(name: str, parameter: nn.Parameter, optimizers: list[Optimizer]) -> None:
    """Whether each optimizer's state of a parameter is numbers and tensors of its shape."""
    for optimizer in optimizers:
        for key, value in optimizer.state.get(parameter, {}).items():
            is_number = value is None or isinstance(value, (int, float)) or (_is_tensor(value) and value.numel() == 1)
            if not is_number and not (_is_tensor(value) and value.shape == parameter.shape):
                raise SurgeryError(
                    f"{name}: {type(optimizer).__name__} keeps {key!r}, which has not the parameter's shape, so it "
                    "cannot be cut with it; take Adam or another optimizer with a moment for each weight"
                )


def _is_tensor(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor)


def _append(slot: Slot, new: Tensor, optimizers: list[Optimizer]) -> None:
    dim = slot.dim

    def with_values(t: Tensor) -> Tensor:
        return torch.cat([t, new.to(t)], dim)

    def with_state(t: Tensor, value: float) -> Tensor:
        return torch.cat([t, torch.full_like(new, value, dtype=t.dtype, device=t.device)], dim)

    _edit(slot.parameter, with_values, with_state, optimizers)


def _value_at_first(optimizer: Optimizer, parameter: nn.Parameter, key: str) -> float:
    """What an optimizer's state is before a parameter's first step."""
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    if isinstance(optimizer, torch.optim.Adagrad) and key == "sum":
        return float(group["initial_accumulator_value"])
    if isinstance(optimizer, torch.optim.Rprop) and key == "step_size":
        return float(group["lr"])
    return 0.0


@torch.no_grad()
def _edit(parameter: nn.Parameter, edit: TensorEdit, edit_state: StateEdit | None, optimizers: list[Optimizer]) -> None:
    """Apply ``edit`` to the values and ``edit_state`` (default: ``edit``) to every state tensor of the old shape."""
    old_shape = parameter.shape
    values = edit(parameter.detach()).contiguous()
    # The gradient of the old shape must not reach the next optimizer step.
    parameter.grad = None
    # As long as a loss from before is alive, autograd keeps the old shape for the parameter, and the next backward
    # would be refused; with data of another type in between it forgets.
    parameter.data = values.new_empty(0, dtype=torch.float32 if values.dtype == torch.float16 else torch.float16)
    parameter.data = values
    for optimizer in optimizers:
        state = optimizer.state.get(parameter)
        if not state:
            continue
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == old_shape and key != "step":
                first = _value_at_first(optimizer, parameter, key)
                state[key] = (edit(value) if edit_state is None else edit_state(value, first)).contiguous()
