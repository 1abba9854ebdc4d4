"""One optimizer step of nerfstudio's trainer, with a look at the gradients before they are used."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from nerfstudio.engine.trainer import Trainer
from torch import Tensor

Outputs = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]


def optimizer_step(trainer: Trainer, step: int, is_sound: Callable[[Tensor, Sequence[Tensor]], bool]) -> Outputs | None:
    """What ``Trainer.train_iteration`` of nerfstudio 1.1.5 does, with a question between backward and step.

    Args:
        trainer: set up.
        step: number of the optimizer step.
        is_sound: asked with the loss ``[]`` and the parameters about to be changed, gradients there; where it says no,
            no parameter is changed.

    Returns:
        Loss, its parts and metrics; None where the question was answered with no.
    """
    optimizers, accumulated = trainer.optimizers, trainer.gradient_accumulation_steps
    optimizers.zero_grad_some([name for name in optimizers.parameters if step % accumulated[name] == 0])
    with torch.autocast(device_type=trainer.device.split(":")[0], enabled=trainer.mixed_precision):
        _, losses, metrics = trainer.pipeline.get_train_loss_dict(step=step)
        loss = functools.reduce(torch.add, losses.values())
    trainer.grad_scaler.scale(loss).backward()  # type: ignore[attr-defined]
    due = [name for name in optimizers.parameters if step % accumulated[name] == accumulated[name] - 1]
    if not is_sound(loss.detach(), [p for name in due for p in optimizers.parameters[name]]):
        return None
    optimizers.optimizer_scaler_step_some(trainer.grad_scaler, due)
    if trainer.config.log_gradients:
        norms = {name: p.grad.norm() for name, p in trainer.pipeline.model.named_parameters() if p.grad is not None}
        metrics.update({f"Gradients/{name}": norm for name, norm in norms.items()})
        metrics["Gradients/Total"] = functools.reduce(torch.add, norms.values(), torch.zeros_like(loss))
    scale = trainer.grad_scaler.get_scale()
    trainer.grad_scaler.update()
    # A scale that was lowered means that the step was left out.
    if scale <= trainer.grad_scaler.get_scale():
        optimizers.scheduler_step_all(step)
    return loss, losses, metrics
