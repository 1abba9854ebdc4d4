"""Trainings of every task that take a second or two, through every stage, in the process that calls."""

import copy
import os
import signal
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch

STEPS, SAVE = 48, 8
SCHEDULE = {"unit": "steps", "densify_at": 11, "densify_count": 4, "decay_start": 17, "prune_at": 34}
FIELD = {"hidden_omega": 10.0, "first_omega": 20.0}
SURFACE = {"on_surface": 120, "off_surface": 120, "pool": 600}
TASKS = {
    "image": ("image", "aire_image_siren", {"widths": (14, 12)}, {"train_num_rays_per_batch": 240}),
    "nerf": (
        *("nerf", "aire_siren"),
        {
            **{"density_widths": (14, 12), "colour_widths": (11,), "n_features": 7, "grid_resolution": 16},
            **{"max_steps_per_ray": 48, "grid_warmup": 20},
        },
        {"train_num_rays_per_batch": 96},
    ),
    "sdf": ("sdf", "aire_sdf_finer", {"widths": (14, 12), **FIELD}, SURFACE),
    "flow": ("flow", "aire_flow_siren", {"widths": (14, 12), **FIELD}, {**SURFACE, "space_time": 240}),
}


def tiny_config(task, folder, model=(), **trainer):
    """The configuration of ``ns-train``'s method, made small; ``model`` and ``trainer`` set what they name."""
    room, name, sizes, samples = TASKS[task]
    config = copy.deepcopy(getattr(import_module(f"aire_nerfstudio.method_configs.{room}"), name).config)
    config.output_dir, config.experiment_name, config.timestamp = Path(folder), "tiny", "run"
    config.vis, config.report, config.quiet = "tensorboard", False, True
    config.logging.local_writer.enable, config.logging.profiler = False, "none"
    config.max_num_iterations, config.steps_per_save, config.save_only_latest_checkpoint = STEPS, SAVE, False
    config.steps_per_eval_batch, config.steps_per_eval_image = 7, 1_000_000
    config.machine.device_type = "cpu"
    for key, value in {**sizes, "ema_every": 2, **dict(model)}.items():
        setattr(config.pipeline.model, key, value)
    layers = {"prune_layers": (0, 1), "prune_fraction": 0.4}
    config.pipeline.model.adaptation = replace(config.pipeline.model.adaptation, **SCHEDULE, **layers)
    for key, value in samples.items():
        setattr(config.pipeline.datamanager, key, value)
    for key, value in trainer.items():
        setattr(config, key, value)
    return config


def train(config, seed=42):
    """As ``ns-train`` does in one process; the trainer."""
    from nerfstudio.scripts.train import _set_random_seed

    _set_random_seed(seed)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    return trainer


def checkpoints(config):
    """Files of the run, the last one last."""
    return sorted(config.get_checkpoint_dir().glob("step-*.ckpt"))


def load(path):
    """A checkpoint, as plain data."""
    return torch.load(path, map_location="cpu", weights_only=True)


def differences(a, b, where=""):
    """Names of what differs, to the bit, between two nests of tensors and plain data."""
    if isinstance(a, torch.Tensor):
        is_alike = a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan())
        return [] if is_alike and torch.equal(a[~a.isnan()], b[~b.isnan()]) else [where]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{where}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [d for k in a for d in differences(a[k], b[k], f"{where}/{k}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{where}: {len(a)} and {len(b)}"]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}/{i}")]
    return [] if a == b else [where]


def kill_at(moment, number):
    """Have this process killed, as by the machine, at a moment of the training to come.

    Args:
        moment: ``before`` or ``after`` the optimizer step ``number``; or while a checkpoint is written (``save``) or
            just before it gets its name (``name``), that after ``number`` or more steps.
        number: see there.
    """
    from aire_nerfstudio.models import adaptive, trainer

    def killing(function, is_time):
        def wrapped(*args, **kwargs):
            if is_time(*args, **kwargs):
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    model = adaptive.AdaptiveModel
    if moment == "before":
        model.before_step = killing(model.before_step, lambda _, step: step == number)
    elif moment == "after":
        model.after_step = killing(model.after_step, lambda _, step: step == number)
    else:
        save = torch.save

        def interrupted(state, path, *args, **kwargs):
            save(state, path, *args, **kwargs)
            if isinstance(path, Path) and state["step"] >= number:
                if moment == "save":
                    os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        trainer.torch.save = interrupted
