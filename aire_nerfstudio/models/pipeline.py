"""nerfstudio's pipeline, with metrics that stay valid JSON when there is one view to score."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig


@dataclass
class OneViewPipelineConfig(VanillaPipelineConfig):
    """For tasks that are scored on one view."""

    _target: type = field(default_factory=lambda: OneViewPipeline)


class OneViewPipeline(VanillaPipeline):
    """As nerfstudio's, without the spread over views: of one view it would be NaN, which JSON does not know."""

    @torch.no_grad()
    def get_eval_loss_dict(self, step: int) -> Any:
        """See nerfstudio, which keeps a graph that nobody needs."""
        return super().get_eval_loss_dict(step)

    def get_average_image_metrics(self, data_loader: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """See nerfstudio; ``get_std`` is ignored where there is one view."""
        if len(data_loader) == 1:
            kwargs["get_std"] = False
            args = args[:3]
        return super().get_average_image_metrics(data_loader, *args, **kwargs)
