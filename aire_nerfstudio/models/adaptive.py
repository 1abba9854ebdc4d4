"""A nerfstudio model whose network changes size while it trains."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn

from aire_nerfstudio import distributed
from aire_nerfstudio.adaptation import surgery
from aire_nerfstudio.adaptation.base import Strategy
from aire_nerfstudio.adaptation.variants import LATTICE_LIMITS, make_strategy, starting_widths
from aire_nerfstudio.data.fingerprint import FINGERPRINT
from aire_nerfstudio.errors import InputError, exit_on_bad_input, first_line
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.fields.weight_average import WeightAverage
from aire_nerfstudio.models.adaptation_run import AdaptationRun
from aire_nerfstudio.models.adaptive_config import AdaptiveModelConfig
from aire_nerfstudio.models.by_hand import ByHand
from aire_nerfstudio.models.checkpoint_checks import (
    STATE_VERSION,
    check_names,
    check_settings,
    check_state,
    check_weights,
)
from aire_nerfstudio.models.part_views import PartViews
from aire_nerfstudio.models.portraits import portraits
from aire_nerfstudio.models.rng import rng_state
from aire_nerfstudio.notices import warn
from aire_nerfstudio.ops import tcnn
from aire_nerfstudio.report.portrait import Portrait
from aire_nerfstudio.viewer.panel import AdaptationPanel

# Points at which a strategy sees the layers' outputs.
PROBE_POINTS = 8192


class AdaptiveModel(PartViews):
    """Base of the models whose network changes size.

    A subclass makes ``self.field`` in :meth:`populate_modules`, calls :meth:`start_adaptation`, and gives the hooks of
    :class:`~aire_nerfstudio.models.task.AdaptiveTask`.
    """

    @exit_on_bad_input
    def __init__(self, config: AdaptiveModelConfig, **kwargs: Any) -> None:
        config.check()  # of a trainer's it has been; others make models, too
        super().__init__(config, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """For copies, which nobody trains, steers or watches."""
        left = ("_trainer", "panel")
        state = {name: value for name, value in super().__getstate__().items() if name not in left}
        # What draws training data would take all of them along.
        state.update({name: None for name in ("_training_batch", "_training_points") if name in state})
        metadata = {name: value for name, value in (self.kwargs.get("metadata") or {}).items() if not callable(value)}
        state["kwargs"] = {**self.kwargs, "metadata": metadata}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.panel = AdaptationPanel(self.adaptation, self.by_hand)

    # --- set-up ----------------------------------------------------------------------------------------------------

    def metadata(self) -> dict[str, Any]:
        """What the data manager says of the data.

        Raises:
            InputError: nothing was given.
        """
        given = self.kwargs.get("metadata")
        if not given:
            raise InputError(
                f"a {type(self).__name__} needs to know what it learns: give setup(metadata=...) the metadata of its "
                "data manager's train_dataset"
            )
        return given

    def starting_widths(self, large: Sequence[int], dims: int) -> tuple[int, ...]:
        """Widths with which the variant begins, given the large network's and its number of coordinates."""
        self._large, self._dims = tuple(large), dims
        limit = self.config.lattice_limit
        self._lattice_limit = LATTICE_LIMITS[dims] if limit is None else limit
        return starting_widths(self.config.variant, self.config.adaptation, large, dims, self._lattice_limit)

    def start_adaptation(self) -> None:
        """Choose the strategy and make the weight average. Call once ``self.field`` exists."""
        self.adaptation = AdaptationRun(self, self._make_strategy())
        self.by_hand = ByHand(self, self.adaptation)
        self.panel = AdaptationPanel(self.adaptation, self.by_hand)
        # In a captured step: the penalty's weight, where the step finds it.
        self.penalty_weight_there: Tensor | None = None
        # Sum of the present batch's losses; whoever draws the batch sets it.
        self.batch_loss = torch.zeros(())
        self.batch_error: Tensor | None = None
        # Of several processes: whether the first one is asked for something.
        self._is_asked: Tensor | None = None
        self.answers_requests = self._takes_requests = True
        self._steps_per_iteration = 1
        for network in (m for m in self.field.modules() if isinstance(m, SineMLP)):
            try:
                network.evaluator = tcnn.evaluator(network.activation)
            except tcnn.TcnnUnavailableError as error:
                raise InputError(str(error)) from error
        self._average = WeightAverage(self.config.ema_decay, self.config.ema_every)
        self.field_average = None
        if self.config.ema_decay > 0:
            self.field_average = copy.deepcopy(self.field).requires_grad_(False)

    def _make_strategy(self) -> Strategy:
        return make_strategy(
            self.config.variant,
            self.config.adaptation,
            self._large,
            self._dims,
            self.adaptive_groups(self.field)[-1].next_bias.numel(),
            self._lattice_limit,
            self.adaptive_network(self.field).first_omega,
        )

    # --- a step as a CUDA graph ------------------------------------------------------------------------------------

    def graph_batch(self, datamanager: Any, step: int) -> dict[str, Tensor] | None:
        """What a captured step gets at each replay, by name; None where this step cannot be a graph."""
        points, batch = datamanager.next_train(step)
        return {"points": points, **batch}

    def graph_outputs(self, batch: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Outputs for :meth:`graph_batch`, and what of it loss and metrics ask for; captured, without a wait."""
        rest = dict(batch)
        return self(rest.pop("points")), rest

    # No property: nerfstudio's viewer reads all of them when it begins.
    def graph_revision(self) -> Hashable:
        """Changes with whatever may change the loss besides batch, parameters and the penalty's weight."""
        return self.adaptation.revision

    # --- training --------------------------------------------------------------------------------------------------

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        """One group, ``fields``."""
        return {"fields": list(self.field.parameters())}

    @exit_on_bad_input
    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """Adaptation before each step, weight average after it, a last word after the run."""
        optimizers = attributes.optimizers
        trainer = cast(Any, attributes.trainer)
        if optimizers is None or trainer is None:
            raise TypeError("an adaptive model needs the trainer's optimizers to change with it")
        self._trainer = trainer
        # nerfstudio's own trainer, and others', make one step an iteration.
        each = self._steps_per_iteration = getattr(trainer.config, "steps_per_iteration", 1)
        self.adaptation.log.steps_per_iteration = each
        total = getattr(trainer, "total_steps", None) or trainer.config.max_num_iterations * each
        self._begin(total, list(optimizers.optimizers.values()))

        # nerfstudio's steps are iterations; within one of several steps the trainer calls both.
        def before(step: int) -> None:
            self.before_step(step * each)

        def after(step: int) -> None:
            self.after_step(step * each + each - 1)

        return [
            TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], before),
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], after),
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN], self._after_run),
        ]

    def _begin(self, total_steps: int, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        saved = self.adaptation.saved
        if saved is None:
            self._average.fit(total_steps)
        elif saved.get("data", "") not in ("", self._data):
            warn(
                "the checkpoint was trained on other data than these (or other pixels, views or "
                "points of them are held out); this run goes on with these"
            )
        self.adaptation.begin(total_steps, optimizers)
        self.print_plan()

    @property
    def _data(self) -> str:
        """What the training data are told from others by; empty where nobody gave it."""
        return str((self.kwargs.get("metadata") or {}).get(FINGERPRINT, ""))

    def print_plan(self) -> None:
        """Say what is to come."""
        self.adaptation.print_plan()

    def before_step(self, step: int) -> None:
        """What is due before an optimizer step; steps count from the start of the run."""
        if self.adaptation.before_step(step) and distributed.count() > 1:
            # They decide alike, but for rounding on their devices; what the first decided counts.
            self._trainer.follow_first()

    def is_about_to_change(self) -> bool:
        """Whether, after the present step, the schedule or a person changes the architecture."""
        # What is asked for after this look waits for the next one.
        self._takes_requests = self.by_hand.is_waiting
        return self.adaptation.is_due_next() or self._takes_requests

    def adaptation_loss(self, error: Tensor | None = None) -> Tensor:
        """The strategy's regulariser at the present step, ``[]``.

        Args:
            error: mean squared error of the batch, values in [0, 1], ``[]``; kept for the strategy. None where the
                task has no such thing.
        """
        self.batch_error = None if error is None else error.detach().clone()
        return self.adaptation.penalty(self.penalty_weight_there)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """What follows an optimizer step: what the strategy allows, the weight average, and what is asked for."""
        # Neither Adam's fused form nor a graph tells that weights have changed, and evaluations look there.
        torch.autograd.graph.increment_version(list(self.field.parameters()))
        self.adaptation.constrain(self.batch_error)
        if self.field_average is not None:
            self._average.update(self.field_average, self.field, step)
        # Where a checkpoint can be written; not among steps that are made again.
        if (step + 1) % self._steps_per_iteration == 0 and self.answers_requests:
            self._answer(step + 1)
        self.panel.follow()

    def _answer(self, step: int) -> None:
        """Do what was asked for by hand; of several processes the first is asked, and all know of it by now."""
        if distributed.count() == 1:
            if self._takes_requests:
                self.by_hand.answer(step)
        elif self._is_asked is not None and bool(self._is_asked):
            self.by_hand.answer(step)
            self._trainer.follow_first()

    def to_average(self) -> list[Tensor]:
        """What all processes need to know of a step beside its gradients; see :mod:`~aire_nerfstudio.distributed`."""
        self._is_asked = torch.tensor(float(self.by_hand.is_waiting), device=self.device)
        return [self._is_asked, *([] if self.batch_error is None else [self.batch_error])]

    def _after_run(self, step: int) -> None:
        """By now the last checkpoint is on disk.

        Raises:
            InputError: a target was asked for and is not reached.
        """
        distributed.wait_for_all()  # the first one saves and reports
        self.by_hand.refuse("the training is over")
        self.panel.finish()
        frozen, left = self.adaptation.frozen_steps, self.adaptation.not_reached()
        if frozen and left:
            CONSOLE.log(f"the schedule stood still for {frozen:,} steps; not reached: {', '.join(left)}")
        missed = self.adaptation.missed_target()
        if missed is not None:
            raise InputError(f"{missed}. The network as it is was saved")

    # --- after training --------------------------------------------------------------------------------------------

    def portraits(self, datamanager: Any, count: int, longest_side: int | None) -> list[Portrait]:
        """What a report shows; see :func:`~aire_nerfstudio.models.portraits.portraits`."""
        return portraits(self, datamanager, count, longest_side)

    # --- checkpoint ------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """Strategy, history and random generators: tensors and plain Python values only."""
        saved = self.adaptation.saved
        return {
            "version": STATE_VERSION,
            "settings": self.fixed_settings(),
            "variant": self.config.variant,
            "large_widths": list(self._large),
            "data": self._data,
            "without_data": self.without_data(),
            "ema_every": self._average.every,
            **self.adaptation.to_dict(),
            # Right after a resume, those that the checkpoint holds: set-up has drawn since.
            "rng": rng_state() if saved is None else saved["rng"],
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Keep what :meth:`get_extra_state` gave until training takes it up."""
        check_state(state)
        check_settings(self.fixed_settings(), state["settings"])
        # The size that the variant aims at follows from the widths that the run was given.
        large = tuple(state.get("large_widths", self._large))
        if large != self._large and len(large) == len(self._large):
            self._large = large
            self.adaptation.strategy = self._make_strategy()
        self.adaptation.load_dict(state)
        self._average.every = int(state["ema_every"])

    @exit_on_bad_input
    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Take the shapes of ``state_dict`` first: they are the architecture. See ``torch.nn.Module``.

        Raises:
            InputError: entries are missing, unknown, or not what this package writes.
        """
        check_names(self.state_dict(), state_dict)
        check_weights(self, state_dict)
        for name, parameter in self.named_parameters():
            surgery.resize_to(parameter, state_dict[name].shape)
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError, OverflowError) as error:
            raise InputError(
                f"the checkpoint's entries are not those that this package writes ({first_line(error)}); it is damaged"
            ) from error
