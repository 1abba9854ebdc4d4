"""What of a trainer's configuration can be judged before data are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from aire_nerfstudio import distributed
from aire_nerfstudio.data.surface_manager import SurfaceDataManagerConfig
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.models.adaptive_config import AdaptiveModelConfig
from aire_nerfstudio.models.optimizers import FieldAdamConfig

if TYPE_CHECKING:
    from aire_nerfstudio.models.trainer import AdaptiveTrainerConfig


def check_trainer(config: AdaptiveTrainerConfig) -> None:
    """Refuse what cannot train, or not here.

    Raises:
        InputError: naming the first such setting.
    """
    if config.max_num_iterations < 1:
        raise InputError(f"--max-num-iterations is {config.max_num_iterations}; it must be at least 1")
    if config.steps_per_iteration < 1:
        raise InputError(f"--steps-per-iteration is {config.steps_per_iteration}; it must be at least 1")
    kind, rays = config.machine.device_type, getattr(config.pipeline.datamanager, "train_num_rays_per_batch", 1)
    if rays < 1:
        raise InputError(f"--pipeline.datamanager.train-num-rays-per-batch is {rays}; it must be at least 1")
    if isinstance(config.pipeline.datamanager, SurfaceDataManagerConfig):
        config.pipeline.datamanager.check_training()
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--machine.device-type is cuda, and torch finds no CUDA device; use cpu, or look at its driver"
        )
    model, accumulates = config.pipeline.model, any(n > 1 for n in config.gradient_accumulation_steps.values())
    if isinstance(model, AdaptiveModelConfig) and model.cuda_graph:
        whys = {
            "--gradient-accumulation-steps above 1: a graph's gradients are written anew at each replay and cannot "
            "be added up": accumulates,
            "--mixed-precision True: nerfstudio scales the loss between backward and update, which are one graph; "
            "--matmul-precision medium has float16 products": config.mixed_precision,
            "--use-grad-scaler True: it scales the loss between backward and update": config.use_grad_scaler,
            "an optimizer's max-norm: gradients are clipped between backward and update": any(
                group["optimizer"].max_norm is not None for group in config.optimizers.values()
            ),
            "--log-gradients True: they are not seen between backward and update": config.log_gradients,
        }
        for why in (why for why, is_so in whys.items() if is_so):
            raise InputError(f"cuda_graph is True and {why}; leave one of them out")
    for group in config.optimizers.values():
        if isinstance(group["optimizer"], FieldAdamConfig):
            group["optimizer"].check()
    if isinstance(model, AdaptiveModelConfig):
        model.check()
        model.check_training(kind)
    if distributed.count() > 1 and accumulates:
        raise InputError(
            "--gradient-accumulation-steps is above 1 with several processes: some adaptations would see gradients "
            "that are not averaged yet; leave it out, the processes' shares are smaller as it is"
        )
    if not 0 <= config.recovery_rate < 1:
        raise InputError(f"--recovery-rate is {config.recovery_rate}; it must lie in [0, 1)")
