"""What every adaptive nerfstudio model shares: schedule, surgery, weight average, checkpoint."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE
from rich.table import Table
from torch import Tensor, nn

from aire_nerfstudio import distributed
from aire_nerfstudio.adaptation import surgery
from aire_nerfstudio.adaptation.aire import AireState
from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.aire_config import check as check_schedule
from aire_nerfstudio.adaptation.base import Probe, Report, Strategy, widths
from aire_nerfstudio.adaptation.control import Refused, Request, Standing
from aire_nerfstudio.adaptation.variants import LATTICE_LIMITS, Variant, make_strategy, starting_widths
from aire_nerfstudio.errors import InputError, exit_on_bad_input, first_line
from aire_nerfstudio.fields.neurons import NeuronGroup
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.models.part_views import PartViews
from aire_nerfstudio.models.portraits import portraits
from aire_nerfstudio.models.removal_check import RemovalCheck
from aire_nerfstudio.models.requests import RequestQueue
from aire_nerfstudio.models.rng import rng_state, set_rng_state
from aire_nerfstudio.ops import tcnn
from aire_nerfstudio.record import RunRecord, Snapshot
from aire_nerfstudio.report.portrait import Portrait
from aire_nerfstudio.viewer.panel import AdaptationPanel
from aire_nerfstudio.viewer.watched import Done

STATE_VERSION = 2
# The event of a training that went back to its last good state.
RETURN = "return"
# Settings of any task that count something, and the least they can be; and those that must be above 0.
LEAST = {
    **dict.fromkeys(("widths", "density_widths", "colour_widths", "n_features", "grid_every", "max_steps_per_ray"), 1),
    **{"ema_every": 1, "grid_resolution": 1, "lattice_limit": 1, "grid_warmup": 0, "eval_resolution": 2},
}
POSITIVE = ("first_omega", "hidden_omega", "first_bias_scale", "density_threshold", "alpha")
# Points at which a strategy sees the layers' outputs.
PROBE_POINTS = 8192


@dataclass
class AdaptiveModelConfig(ModelConfig):
    """Settings that all adaptive models share."""

    variant: Variant = "aire"
    """aire; aire_early, with all moments in the first third of the run; aire_rounds, which adds more and removes in
    rounds from all layers, to the same number of parameters; aire's ablations weight_decay and no_decay;
    large: the starting network, never changed; small: the final size from the start; and the baselines depgraph, rigl
    (sparse, not smaller) and zell (a lattice of frequencies)."""
    adaptation: AireConfig = field(default_factory=AireConfig)
    """When and how much the network changes."""
    lattice_limit: int | None = None
    """Largest frequency of the variant zell's lattice; None: 19 in two dimensions, 4 in three."""
    cuda_graph: bool = False
    """Whether a step, the optimizer's update among it, is one CUDA graph: on CUDA launching kernels of a small network
    takes longer than running them. With --steps-per-iteration, nerfstudio's own work is left out as well."""
    ema_decay: float = 0.95
    """Decay of the weight average used for evaluation and rendering, in [0, 1); 0: no average."""
    ema_every: int | None = None
    """Optimizer steps between two updates of the weight average; None: 1/1500 of the run, the paper's epoch."""
    shows_parts: bool = False
    """Render also what the strong neurons alone give (important), what the weak ones give (unimportant), and the mean
    input frequency that drives each point (frequency, a share of the largest); three times the work. The viewer's
    panel switches it."""
    enable_collider: bool = False
    """Not supported: where rays begin and end is the model's own."""
    collider_params: dict[str, float] | None = None
    """Not supported."""

    def check(self) -> None:
        """Refuse numbers that mean nothing for any data, before data are read and distances computed.

        Raises:
            InputError: naming the first one.
        """
        for name, value in vars(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise InputError(f"{name} is {value}; it must be finite")
            if isinstance(value, tuple) and name in LEAST and not value:
                raise InputError(f"{name} is empty; give at least one number")
            least = LEAST.get(name)
            if least is not None and value is not None and min(numbers) < least:
                raise InputError(f"{name} is {value}; it must be at least {least}")
            if name.endswith("_weight") and value < 0:
                raise InputError(f"{name} is {value}; it must be 0 or more")
            if name in POSITIVE and value is not None and value <= 0:
                raise InputError(f"{name} is {value}; it must be positive")
        if self.enable_collider:
            raise InputError(
                "enable_collider is True; these models find where rays begin and end themselves: leave it out"
            )
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay is {self.ema_decay}; it must lie in [0, 1)")
        check_schedule(self.adaptation)

    def check_training(self, device_type: str) -> None:
        """Refuse what training cannot do here; what was trained elsewhere may be evaluated all the same.

        Args:
            device_type: ``cpu`` or ``cuda``, of the training.

        Raises:
            InputError: saying what.
        """
        if self.cuda_graph and not torch.cuda.is_available():
            raise InputError("cuda_graph is True, and there is no CUDA device; leave it out")
        if self.cuda_graph and device_type != "cuda":
            raise InputError(f"cuda_graph is True and --machine.device-type is {device_type}; leave one of them out")


class AdaptiveModel(PartViews):
    """Base of the models whose network changes size.

    A subclass makes ``self.field`` in :meth:`populate_modules`, calls :meth:`start_adaptation`, and gives
    :meth:`adaptive_network` and :meth:`steps_per_epoch`.
    """

    config: AdaptiveModelConfig
    field: nn.Module

    @exit_on_bad_input
    def __init__(self, config: AdaptiveModelConfig, **kwargs: Any) -> None:
        config.check()  # of a trainer's it has been; others make models, too
        super().__init__(config, **kwargs)

    # --- to be given by the task -----------------------------------------------------------------------------------

    def adaptive_network(self, field: nn.Module) -> SineMLP:
        """The network that adapts, of ``field`` (the live one or its average)."""
        raise TypeError(f"{type(self).__name__} must define adaptive_network")

    def adaptive_groups(self, field: nn.Module) -> list[NeuronGroup]:
        """Its layers, input first."""
        return self.adaptive_network(field).neuron_groups(self.network_name)

    network_name = "network"
    """What its layers are called in messages."""
    has_psnr = True
    """Whether the task's batches have a PSNR."""

    def steps_per_epoch(self) -> int:
        """Optimizer steps that make an epoch of this task."""
        raise TypeError(f"{type(self).__name__} must define steps_per_epoch")

    def fixed_settings(self) -> dict[str, Any]:
        """Settings that change the function but no shape; a checkpoint of others is refused."""
        network = self.adaptive_network(self.field)
        return {
            "activation": network.activation,
            "first_omega": network.first_omega,
            "hidden_omega": network.hidden_omega,
        }

    def probe(self) -> Probe:
        """What the strategy may ask of the live field and the training data."""
        raise TypeError(f"{type(self).__name__} must define probe")

    def on_change(self, report: Report) -> None:
        """Called after each change of the architecture."""

    def export(self, stem: Path) -> Path:
        """Write what the network stands for at present.

        Args:
            stem: the file, without its suffix.

        Returns:
            The file.

        Raises:
            Refused: the task has no such thing.
        """
        raise Refused("there is no file for this task but its checkpoint")

    # --- set-up ----------------------------------------------------------------------------------------------------

    def start_adaptation(self) -> None:
        """Choose the strategy and make the weight average. Call once ``self.field`` exists."""
        self._strategy: Strategy = make_strategy(
            self.config.variant,
            self.config.adaptation,
            self._large,
            self._dims,
            self.adaptive_groups(self.field)[-1].next_bias.numel(),
            self._lattice_limit,
            self.adaptive_network(self.field).first_omega,
        )
        self._adaptation_state: Any = None
        self._saved_state: dict[str, Any] | None = None
        self._history: list[dict[str, Any]] = []
        self._step = 0
        self._steps_per_iteration = 1
        # Steps for which the schedule's clock stood still.
        self._held, self._is_frozen = 0, False
        # In a captured step: the penalty's weight, where the step finds it.
        self.penalty_weight_there: Tensor | None = None
        self.revision = 0
        """Counts what may change the loss besides batch, parameters and the penalty's weight."""
        self._record = RunRecord()
        self._requests = RequestQueue()
        self.panel = AdaptationPanel(self)
        self._optimizers: Sequence[torch.optim.Optimizer] = ()
        # Sum of the present batch's losses; whoever draws the batch sets it.
        self.batch_loss = torch.zeros(())
        self.batch_error: Tensor | None = None
        self._is_asked: Tensor | None = None
        self.answers_requests = self._takes_requests = True
        self._ema_every = self.config.ema_every or 1
        self._initial_parameters = count_parameters(self.field)
        for network in (m for m in self.field.modules() if isinstance(m, SineMLP)):
            try:
                network.evaluator = tcnn.evaluator(network.activation)
            except tcnn.TcnnUnavailableError as error:
                raise InputError(str(error)) from error
        self.field_average: nn.Module | None = None
        if self.config.ema_decay > 0:
            self.field_average = copy.deepcopy(self.field).requires_grad_(False)

    @property
    def evaluated_field(self) -> nn.Module:
        """The field that renders: the live one in training, its average otherwise."""
        if self.rendered_part is not None and not self.training:
            return self.rendered_part
        if self.training or self.field_average is None:
            return self.field
        return self.field_average

    def starting_widths(self, large: Sequence[int], dims: int) -> tuple[int, ...]:
        """Widths with which the variant begins, given the large network's and its number of coordinates."""
        self._large, self._dims = tuple(large), dims
        limit = self.config.lattice_limit
        self._lattice_limit = LATTICE_LIMITS[dims] if limit is None else limit
        return starting_widths(self.config.variant, self.config.adaptation, large, dims, self._lattice_limit)

    def _twins(self) -> list[list[NeuronGroup]]:
        return [] if self.field_average is None else [self.adaptive_groups(self.field_average)]

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
        return self.revision

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
        self._prepare(total_steps=trainer.total_steps)
        self._optimizers = list(optimizers.optimizers.values())
        self._trainer = trainer
        each = self._steps_per_iteration = trainer.config.steps_per_iteration

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

    def _prepare(self, total_steps: int) -> None:
        """Lay out the schedule over the run, or take up the one of the checkpoint."""
        saved = self._saved_state
        if saved is not None and saved["variant"] != self.config.variant:
            raise InputError(
                f"the checkpoint is of the variant {saved['variant']!r} and this run of {self.config.variant!r}; add "
                f"--pipeline.model.variant {saved['variant']}"
            )
        if saved is not None:
            self._ema_every = int(saved["ema_every"])
        elif self.config.ema_every is None:
            self._ema_every = max(1, round(total_steps / 1500))
        if saved is None:
            groups = self.adaptive_groups(self.field)
            self._adaptation_state = self._strategy.init_state(groups, self.steps_per_epoch(), total_steps)
        else:
            self._adaptation_state = self._restored(saved["strategy"])
        self._total_steps = total_steps
        self._extend_schedule()
        if saved is None or not self._record.snapshots:
            self._record = RunRecord(total_steps)
            self._record.begin(self.adaptive_groups(self.field), self._first_omega)
        adaptation = self.config.adaptation
        if adaptation.densify_from == "residual" and adaptation.densify_at is not None and not self.probe().residual:
            raise InputError(
                f"densify_from is 'residual', which a {type(self).__name__} cannot give: its adaptive network has no "
                "truth of its own; use 'harmonics'"
            )
        if adaptation.target_psnr is not None and not self.has_psnr:
            raise InputError(
                f"target_psnr is {adaptation.target_psnr}, but a {type(self).__name__} has no PSNR; name "
                "target_parameters or target_bytes"
            )
        self._print_plan(total_steps)

    def before_step(self, step: int) -> None:
        """What is due before an optimizer step; steps count from the start of the run."""
        self._step = step
        if self._saved_state is not None:
            # Only now: set-up itself draws random numbers, which the uninterrupted run did not draw here.
            set_rng_state(self._saved_state["rng"])
            self._saved_state = None
        if self._is_frozen:
            self._held += 1
        else:
            state = self._adaptation_state
            if not self._strategy.is_due(state, self._clock):
                return
            check, groups = self._announce_removal(step), self.adaptive_groups(self.field)
            reports = self._strategy.step(groups, self._optimizers, state, self._clock, self._twins(), self.probe())
            self._changed(reports, step)
            if check is not None:
                self._look_after_removal(check, step)
            if distributed.count() > 1:
                # They decide alike, but for rounding on their devices; what the first decided counts.
                self._trainer.follow_first()

    def is_about_to_change(self) -> bool:
        """Whether, after the present step, the schedule or a person changes the architecture."""
        is_due = not self._is_frozen and self._strategy.is_due(self._adaptation_state, self._clock + 1)
        # What is asked for after this look waits for the next one.
        self._takes_requests = self._requests.is_waiting
        return is_due or self._takes_requests

    @property
    def changes_by_hand(self) -> int:
        """How many times a person changed the architecture or the schedule, in this run."""
        return sum(bool(event.get("by_hand")) for event in self._history)

    def _changed(self, reports: Sequence[Report], step: int) -> None:
        """What follows changes of the architecture just made before ``step``; theirs are the schedule's."""
        self.revision += bool(reports)
        for report in reports:
            report = replace(report, step=step)
            self._log(report)
            self._record.follow(report, self.adaptive_groups(self.field), self.standing().targets, self._first_omega)
            self.on_change(report)

    @property
    def _clock(self) -> int:
        """The schedule's step: that of the run, less those for which it was frozen."""
        return self._step - self._held

    @property
    def _first_omega(self) -> float:
        return self.adaptive_network(self.field).first_omega

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """What follows an optimizer step: what the strategy allows, and the weight average."""
        # Neither Adam's fused form nor a graph tells that weights have changed, and evaluations look there.
        torch.autograd.graph.increment_version(list(self.field.parameters()))
        groups, error = self.adaptive_groups(self.field), self.batch_error
        self._strategy.constrain(groups, self._optimizers, self._adaptation_state, self._clock, error)
        self._average(step)
        # Where a checkpoint can be written; not among steps that are made again.
        if (step + 1) % self._steps_per_iteration == 0 and self.answers_requests:
            self._answer(step + 1)
        self.panel.follow()

    def _answer(self, step: int) -> None:
        """Do what was asked for by hand; of several processes the first is asked, and all know of it by now."""
        if distributed.count() == 1:
            if self._takes_requests:
                self._requests.answer(step)
        elif self._is_asked is not None and bool(self._is_asked):
            self._requests.answer(step)
            self._trainer.follow_first()

    def to_average(self) -> list[Tensor]:
        """What all processes need to know of a step beside its gradients; see :mod:`~aire_nerfstudio.distributed`."""
        self._is_asked = torch.tensor(float(self._requests.is_waiting), device=self.device)
        return [self._is_asked, *([] if self.batch_error is None else [self.batch_error])]

    def _restored(self, saved: dict[str, Any]) -> Any:
        """The strategy's state of a checkpoint."""
        try:
            return self._strategy.restore(saved)
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
            raise InputError(
                f"the checkpoint's strategy has entries that this package does not write ({first_line(error)}); it is "
                "damaged"
            ) from error

    def _extend_schedule(self) -> None:
        """In a run that is extended, what is asked for by hand may take place in the whole of it."""
        schedule = getattr(self._adaptation_state, "schedule", None)
        if schedule is not None and schedule.total < self._total_steps:
            self._adaptation_state.schedule = replace(schedule, total=self._total_steps)

    def take_up(self) -> None:
        """Go on, in the midst of training, from the state that was just loaded."""
        saved = self._saved_state
        assert saved is not None
        self.revision += 1
        self._adaptation_state = self._restored(saved["strategy"])
        self._extend_schedule()
        set_rng_state(saved["rng"])
        self._saved_state = None

    def note_return(self, step: int) -> None:
        """Remember that training went back to before ``step``, where it was still sound."""
        now = widths(self.adaptive_groups(self.field))
        self._log(Report(step, RETURN, (0,) * len(now), now, now))

    @property
    def has_returned(self) -> bool:
        """Whether this run, earlier processes included, went back once."""
        return any(event["event"] == RETURN for event in self._history)

    def _average(self, step: int) -> None:
        if self.field_average is None or (step + 1) % self._ema_every:
            return
        # Early on the average follows quickly, as torch_ema does, so that it does not drag the initial weights along.
        updates = (step + 1) // self._ema_every
        decay = min(self.config.ema_decay, (1 + updates) / (10 + updates))
        for mean, live in zip(self.field_average.parameters(), self.field.parameters(), strict=True):
            mean.lerp_(live, 1 - decay)

    def _after_run(self, step: int) -> None:
        """By now the last checkpoint is on disk.

        Raises:
            InputError: a target was asked for and is not reached.
        """
        distributed.wait_for_all()  # the first one saves and reports
        self._requests.refuse("the training is over")
        self.panel.finish()
        if self._held:
            left = [span.name for span in self.standing().spans if span.start > self._clock]
            if left:
                CONSOLE.log(f"the schedule stood still for {self._held:,} steps; not reached: {', '.join(left)}")
        missed = self._strategy.shortfall(self._adaptation_state)
        if missed is not None:
            raise InputError(f"{missed}. The network as it is was saved")

    def adaptation_loss(self, error: Tensor | None = None) -> Tensor:
        """The strategy's regulariser at the present step, ``[]``.

        Args:
            error: mean squared error of the batch, values in [0, 1], ``[]``; kept for the strategy. None where the
                task has no such thing.
        """
        self.batch_error = None if error is None else error.detach().clone()
        if self._adaptation_state is None:
            return torch.zeros((), device=self.device)
        weight = self.penalty_weight_there
        return self._strategy.penalty(self.adaptive_groups(self.field), self._adaptation_state, self._clock, weight)

    def penalty_reads(self) -> Sequence[Tensor]:
        """What the strategy's regulariser reads besides the weights."""
        state = self._adaptation_state
        return () if state is None else self._strategy.penalty_reads(state, torch.device(self.device))

    @property
    def penalty_weight(self) -> float:
        """Factor of the strategy's regulariser at the present step."""
        state = self._adaptation_state
        return 0.0 if state is None else self._strategy.penalty_weight(state, self._clock)

    # --- by hand -----------------------------------------------------------------------------------------------------

    def ask(self, action: Callable[[], str], done: Done = lambda answer: None) -> None:
        """Have something done after the present step, in the thread and under the lock that train.

        Args:
            action: what to do; its answer says what was done. It raises :class:`InputError` to refuse.
            done: gets the answer, or ``refused:`` and the reason.
        """
        self._requests.ask(action, done)

    def ask_for(self, request: Request, done: Done = lambda answer: None) -> None:
        """Have the architecture changed after the present step; see :meth:`ask` and :class:`Request`."""

        def change() -> str:
            groups, state = self.adaptive_groups(self.field), self._adaptation_state
            if request.action == "decay" and request.steps is not None:
                self._check_end(self._step + 1 + request.steps)
            reports = self._strategy.control(
                groups, self._optimizers, state, self._clock + 1, request, self._twins(), self.probe()
            )
            self._changed(reports, self._step + 1)
            return "; ".join(f"{report.event} {list(report.counts)}" for report in reports)

        self.ask(change, done)

    def _check_end(self, step: int) -> None:
        """Refuse what would end after the run, steps for which the schedule stood still included."""
        if step >= self._total_steps:
            raise Refused(
                f"the decay would end at step {step:,} and the run at {self._total_steps:,}; give fewer steps"
            )

    def ask_to_freeze(self, is_frozen: bool, done: Done = lambda answer: None) -> None:
        """Stop the schedule's clock, or let it go on, from the next step; what is asked for by hand is done anyway."""

        def change() -> str:
            if not self.standing().controllable:
                raise Refused(f"the variant {self.config.variant} has no schedule to freeze")
            if is_frozen != self._is_frozen:
                self._is_frozen = is_frozen
                now, event = widths(self.adaptive_groups(self.field)), "freeze" if is_frozen else "unfreeze"
                self._log(Report(self._step + 1, event, (0,) * len(now), now, now, by_hand=True))
            return f"the schedule {'stands still' if is_frozen else 'goes on'}"

        self.ask(change, done)

    def ask_to_export(self, folder: Path, done: Done = lambda answer: None) -> None:
        """Have what the network stands for written into a folder after the present step; see :meth:`export`."""

        def write() -> str:
            self.eval()
            try:
                return f"wrote {self.export(folder / f'step-{self._step + 1:09d}')}"
            except (OSError, RuntimeError) as error:
                raise Refused(f"nothing was written ({first_line(error)})") from error
            finally:
                self.train()

        self.ask(write, done)

    # --- for whoever watches -----------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """Stages, and the neurons that are to go; of a loaded checkpoint as it was saved."""
        state = self._present_state()
        return Standing() if state is None else self._strategy.standing(state)

    def candidates(self, field: nn.Module) -> dict[int, Tensor]:
        """Which neurons of ``field`` would be chosen to go now, by layer; none where nothing is ever removed."""
        state = self._present_state()
        return {} if state is None else self._strategy.candidates(self.adaptive_groups(field), state)

    def _present_state(self) -> Any:
        state = self._adaptation_state
        if state is None and self._saved_state is not None and self._saved_state["strategy"]:
            return self._restored(self._saved_state["strategy"])
        return state

    @property
    def record(self) -> RunRecord:
        """Curves, events and snapshots so far."""
        return self._record

    @property
    def history(self) -> list[dict[str, Any]]:
        """Changes of the architecture so far, as plain data."""
        return self._history

    @property
    def position(self) -> tuple[int, int]:
        """Optimizer steps done, and on the schedule's clock."""
        return self._step, self._clock

    @property
    def is_frozen(self) -> bool:
        """Whether the schedule's clock stands still."""
        return self._is_frozen

    @property
    def sizes(self) -> tuple[int, int]:
        """Parameters of the trained field when the run began, and now."""
        return self._initial_parameters, count_parameters(self.field)

    def snapshot(self) -> Snapshot:
        """How the neurons of the live network stand."""
        groups = self.adaptive_groups(self.field)
        return self._record.snapshot(self._step, "now", groups, self.standing().targets, self._first_omega)

    def portraits(self, datamanager: Any, count: int, longest_side: int | None) -> list[Portrait]:
        """What a report shows; see :func:`~aire_nerfstudio.models.portraits.portraits`."""
        return portraits(self, datamanager, count, longest_side)

    def note(self, step: int, losses: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Keep what the step gave for the curves.

        Args:
            step: the optimizer step.
            losses: of the batch, by name; all but the adaptation's penalty add up to the curve ``loss``.
            metrics: of the batch, by name.
        """
        if not self._record.is_due(step):
            return
        given = {name: torch.as_tensor(value).detach() for name, value in {**losses, **metrics}.items()}
        loss = torch.stack([given[name] for name in losses if name != "adaptation_loss"]).sum()
        scalars = {"loss": loss, **{name: value for name, value in given.items() if value.numel() == 1}}
        if distributed.count() > 1:
            scalars = {name: value.float().clone() for name, value in scalars.items()}
            distributed.average(list(scalars.values()))
        now = widths(self.adaptive_groups(self.field))
        self._record.add(step, scalars, now, count_parameters(self.field))

    # --- what a person sees ----------------------------------------------------------------------------------------

    def _print_plan(self, total_steps: int) -> None:
        table = Table(title=f"{type(self).__name__}, variant {self.config.variant}", title_justify="left")
        for column in ("step", "event", "widths after", "parameters after"):
            table.add_column(column, justify="right" if column in ("step", "parameters after") else "left")
        count = count_parameters(self.field)
        widths = [group.width for group in self.adaptive_groups(self.field)]
        table.add_row(str(self.steps_done()), "start", str(widths), f"{count:,}")
        for planned in self._strategy.plan(self._adaptation_state, widths):
            after = "" if planned.widths is None else str(list(planned.widths))
            table.add_row(f"{planned.step:,}", planned.event, after, "")
        table.add_row(f"{total_steps:,}", "end", "", "")
        CONSOLE.print(table)

    def _announce_removal(self, step: int) -> RemovalCheck | None:
        """Say what theorem 2 allows a removal to change, before it is done; None where it says nothing."""
        state, network = self._adaptation_state, self.adaptive_network(self.field)
        if not isinstance(state, AireState) or self._clock != state.removal_at:
            return None
        is_changed_otherwise = self.config.adaptation.compensation != "none"
        if network.activation != "siren" or not state.targets or is_changed_otherwise:
            return None
        check = RemovalCheck(network, dict(zip(state.layers, state.targets, strict=True)))
        CONSOLE.log(
            f"step {step:,}: by theorem 2 the removal changes no output of the network by more than {check.bound:.3g}"
        )
        return check

    def _look_after_removal(self, check: RemovalCheck, step: int) -> None:
        """Say what the removal did change, and keep it beside the event."""
        effect = check.effect(self.adaptive_network(self.field))
        for event in self._history:
            if event["event"] == "prune" and event["step"] == step:
                event.update(effect=effect, bound=check.bound)
        if check.is_within(effect):
            CONSOLE.log(f"step {step:,}: it changed them by at most {effect:.3g}")
        else:
            CONSOLE.log(
                f"[yellow]warning: step {step:,}: the removal changed an output by {effect:.3g}, more than theorem 2 "
                f"allows ({check.bound:.3g}): the weights or this device's arithmetic are not sound"
            )

    def steps_done(self) -> int:
        """Optimizer steps before the one that training takes up: 0, or those of the checkpoint."""
        return 0 if self._saved_state is None else int(self._saved_state["step"]) + 1

    def _log(self, report: Report) -> None:
        count = count_parameters(self.field)
        change = 100 * (count / self._initial_parameters - 1)
        self._history.append(
            {
                "step": report.step,
                "event": report.event,
                "counts": list(report.counts),
                "before": list(report.before),
                "after": list(report.after),
                "parameters": count,
                "by_hand": report.by_hand,
            }
        )
        what = f"{report.event} by hand" if report.by_hand else report.event
        CONSOLE.log(
            f"step {report.step:,}: {what} {list(report.counts)} | widths {list(report.before)} -> "
            f"{list(report.after)} | {count:,} parameters ({change:+.2f} %)"
        )
        iteration = report.step // self._steps_per_iteration  # what nerfstudio counts its own curves in
        writer.put_scalar(name=f"Adaptation/{report.event}", scalar=sum(report.counts), step=iteration)
        self.write_sizes(iteration)

    def write_sizes(self, iteration: int) -> None:
        """Parameters and widths to nerfstudio's writer: TensorBoard, wandb, comet."""
        writer.put_scalar(name="Adaptation/parameters", scalar=count_parameters(self.field), step=iteration)
        for index, group in enumerate(self.adaptive_groups(self.field)):
            writer.put_scalar(name=f"Adaptation/width {index}", scalar=group.width, step=iteration)

    # --- checkpoint ------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """Strategy, history and random generators: tensors and plain Python values only."""
        strategy = {} if self._adaptation_state is None else self._adaptation_state.to_dict()
        return {
            "version": STATE_VERSION,
            "settings": self.fixed_settings(),
            "variant": self.config.variant,
            "step": self._step,
            "strategy": strategy,
            "history": copy.deepcopy(self._history),
            "initial_parameters": self._initial_parameters,
            "parameters": count_parameters(self.field),
            "ema_every": self._ema_every,
            "held": self._held,
            "is_frozen": self._is_frozen,
            "record": self._record.to_dict(),
            "now": self.snapshot().to_dict(),
            # Right after a resume, those that the checkpoint holds: set-up has drawn since.
            "rng": rng_state() if self._saved_state is None else self._saved_state["rng"],
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Keep what :meth:`get_extra_state` gave until training takes it up."""
        if state.get("version") != STATE_VERSION:
            raise InputError(
                f"the checkpoint's adaptation state has version {state.get('version')}; this package reads version "
                f"{STATE_VERSION}: install the release that wrote it"
            )
        check_state(state)
        mine, given = self.fixed_settings(), state["settings"]
        for name in sorted(mine.keys() | given.keys()):
            if mine.get(name) != given.get(name):
                raise InputError(
                    f"the checkpoint was trained with {name} {given.get(name)} and this run has {mine.get(name)}; use "
                    "the method and the options that wrote it"
                )
        self._saved_state = state
        self._history = copy.deepcopy(state["history"])
        self._initial_parameters = int(state["initial_parameters"])
        self._step = int(state["step"])
        # Earlier releases of this version kept neither.
        self._held, self._is_frozen = int(state.get("held", 0)), bool(state.get("is_frozen", False))
        if "record" in state:
            self._record = RunRecord.from_dict(state["record"])

    @exit_on_bad_input
    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Take the shapes of ``state_dict`` first: they are the architecture. See ``torch.nn.Module``.

        Raises:
            InputError: entries are missing or unknown. nerfstudio would go on without them in silence.
        """
        expected, given = set(self.state_dict()), set(state_dict)
        if expected != given:
            missing, extra = sorted(expected - given), sorted(given - expected)
            raise InputError(
                f"the checkpoint does not fit this model: {len(missing)} entries missing {missing[:2]}, {len(extra)} "
                f"unknown {extra[:2]}"
            )
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


# What every checkpoint of this version has beside the weights.
STATE_TYPES: dict[str, type] = {
    **{"settings": dict, "variant": str, "step": int, "strategy": dict, "history": list, "initial_parameters": int},
    **{"parameters": int, "ema_every": int, "rng": dict},
}


def check_state(state: Mapping[str, Any]) -> None:
    """Refuse a state that training could not take up, before it does.

    Raises:
        InputError: an entry is missing or of another kind.
    """
    for name, kind in STATE_TYPES.items():
        if not isinstance(state.get(name), kind):
            found = type(state[name]).__name__ if name in state else "not there"
            raise InputError(
                f"the checkpoint's {name} is {found}; this package writes a {kind.__name__}: it is damaged"
            )
    if state["step"] < 0 or state["ema_every"] < 1 or state["initial_parameters"] < 1:
        raise InputError("the checkpoint's step, ema_every or initial_parameters is out of range; it is damaged")
    for event in state["history"]:
        if (
            not isinstance(event, dict)
            or not isinstance(event.get("event"), str)
            or not isinstance(event.get("step"), int)
        ):
            raise InputError("the checkpoint's history has an entry that is no event; it is damaged")
    present = rng_state()
    try:
        set_rng_state(state["rng"])
    except Exception as error:
        raise InputError(f"the checkpoint's random generators cannot be restored ({first_line(error)})") from error
    finally:
        set_rng_state(present)


def check_chain(weights: Mapping[str, Any], prefix: str, count: int, in_features: int, out_features: int) -> set[str]:
    """Refuse layers that make no network, before a width of theirs is used to make room.

    Args:
        weights: by name, ``PREFIX.INDEX.weight`` and ``.bias``.
        prefix: of the names.
        count: layers, the output's included.
        in_features: coordinates.
        out_features: outputs.

    Returns:
        The names.

    Raises:
        InputError: shapes that do not fit each other or the task, or values that are not finite.
    """
    width, names = in_features, set()
    for index in range(count):
        name = f"{prefix}.{index}"
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        is_chain = isinstance(weight, Tensor) and isinstance(bias, Tensor) and weight.dim() == 2
        if is_chain:
            is_chain = weight.shape[1] == width and bias.shape == weight.shape[:1] and len(bias) > 0
        if not is_chain or (index == count - 1 and len(bias) != out_features):
            found = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
            raise InputError(f"the checkpoint's {name}.weight is {found}; it does not fit the layer before or the task")
        if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
            raise InputError(f"the checkpoint's {name} has values that are not finite; take an earlier checkpoint")
        width = len(bias)
        names |= {f"{name}.weight", f"{name}.bias"}
    return names


def check_weights(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Refuse weights that make no network of ``model``'s kind: only the widths of its sine layers may differ.

    Raises:
        InputError: a shape that does not fit its neighbour's or the task, or a value that is not finite.
    """
    free: set[str] = set()
    for prefix, network in model.named_modules():
        if isinstance(network, SineMLP):
            name = f"{prefix}.layers"
            free |= check_chain(state_dict, name, len(network.layers), network.in_features, network.out_features)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        given = state_dict.get(name)
        if given is None:
            continue  # a buffer that is not saved
        if not isinstance(given, Tensor) or (name not in free and given.shape != tensor.shape):
            raise InputError(
                f"the checkpoint's {name} is {getattr(given, 'shape', given)}; it must be {list(tensor.shape)}"
            )
        if given.is_floating_point() and not torch.isfinite(given).all():
            raise InputError(f"the checkpoint's {name} has values that are not finite; take an earlier checkpoint")


def count_parameters(module: nn.Module) -> int:
    """Number of scalars in the module's parameters."""
    return sum(p.numel() for p in module.parameters())
