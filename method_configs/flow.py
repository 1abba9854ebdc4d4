"""Mean curvature flow: ``aire-flow-siren``, ``aire-flow-finer``."""

from __future__ import annotations

import torch
from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.plugins.types import MethodSpecification

from aire_nerfstudio.data.flow_manager import FlowDataManagerConfig
from aire_nerfstudio.fields.sine_layers import Activation
from aire_nerfstudio.models.flow import FlowModelConfig
from aire_nerfstudio.models.optimizers import FieldAdamConfig
from aire_nerfstudio.models.pipeline import OneViewPipelineConfig
from aire_nerfstudio.models.schedulers import ExponentialDecayConfig
from aire_nerfstudio.models.trainer import AdaptiveTrainerConfig


def _method(activation: Activation) -> MethodSpecification:
    config = AdaptiveTrainerConfig(
        method_name=f"aire-flow-{activation}",
        max_num_iterations=20_000,
        steps_per_eval_batch=1_000,
        steps_per_eval_image=1_000_000,
        steps_per_eval_all_images=1_000_000,
        steps_per_save=2_000,
        mixed_precision=False,
        # Second derivatives bear less rounding: TF32 leaves them three digits.
        matmul_precision="highest",
        pipeline=OneViewPipelineConfig(
            datamanager=FlowDataManagerConfig(), model=FlowModelConfig(activation=activation)
        ),
        optimizers={
            "fields": {
                "optimizer": FieldAdamConfig(lr=1e-4, eps=1e-8, betas=(0.9, 0.999)),
                # The paper's rate is constant.
                "scheduler": ExponentialDecayConfig(final_ratio=1.0),
            }
        },
        machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        viewer=ViewerConfig(websocket_host="127.0.0.1", num_rays_per_chunk=1 << 15),
        vis="viewer",
    )
    return MethodSpecification(
        config=config,
        description=f"AIRe: a surface under mean curvature flow, a {activation.upper()} network over space and time.",
    )


aire_flow_siren = _method("siren")
aire_flow_finer = _method("finer")
