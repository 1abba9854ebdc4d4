"""What of a trainer's configuration can be judged before data are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig

from aire_nerfstudio import distributed
from aire_nerfstudio.data.image_manager import ImageDataManagerConfig
from aire_nerfstudio.data.surface_manager import SurfaceDataManagerConfig
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.models.adaptive_config import AdaptiveModelConfig
from aire_nerfstudio.models.optimizers import FieldAdamConfig
from aire_nerfstudio.notices import warn
from aire_nerfstudio.report.facts import CHECKPOINTS

if TYPE_CHECKING:
    from aire_nerfstudio.models.trainer import AdaptiveTrainerConfig


DEVICES = ("cpu", "cuda")
# Of nerfstudio's data managers: how rays are drawn through pictures.
ABOUT_RAYS = ("patch_size", "camera_res_scale_factor")


def check_without_rays(manager: VanillaDataManagerConfig) -> None:
    """Refuse what only rays through pictures would heed, where none are drawn.

    Raises:
        InputError: naming the first such setting.
    """
    for name in ABOUT_RAYS:
        if getattr(manager, name) != getattr(VanillaDataManagerConfig, name):
            raise InputError(
                f"--pipeline.datamanager.{name.replace('_', '-')} is {getattr(manager, name)}; no rays through "
                "pictures are drawn for this task: leave it out"
            )


def advise(config: AdaptiveTrainerConfig) -> None:
    """Warn of what trains as it should, but slowly for no gain."""
    model = config.pipeline.model
    is_on_cuda = config.machine.device_type == "cuda" and torch.cuda.is_available()
    if is_on_cuda and config.matmul_precision == "medium" and not getattr(model, "cuda_graph", True):
        warn(
            "--matmul-precision is medium and steps are not graphs: the host launches its kernels more slowly than "
            "a GPU runs high's; add --pipeline.model.cuda-graph True, or leave medium out"
        )


def check_trainer(config: AdaptiveTrainerConfig) -> None:
    """Refuse what cannot train, or not here.

    Raises:
        InputError: naming the first such setting.
    """
    kind, manager = config.machine.device_type, config.pipeline.datamanager
    counts = {
        "--max-num-iterations": config.max_num_iterations,
        "--steps-per-iteration": config.steps_per_iteration,
        "--logging.steps-per-log": config.logging.steps_per_log,
        "--pipeline.datamanager.train-num-rays-per-batch": getattr(manager, "train_num_rays_per_batch", 1),
        **{f"--gradient-accumulation-steps {name}": n for name, n in config.gradient_accumulation_steps.items()},
    }
    for option, count in counts.items():
        if count < 1:
            raise InputError(f"{option} is {count}; it must be at least 1")
    for name in config.gradient_accumulation_steps:
        if name not in config.optimizers:
            raise InputError(
                f"--gradient-accumulation-steps names {name!r}; it must be one of {', '.join(config.optimizers)}"
            )
    if config.relative_model_dir != Path(CHECKPOINTS):
        raise InputError(
            f"--relative-model-dir is {config.relative_model_dir}; reports, resuming and aire- commands look for "
            f"checkpoints in {CHECKPOINTS}: leave it out"
        )
    if isinstance(manager, (ImageDataManagerConfig, SurfaceDataManagerConfig)):
        check_without_rays(manager)
    if isinstance(manager, SurfaceDataManagerConfig):
        manager.check_training()
    if kind not in DEVICES:
        raise InputError(f"--machine.device-type is {kind}; it must be one of {', '.join(DEVICES)}")
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
