"""Everything that a training consists of, as one checkpoint holds it: taken and put back."""

from __future__ import annotations

import copy
from typing import Any, cast

import numpy as np
from nerfstudio.engine.trainer import Trainer

from aire_nerfstudio.models.adaptive import AdaptiveModel


def training_state(trainer: Trainer, step: int) -> dict[str, Any]:
    """What a checkpoint after iteration ``step`` holds: tensors, still the trainer's own, and plain data.

    Schedulers of nerfstudio's make learning rates of NumPy's, which nothing that trusts no checkpoint reads.
    """
    return {
        "step": step,
        "pipeline": trainer.pipeline.state_dict(),
        "optimizers": {name: _plain(o.state_dict()) for name, o in trainer.optimizers.optimizers.items()},
        "schedulers": {name: _plain(s.state_dict()) for name, s in trainer.optimizers.schedulers.items()},
        "scalers": trainer.grad_scaler.state_dict(),
    }


def _plain(values: Any) -> Any:
    """NumPy's numbers as Python's, in a nest of dicts and lists."""
    if isinstance(values, dict):
        return {name: _plain(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(_plain(value) for value in values)
    return values.item() if isinstance(values, np.generic) else values


def restore_training(trainer: Trainer, state: dict[str, Any]) -> None:
    """Go back, in the midst of training, to what :func:`training_state` gave; random generators included."""
    # Optimizers keep the tensors they are given and change them.
    state = copy.deepcopy(state)
    for parameters in trainer.optimizers.parameters.values():
        for parameter in parameters:
            parameter.grad = None
    trainer.pipeline.load_state_dict(state["pipeline"])
    trainer.optimizers.load_optimizers(state["optimizers"])
    trainer.optimizers.load_schedulers(state["schedulers"])
    trainer.grad_scaler.load_state_dict(state["scalers"])
    cast(AdaptiveModel, trainer.pipeline.model).adaptation.take_up()


def lower_learning_rates(trainer: Trainer, factor: float) -> dict[str, float]:
    """Multiply all learning rates, of now and of the schedules to come; the new ones by group of parameters."""
    for optimizer in trainer.optimizers.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] *= factor
            if "initial_lr" in group:
                group["initial_lr"] *= factor
    for scheduler in trainer.optimizers.schedulers.values():
        scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
    return {name: o.param_groups[0]["lr"] for name, o in trainer.optimizers.optimizers.items()}
