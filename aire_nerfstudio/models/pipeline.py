"""nerfstudio's pipeline: rays shared among processes, and metrics that stay valid JSON when one view is scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from torch import Tensor

from aire_nerfstudio.distributed import share


class _SingleViews(VanillaPipeline):
    """As nerfstudio's, without the spread over views where there is one: it would be NaN, which JSON does not know."""

    def get_average_image_metrics(self, data_loader: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """See nerfstudio; ``get_std`` is ignored where there is one view."""
        if len(data_loader) == 1:
            kwargs["get_std"] = False
            args = args[:3]
        return super().get_average_image_metrics(data_loader, *args, **kwargs)


@dataclass
class SharedRaysPipelineConfig(VanillaPipelineConfig):
    """For tasks that train on a data manager's rays."""

    _target: type = field(default_factory=lambda: SharedRaysPipeline)


class SharedRaysPipeline(_SingleViews):
    """As nerfstudio's; of several processes each renders its share of the rays, of which all draw the same."""

    def get_train_loss_dict(self, step: int) -> Any:
        """See nerfstudio."""
        rays, batch = self.datamanager.next_train(step)
        drawn = len(rays)
        mine = {
            name: share(value) if isinstance(value, Tensor) and len(value) == drawn else value
            for name, value in batch.items()
        }
        outputs = self._model(share(rays))
        metrics = self.model.get_metrics_dict(outputs, mine)
        losses = self.model.get_loss_dict(outputs, mine, metrics)
        _keep_loss(self.model, losses)
        return outputs, losses, metrics


@dataclass
class OneViewPipelineConfig(VanillaPipelineConfig):
    """For tasks that are scored on one view."""

    _target: type = field(default_factory=lambda: OneViewPipeline)


class OneViewPipeline(_SingleViews):
    """As nerfstudio's; the trainer sees its loss."""

    def get_train_loss_dict(self, step: int) -> Any:
        """See nerfstudio."""
        outputs, losses, metrics = super().get_train_loss_dict(step)
        _keep_loss(self.model, losses)
        return outputs, losses, metrics

    @torch.no_grad()
    def get_eval_loss_dict(self, step: int) -> Any:
        """See nerfstudio, which keeps a graph that nobody needs."""
        return super().get_eval_loss_dict(step)


def _keep_loss(model: Any, losses: dict[str, Tensor]) -> None:
    """Let the trainer see the loss before the optimizers use its gradients."""
    model.batch_loss = torch.stack([loss.detach().float() for loss in losses.values()]).sum()
