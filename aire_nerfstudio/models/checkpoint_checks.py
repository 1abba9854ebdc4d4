"""What a checkpoint's adaptive model must hold, looked at before anything of it is taken up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aire_nerfstudio.errors import InputError, first_line
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.models.rng import rng_state, set_rng_state

STATE_VERSION = 2
# What every checkpoint of this version has beside the weights.
STATE_TYPES: dict[str, type] = {
    **{"settings": dict, "variant": str, "step": int, "strategy": dict, "history": list, "initial_parameters": int},
    **{"parameters": int, "ema_every": int, "rng": dict},
}


def check_state(state: Mapping[str, Any]) -> None:
    """Refuse a state that training could not take up, before it does.

    Raises:
        InputError: it has another version, or an entry is missing or of another kind.
    """
    if state.get("version") != STATE_VERSION:
        raise InputError(
            f"the checkpoint's adaptation state has version {state.get('version')}; this package reads version "
            f"{STATE_VERSION}: install the release that wrote it"
        )
    for name, kind in STATE_TYPES.items():
        if not isinstance(state.get(name), kind):
            found = type(state[name]).__name__ if name in state else "not there"
            raise InputError(
                f"the checkpoint's {name} is {found}; this package writes a {kind.__name__}: it is damaged"
            )
    if state["step"] < 0 or state["ema_every"] < 1 or state["initial_parameters"] < 1:
        raise InputError("the checkpoint's step, ema_every or initial_parameters is out of range; it is damaged")
    large = state.get("large_widths", [1])  # earlier releases kept none
    if not isinstance(large, list) or not large or not all(isinstance(width, int) and width > 0 for width in large):
        raise InputError(f"the checkpoint's large_widths are {str(large)[:80]}, no widths; it is damaged")
    if not isinstance(state.get("data", ""), str):  # earlier releases kept none
        raise InputError(f"the checkpoint's data are {str(state['data'])[:80]}, no fingerprint; it is damaged")
    if not isinstance(state.get("without_data", {}), dict):
        raise InputError("the checkpoint's without_data is no dict; it is damaged")
    for event in state["history"]:
        if (
            not isinstance(event, dict)
            or not isinstance(event.get("event"), str)
            or not isinstance(event.get("step"), int)
        ):
            raise InputError("the checkpoint's history has an entry that is no event; it is damaged")
    present = rng_state()
    try:
        set_rng_state(state["rng"])
    except Exception as error:
        raise InputError(f"the checkpoint's random generators cannot be restored ({first_line(error)})") from error
    finally:
        set_rng_state(present)


def check_settings(mine: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose settings, which no shape shows, are not this run's.

    Raises:
        InputError: naming the first that differs.
    """
    for name in sorted(mine.keys() | given.keys()):
        if mine.get(name) != given.get(name):
            if name in ("aspect", "channels"):
                raise InputError(
                    f"the checkpoint was trained on a picture of {name} {given.get(name)} and --data has "
                    f"{mine.get(name)}; give the picture that it was trained on, or train anew"
                )
            is_option = name in ("first_omega", "hidden_omega")
            option = f"add --pipeline.model.{name.replace('_', '-')} {given.get(name)}"
            raise InputError(
                f"the checkpoint was trained with {name} {given.get(name)} and this run has {mine.get(name)}; "
                f"{option if is_option else 'use the method and the options that wrote it'}"
            )


def check_names(expected: Iterable[str], given: Iterable[str]) -> None:
    """Refuse a state dict with entries missing or unknown: nerfstudio would go on without them in silence.

    Raises:
        InputError: counting them and naming the first.
    """
    mine, theirs = set(expected), set(given)
    if mine != theirs:
        missing, extra = sorted(mine - theirs), sorted(theirs - mine)
        raise InputError(
            f"the checkpoint does not fit this model: {len(missing)} entries missing {missing[:2]}, {len(extra)} "
            f"unknown {extra[:2]}"
        )


def check_chain(weights: Mapping[str, Any], prefix: str, count: int, in_features: int, out_features: int) -> set[str]:
    """Refuse layers that make no network, before a width of theirs is used to make room.

    Args:
        weights: by name, ``PREFIX.INDEX.weight`` and ``.bias``.
        prefix: of the names.
        count: layers, the output's included.
        in_features: coordinates.
        out_features: outputs.

    Returns:
        The names.

    Raises:
        InputError: shapes that do not fit each other or the task, or values that are not finite.
    """
    width, names = in_features, set()
    for index in range(count):
        name = f"{prefix}.{index}"
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        is_chain = isinstance(weight, Tensor) and isinstance(bias, Tensor) and weight.dim() == 2
        if is_chain:
            is_chain = weight.shape[1] == width and bias.shape == weight.shape[:1] and len(bias) > 0
        if not is_chain or (index == count - 1 and len(bias) != out_features):
            found = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
            raise InputError(f"the checkpoint's {name}.weight is {found}; it does not fit the layer before or the task")
        if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
            raise InputError(f"the checkpoint's {name} has values that are not finite; take an earlier checkpoint")
        width = len(bias)
        names |= {f"{name}.weight", f"{name}.bias"}
    return names


def check_weights(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Refuse weights that make no network of ``model``'s kind: only the widths of its sine layers may differ.

    Raises:
        InputError: a shape that does not fit its neighbour's or the task, or a value that is not finite.
    """
    free: set[str] = set()
    for prefix, network in model.named_modules():
        if isinstance(network, SineMLP):
            name = f"{prefix}.layers"
            free |= check_chain(state_dict, name, len(network.layers), network.in_features, network.out_features)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        given = state_dict.get(name)
        if given is None:
            continue  # a buffer that is not saved
        if not isinstance(given, Tensor) or (name not in free and given.shape != tensor.shape):
            raise InputError(
                f"the checkpoint's {name} is {getattr(given, 'shape', given)}; it must be {list(tensor.shape)}"
            )
        if given.is_floating_point() and not torch.isfinite(given).all():
            raise InputError(f"the checkpoint's {name} has values that are not finite; take an earlier checkpoint")
