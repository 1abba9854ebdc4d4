"""Optimizer steps as CUDA graphs: what nerfstudio's trainer does in a step, without the time that it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from aire_nerfstudio import distributed
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.models.adaptive import AdaptiveModel
from aire_nerfstudio.ops.graphed import GraphedStep, Stepped, Terms

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import Trainer

# What a model keeps of a step's batch for its strategy, among what is measured.
BATCH_ERROR = "batch error"


class GraphedTraining:
    """Takes a task's steps from a trainer.

    Of several processes each computes gradients so; what follows them stays nerfstudio's.

    Args:
        trainer: set up; its model says what a step's batch is, and what of (``graph_batch``, ``graph_outputs``).
    """

    def __init__(self, trainer: Trainer) -> None:
        self._pipeline, self._model = trainer.pipeline, cast(AdaptiveModel, trainer.pipeline.model)
        optimizers = list(trainer.optimizers.optimizers.values())
        if len(optimizers) != 1:
            raise InputError(
                f"cuda_graph is True, and {len(optimizers)} groups of parameters are trained, not one; leave it out"
            )
        self._names: tuple[str, ...] = ()
        self._step = GraphedStep(self._model.field, self._loss, optimizers[0] if distributed.count() == 1 else None)

    @property
    def updates(self) -> bool:
        """Whether a step changes the parameters; else it leaves their gradients to the optimizers."""
        return self._step.updates

    def step(self, number: int) -> Stepped | None:
        """The optimizer step ``number``; None where it cannot be a graph."""
        model = self._model
        batch = model.graph_batch(self._pipeline.datamanager, number)
        if batch is None or not self._step.can_step(*batch.values()):
            return None
        self._names = tuple(batch)
        stepped = self._step(
            *batch.values(), weight=model.adaptation.penalty_weight, reads=model.adaptation.penalty_reads(),
            revision=(model.graph_revision(), self._names),
        )  # fmt: skip
        metrics = dict(stepped.others)
        model.batch_loss, model.batch_error = stepped.total, metrics.pop(BATCH_ERROR, None)
        return replace(stepped, others=metrics)

    def _loss(self, field: nn.Module, weight: Tensor | None, *values: Tensor) -> Terms:
        model = self._model
        model.penalty_weight_there = weight
        try:
            # As nerfstudio's pipeline does; the model finds its field's parameters replaced.
            outputs, batch = model.graph_outputs(dict(zip(self._names, values, strict=True)))
            metrics = model.get_metrics_dict(outputs, batch)
            losses = model.get_loss_dict(outputs, batch, metrics)
        finally:
            model.penalty_weight_there = None
        kept = {} if model.batch_error is None else {BATCH_ERROR: model.batch_error}
        return losses, {**metrics, **kept}


def outputs_of(stepped: Stepped) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, its parts and metrics as nerfstudio's trainer gives them, to be kept."""
    metrics = stepped.others
    values = iter(torch.stack([stepped.total, *stepped.losses.values(), *metrics.values()]).unbind())
    return next(values), {name: next(values) for name in stepped.losses}, {name: next(values) for name in metrics}
