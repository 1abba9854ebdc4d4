"""NeRF: ``aire-siren``, ``aire-finer``, ``aire-spder``."""

from __future__ import annotations

import torch
from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.plugins.types import MethodSpecification

from aire_nerfstudio.data.blender_scene import BlenderSceneConfig
from aire_nerfstudio.data.rays_manager import RaysDataManagerConfig
from aire_nerfstudio.fields.sine_layers import Activation
from aire_nerfstudio.models.nerf import NerfModelConfig
from aire_nerfstudio.models.optimizers import FieldAdamConfig
from aire_nerfstudio.models.pipeline import SharedRaysPipelineConfig
from aire_nerfstudio.models.schedulers import ExponentialDecayConfig
from aire_nerfstudio.models.trainer import AdaptiveTrainerConfig


def _method(activation: Activation) -> MethodSpecification:
    config = AdaptiveTrainerConfig(
        method_name=f"aire-{activation}",
        max_num_iterations=37_500,
        steps_per_eval_batch=500,
        steps_per_eval_image=2_500,
        steps_per_eval_all_images=1_000_000,
        steps_per_save=2_500,
        mixed_precision=False,
        pipeline=SharedRaysPipelineConfig(
            datamanager=RaysDataManagerConfig(
                dataparser=BlenderSceneConfig(), train_num_rays_per_batch=4096, eval_num_rays_per_batch=4096
            ),
            model=NerfModelConfig(activation=activation),
        ),
        optimizers={"fields": {"optimizer": FieldAdamConfig(lr=2e-4), "scheduler": ExponentialDecayConfig()}},
        machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        viewer=ViewerConfig(websocket_host="127.0.0.1", num_rays_per_chunk=1 << 14),
        vis="viewer",
    )
    return MethodSpecification(
        config=config, description=f"AIRe: NeRF of {activation.upper()} networks that adapt their own size."
    )


aire_siren = _method("siren")
aire_finer = _method("finer")
aire_spder = _method("spder")
