"""Images: ``aire-image-siren``, ``aire-image-finer``, ``aire-image-spder``."""

from __future__ import annotations

import torch
from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.plugins.types import MethodSpecification

from aire_nerfstudio.data.image_manager import ImageDataManagerConfig
from aire_nerfstudio.fields.sine_layers import Activation
from aire_nerfstudio.models.image import ImageModelConfig
from aire_nerfstudio.models.optimizers import FieldAdamConfig
from aire_nerfstudio.models.pipeline import OneViewPipelineConfig
from aire_nerfstudio.models.schedulers import ExponentialDecayConfig
from aire_nerfstudio.models.trainer import AdaptiveTrainerConfig


def _method(activation: Activation) -> MethodSpecification:
    config = AdaptiveTrainerConfig(
        method_name=f"aire-image-{activation}",
        max_num_iterations=20_000,
        steps_per_eval_batch=500,
        steps_per_eval_image=2_500,
        steps_per_eval_all_images=1_000_000,
        steps_per_save=2_500,
        mixed_precision=False,
        pipeline=OneViewPipelineConfig(
            datamanager=ImageDataManagerConfig(), model=ImageModelConfig(activation=activation)
        ),
        optimizers={
            "fields": {
                "optimizer": FieldAdamConfig(lr=5e-4, eps=1e-8, betas=(0.9, 0.999)),
                "scheduler": ExponentialDecayConfig(),
            }
        },
        machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        viewer=ViewerConfig(websocket_host="127.0.0.1", num_rays_per_chunk=1 << 16),
        vis="viewer",
    )
    return MethodSpecification(
        config=config, description=f"AIRe: one image as a {activation.upper()} network that adapts its own size."
    )


aire_image_siren = _method("siren")
aire_image_finer = _method("finer")
aire_image_spder = _method("spder")
