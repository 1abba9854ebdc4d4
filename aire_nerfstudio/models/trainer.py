"""nerfstudio's trainer, with what a run that changes shape needs around it."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
import yaml
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import writer
from nerfstudio.utils.misc import step_check
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from aire_nerfstudio import distributed
from aire_nerfstudio.data.blender_scene import BlenderSceneConfig
from aire_nerfstudio.data.image_views import ImageViewsConfig
from aire_nerfstudio.data.surface_views import SurfaceViewsConfig
from aire_nerfstudio.errors import INTERRUPTED, InputError, InputExit, exit_on_bad_input, first_line
from aire_nerfstudio.files import as_looked_for, check_place
from aire_nerfstudio.models.adaptive import AdaptiveModel
from aire_nerfstudio.models.adaptive_config import AdaptiveModelConfig
from aire_nerfstudio.models.checkpoints import (
    check_checkpoint,
    check_evaluated,
    checkpoint_path,
    checkpoint_to_load,
    folder_to_load,
    remove_others,
    write_checkpoint,
)
from aire_nerfstudio.models.graphed_training import GraphedTraining, outputs_of
from aire_nerfstudio.models.guard import FaultGuard
from aire_nerfstudio.models.image import ImageModel
from aire_nerfstudio.models.launch import launch
from aire_nerfstudio.models.optimizers import AskingOptimizers
from aire_nerfstudio.models.rng import rng_state, set_rng_state
from aire_nerfstudio.models.schedulers import ExponentialDecayConfig
from aire_nerfstudio.models.trainer_checks import advise, check_trainer
from aire_nerfstudio.models.training_state import lower_learning_rates, restore_training, training_state
from aire_nerfstudio.notices import warn
from aire_nerfstudio.ops.host_memory import keep_freed_memory
from aire_nerfstudio.report.facts import CHECKPOINTS, REPORT, latest_checkpoint, read_run
from aire_nerfstudio.report.page import write_report
from aire_nerfstudio.report.portrait import Portrait, mean_scores, views_in_words
from aire_nerfstudio.sessions import SessionLog

# Views and their longest side in the report that a run ends with: seconds, not minutes. aire-report shows more.
AT_THE_END = (3, 256)
# Pixels of a picture that is still evaluated then; of a larger one aire-report does it.
LARGEST_PICTURE = 1 << 20


@dataclass
class AdaptiveTrainerConfig(TrainerConfig):
    """Trainer configuration of every method of this package."""

    _target: type = field(default_factory=lambda: AdaptiveTrainer)
    steps_per_iteration: int = 1
    """Optimizer steps in one of nerfstudio's iterations, whose own work (logging, viewer, checks) costs about a
    millisecond. --max-num-iterations and the other --steps-per-... count iterations, schedules count steps."""
    matmul_precision: Literal["highest", "high", "medium"] = "high"
    """How float32 products are computed (torch.set_float32_matmul_precision): highest, float32; high, TF32 on CUDA and
    three bfloat16 products for one on processors with a tile unit; medium, plain bfloat16 there. Layers of up to 8
    inputs, sums and weights are float32 in all on CPU."""

    recovery_rate: float = 0.25
    """Where loss or gradients are not finite, training goes back once to its last good state with all learning rates
    multiplied by this, in (0, 1); 0: it ends there with the last good state."""
    report: bool = True
    """Whether a page about the run, report.html, is written into its folder at the end; aire-report does it later."""
    quiet: bool = False
    """Print warnings and errors only: no plan, no changes, no table of steps."""

    def print_to_terminal(self) -> None:
        """As nerfstudio's, unless the run is to be quiet."""
        if self.quiet:
            CONSOLE.quiet = True
            self.logging.local_writer.enable = False
            self.logging.profiler = "none"
        super().print_to_terminal()

    def set_experiment_name(self) -> None:
        """As nerfstudio's; a file's own name, and ``demo``, ``astronaut`` or ``bunny`` where no data was named."""
        if self.experiment_name is None:
            data = self.data or self.pipeline.datamanager.data
            parser = getattr(self.pipeline.datamanager, "dataparser", None)
            if data is not None and data.is_file():
                self.experiment_name = data.stem
            elif data is None and isinstance(parser, BlenderSceneConfig) and parser.is_demo():
                self.experiment_name = "demo"
            elif data is None and isinstance(parser, (ImageViewsConfig, SurfaceViewsConfig)):
                self.experiment_name = parser.data.stem
        super().set_experiment_name()

    def get_checkpoint_dir(self) -> Path:
        """As nerfstudio's.

        ns-eval, ns-render and ns-viewer ask for it before they open the last checkpoint there themselves: what cannot
        be read is said here, in a line.

        Raises:
            InputExit: the folder's last checkpoint is damaged or not to be trusted.
        """
        folder, config = super().get_checkpoint_dir(), _evaluated_config()
        if config is None:
            return folder
        # A run that was copied or moved is meant, not the folder that it names.
        beside = config.parent / self.relative_model_dir
        if not beside.is_dir() and not folder.is_dir():
            raise InputExit(
                f"neither {beside} nor {as_looked_for(folder)} is there; {config} needs its run's checkpoints"
            )
        folder = beside if beside.is_dir() else folder
        check_evaluated(folder, self.load_step)
        return folder

    def save_config(self) -> None:
        """Nothing yet: the trainer writes config.yml once its input has proved good; bad input leaves no file.

        It is the last that ns-train asks for before its own launcher, which knows CUDA only and says of a process that
        was killed where the others were waiting. Several processes are therefore launched from here.
        """
        self._check_folder()
        if not 0 <= self.machine.seed < 2**32:
            raise InputExit(f"--machine.seed is {self.machine.seed}; it must lie in [0, 2^32)")
        for name in ("num_devices", "num_machines"):
            count = getattr(self.machine, name)
            if count < 1:
                raise InputExit(f"--machine.{name.replace('_', '-')} is {count}; it must be at least 1")
        if self.machine.num_devices * self.machine.num_machines > 1:
            raise SystemExit(launch(self))

    @exit_on_bad_input
    def _check_folder(self) -> None:
        """Refuse a place that cannot be written to, or where another run would be written over."""
        check_place("--output-dir", self.get_base_dir(), is_folder=True)
        folder = self.get_base_dir() / self.relative_model_dir
        resumed = folder_to_load(self.load_dir) if self.load_checkpoint is None else self.load_checkpoint.parent
        is_resumed = resumed is not None and resumed.resolve() == folder.resolve()
        if not is_resumed and self.machine.machine_rank == 0 and any(folder.glob("step-*.ckpt")):
            raise InputError(
                f"{folder} holds the checkpoints of another run, which would be written over; go on with --load-dir "
                f"{folder}, or take another --timestamp (with --load-config: in that file)"
            )


class AdaptiveTrainer(Trainer):
    """Trainer that reads and writes checkpoints safely and counts ``max_num_iterations`` from the start of the run."""

    config: AdaptiveTrainerConfig
    # Of the process that writes the run's folder.
    _session: SessionLog | None = None
    # Where steps are CUDA graphs.
    _graphed: GraphedTraining | None = None

    @exit_on_bad_input
    def __init__(self, config: AdaptiveTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        check_trainer(config)
        advise(config)
        # Set-up resolves settings in it, and the caller may have another use for it.
        config = copy.deepcopy(config)
        torch.set_float32_matmul_precision(config.matmul_precision)
        # Before anything below, or nerfstudio, resolves settings in it.
        self._config_text = yaml.dump(_resolved(config))
        # The total length of the run, also for a resumed one: schedules are laid out over it.
        self._total_iterations = config.max_num_iterations
        self.total_steps = config.max_num_iterations * config.steps_per_iteration
        for group in config.optimizers.values():
            scheduler = group.get("scheduler")
            if isinstance(scheduler, ExponentialDecayConfig) and scheduler.max_steps is None:
                scheduler.max_steps = self.total_steps
        # As one process of nerfstudio's: what several do is ours (distributed.py), without DistributedDataParallel.
        super().__init__(config, local_rank, 1)
        self.local_rank = distributed.rank()  # the first of all writes, not the first of each machine
        self._guard = FaultGuard(self.total_steps)
        self._was_sound, self._must_look = True, False
        if distributed.rank() > 0:
            self.training_state = "training"  # the first alone has a viewer that could let it go on
        if "cuda" not in self.device:
            keep_freed_memory()

    @exit_on_bad_input
    def setup(self, test_mode: str = "val") -> None:
        """See nerfstudio; bad input ends in one line."""
        # nerfstudio's viewer wants the folder; without a run in it, it goes again.
        made = [f for f in (self.base_dir, *self.base_dir.parents) if not f.exists() and self.local_rank == 0]
        if self.local_rank == 0:
            self._session = SessionLog(self.base_dir, self.device, self.config.machine.seed, _resumed_run(self.config))
            self.base_dir.mkdir(parents=True, exist_ok=True)
        try:
            super().setup(test_mode)  # type: ignore[arg-type]
        except BaseException as error:
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            if isinstance(error, KeyboardInterrupt):
                raise self._interrupted("before training began") from None
            raise
        if self.config.steps_per_iteration > 1:
            # What nerfstudio divides by an iteration's time for its rays a second.
            manager = self.pipeline.datamanager
            rays = manager.get_train_rays_per_batch() * self.config.steps_per_iteration
            manager.get_train_rays_per_batch = lambda: rays  # type: ignore[method-assign]
        if self.pipeline.model.config.cuda_graph:  # type: ignore[attr-defined]
            self._graphed = GraphedTraining(self)
        # They began with the same seed; this is for devices that draw or compute otherwise.
        distributed.take_from_first([*self.pipeline.model.parameters(), *self.pipeline.model.buffers()])
        set_rng_state(distributed.from_first(rng_state, self.device))
        # Before the model's own, so that what is kept is what a checkpoint would hold.
        self.callbacks.insert(0, TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self._keep))
        outputs = getattr(self.pipeline.datamanager, "train_dataparser_outputs", None)
        if self.local_rank > 0 and outputs is not None:
            outputs.save_dataparser_transform = lambda path: None  # the first writes the run's folder
        if self.local_rank == 0:
            path = self.base_dir / "config.yml"
            CONSOLE.log(f"Saving config to: {path}")
            path.write_text(self._config_text, "utf8")
            if self.config.report:
                # Before the others: they may end the run, and nerfstudio then waits for the viewer.
                self.callbacks.insert(0, TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN], self._report))

    @exit_on_bad_input
    def train(self) -> None:
        """See nerfstudio; what can only be judged while training ends in one line, too."""
        if self._session is not None:
            self._session.begin(self._start_step * self.config.steps_per_iteration)
        try:
            super().train()
        except KeyboardInterrupt:
            if self.training_state == "completed" and self._path(self.step).is_file():
                # This is how a finished run is left whose viewer goes on.
                raise SystemExit(0) from None
            raise self._interrupted(f"in iteration {self.step:,}") from None

    def _interrupted(self, when: str) -> SystemExit:
        if distributed.count() == 1:  # of several the launcher says it
            self._save_good_state()
            print(f"\nerror: interrupted {when}; {self._how_to_go_on()}", file=sys.stderr)
        return SystemExit(INTERRUPTED)

    def _save_good_state(self) -> None:
        """Write the last state that was kept, where it is later than the last checkpoint: one may have been cut off."""
        if not self._guard.has_state or self._guard.state["step"] < 0:
            return
        with contextlib.suppress(InputError):
            if int(latest_checkpoint(self.base_dir).stem[5:]) >= self._guard.state["step"]:
                return
        with contextlib.suppress(OSError, RuntimeError):
            self._write(self._guard.state, self.config.save_only_latest_checkpoint)

    def _how_to_go_on(self) -> str:
        with contextlib.suppress(InputError):
            last = int(latest_checkpoint(self.base_dir).stem[5:])
            return f"the last checkpoint is of {last:,}: go on with --load-dir {self.checkpoint_dir}"
        if self.config.load_dir is not None:
            return f"go on with --load-dir {self.config.load_dir}, as this run did"
        return "no checkpoint was written yet"

    def _report(self, step: int) -> None:
        """Write the page; a run that is trained and saved does not fail over it."""
        path = self.base_dir / REPORT
        CONSOLE.log("Writing the report, views of the result among it (ctrl+c leaves it out)")
        try:
            with self.train_lock:  # the viewer goes on rendering
                model = cast(AdaptiveModel, self.pipeline.model)
                shown = model.portraits(self.pipeline.datamanager, *AT_THE_END) if self._is_soon_drawn() else []
            write_report(path, [read_run(self.base_dir)], [shown])
            CONSOLE.log(f"Report: {path}")
            self._tell_of_scores(shown)
        except (Exception, KeyboardInterrupt) as error:
            warn(f"the report was not written ({first_line(error)}); aire-report {self.base_dir} tries again")

    def _tell_of_scores(self, shown: Sequence[Portrait]) -> None:
        means, views = mean_scores(shown)
        if views:
            count = cast(AdaptiveModel, self.pipeline.model).count_parameters()
            values = " | ".join(f"{name} {value:.4g}" for name, value in means.items())
            CONSOLE.log(f"{values} ({views_in_words(views)}; ns-eval scores all) | {count:,} parameters")

    def _is_soon_drawn(self) -> bool:
        """Whether the report's views take seconds: not so of a large picture, which is scored at its own size."""
        model = self.pipeline.model
        return not isinstance(model, ImageModel) or math.prod(model.picture_size) <= LARGEST_PICTURE

    def train_iteration(self, step: int) -> Any:
        """See nerfstudio; as many optimizer steps as the configuration says, each as if it were an iteration.

        Returns:
            Loss, its parts and metrics of the last step.
        """
        model = cast(AdaptiveModel, self.pipeline.model)
        number, end = step * self.config.steps_per_iteration, (step + 1) * self.config.steps_per_iteration
        first, is_last = number, step == self._total_iterations - 1
        # Before the first and after the last step nerfstudio calls the model itself.
        is_begun = True
        while number < end:
            if not is_begun:
                model.before_step(number)
            is_begun = False
            written = len(writer.EVENT_STORAGE)
            is_saved = number == end - 1 and (is_last or step_check(step, self.config.steps_per_save))
            self._must_look = is_saved or model.is_about_to_change()
            outputs = self._train_step(number, is_told=number == end - 1)
            if not self._was_sound or number < end - 1:
                # The learning rates that nerfstudio writes at each step: once an iteration, by its number.
                del writer.EVENT_STORAGE[written:]
            if not self._was_sound:
                number = self._return(number)
                continue
            model.adaptation.log.note(number, outputs[1], outputs[2])
            model.answers_requests = number >= first
            if number < end - 1:
                model.after_step(number)
            number += 1
        for event in writer.EVENT_STORAGE[written:]:
            event["step"] = step
        if step_check(step, self.config.logging.steps_per_log, run_at_zero=True):
            model.adaptation.log.write_sizes(step)
        return outputs

    def _train_step(self, number: int, is_told: bool) -> Any:
        """An optimizer step, as a CUDA graph where that is possible.

        Args:
            number: of the step.
            is_told: whether what it gives is read after the next one has begun.
        """
        stepped = None if self._graphed is None else self._graphed.step(number)
        if self._graphed is None or stepped is None:
            return super().train_iteration(number)
        if self._graphed.updates:
            self._was_sound = self._guard.saw(stepped.finite, self._must_look)
        else:
            self.optimizers.optimizer_scaler_step_some(self.grad_scaler, list(self.optimizers.parameters))
        self.optimizers.scheduler_step_all(number)
        return outputs_of(stepped) if is_told else (stepped.total, stepped.losses, stepped.others)

    def follow_first(self) -> None:
        """Take the whole state of training over from the first process; of one process there is nothing to take."""
        if distributed.count() == 1:
            return
        state = distributed.from_first(lambda: training_state(self, self.step), self.device)
        if distributed.rank() > 0:
            restore_training(self, state)

    def setup_optimizers(self) -> AskingOptimizers:
        """See nerfstudio."""
        return AskingOptimizers(self.config.optimizers.copy(), self.pipeline.get_param_groups(), self._is_sound)

    def _is_sound(self, parameters: Sequence[Tensor]) -> bool:
        """Average over the processes, and look at the gradients: all see the same and decide the same."""
        model = cast(AdaptiveModel, self.pipeline.model)
        loss = model.batch_loss
        if distributed.count() > 1:
            distributed.average_gradients(parameters, [loss, *model.to_average()])
        # Gradients that are scaled may overflow, and the scaler then leaves the step out.
        seen = [] if self.grad_scaler.is_enabled() else parameters
        # All processes look, or none; they have just waited for each other.
        must_look = self._must_look or distributed.count() > 1
        self._was_sound = self._guard.is_sound(loss, seen, must_look)
        return self._was_sound

    def _keep(self, step: int) -> None:
        """Keep the state before an iteration, where it is time."""
        parameters = [p for group in self.optimizers.parameters.values() for p in group]
        if distributed.count() > 1 and step_check(step, self.config.steps_per_save) and step > self._start_step:
            self._check_alike(parameters)
        by_hand = cast(AdaptiveModel, self.pipeline.model).adaptation.log.changes_by_hand
        number = step * self.config.steps_per_iteration
        self._guard.keep(number, lambda: training_state(self, step - 1), parameters, by_hand)

    def _check_alike(self, parameters: Sequence[Tensor]) -> None:
        """Say where the processes' weights have drifted apart, which no arithmetic of theirs should do."""
        held = [*parameters, *self.pipeline.model.buffers(), torch.get_rng_state()]
        if "cuda" in self.device:
            held.append(torch.cuda.get_rng_state(self.device).to(parameters[0].device))
        if not distributed.is_alike(held):
            warn("the processes' weights differ; those of the first are taken from here on")
            self.follow_first()

    def _return(self, step: int) -> int:
        """Go back to the last good state.

        Args:
            step: the optimizer step whose loss or gradients are not finite.

        Returns:
            The step to go on with.

        Raises:
            InputError: it is not the first time.
        """
        model, state = cast(AdaptiveModel, self.pipeline.model), self._guard.state
        rates = {name: o.param_groups[0]["lr"] for name, o in self.optimizers.optimizers.items()}
        said = f"loss or gradients are not finite at step {step:,}"
        if model.adaptation.log.has_returned or self.config.recovery_rate == 0:
            raise InputError(
                f"{said}{self._end_with(state)}; start again with a lower learning rate (now {_in_words(rates)})"
            )
        restore_training(self, state)
        self._guard.forget()
        rates = lower_learning_rates(self, self.config.recovery_rate)
        model.adaptation.note_return(self._guard.step)
        self._guard.put(self._guard.step, training_state(self, state["step"]))
        warn(f"{said}; back to step {self._guard.step:,}, learning rate now {_in_words(rates)}")
        return self._guard.step

    def _end_with(self, state: dict[str, Any]) -> str:
        """Save the last good state; where it is, in words."""
        if state["step"] < 0:
            return ", and no step before was kept: nothing is saved"
        again = ", again" if cast(AdaptiveModel, self.pipeline.model).adaptation.log.has_returned else ""
        path = self._path(state["step"])
        if self.local_rank == 0:
            self._write(state, is_only=False)
        distributed.wait_for_all()
        return f"{again}. The last good state is in {path}, with this learning rate, which --load-dir would take up"

    def eval_iteration(self, step: int) -> None:
        """As nerfstudio's, but in the first process, and without effect on the random numbers that training draws.

        A run with evaluations thus equals one without, and a resumed run an uninterrupted one.
        """
        config = self.config
        every = (config.steps_per_eval_batch, config.steps_per_eval_image, config.steps_per_eval_all_images)
        if self.local_rank != 0 or not any(step_check(step, steps) for steps in every):
            return
        state = rng_state()
        super().eval_iteration(step)
        set_rng_state(state)

    def _load_checkpoint(self) -> None:
        path = checkpoint_to_load(self.config)
        if path is None:
            super()._load_checkpoint()
            return
        # Read once, by a reader that trusts nothing; nerfstudio's would open the file again.
        saved = check_checkpoint(path, set(self.pipeline.state_dict()))
        try:
            self.pipeline.load_pipeline(saved["pipeline"], saved["step"])
            self.optimizers.load_optimizers(saved["optimizers"])
            if "schedulers" in saved and self.config.load_scheduler:
                self.optimizers.load_schedulers(saved["schedulers"])
            self.grad_scaler.load_state_dict(saved["scalers"])
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
            raise InputError(
                f"checkpoint {path} has entries that this package does not write ({first_line(error)}); it is damaged"
            ) from error
        self._tell_of_learning_rates()
        self._start_step = saved["step"] + 1
        CONSOLE.print(f"Going on after step {saved['step']:,}, from {path}", markup=False, soft_wrap=True)
        self._check_steps_per_iteration()
        if self._start_step >= self._total_iterations:
            raise InputError(
                f"the checkpoint is at step {self._start_step - 1} and --max-num-iterations is "
                f"{self._total_iterations}, the total length of the run; nothing is left to train, raise it to go on"
            )
        # nerfstudio 1.1.5 trains this many steps more after a resume; later versions count from the start, as we do.
        if "self._start_step + num_iterations" in inspect.getsource(Trainer.train):
            self.config.max_num_iterations = self._total_iterations - self._start_step

    def _tell_of_learning_rates(self) -> None:
        """Say where the learning rates given for a resumed run are not those that hold."""
        for name, optimizer in self.optimizers.optimizers.items():
            given, scheduler = self.config.optimizers[name]["optimizer"].lr, self.optimizers.schedulers.get(name)
            kept = optimizer.param_groups[0]["lr"] if scheduler is None else scheduler.base_lrs[0]
            if not math.isclose(kept, given, rel_tol=1e-6):
                CONSOLE.log(f"The learning rate of the checkpoint holds ({kept:g}), not this command's {given:g}")

    def _check_steps_per_iteration(self) -> None:
        """Refuse to count on in iterations of another length than the run began with."""
        done = cast(AdaptiveModel, self.pipeline.model).adaptation.steps_done()
        each = self.config.steps_per_iteration
        if self._start_step and done != self._start_step * each:
            raise InputError(
                f"--steps-per-iteration is {each}, but the checkpoint's {self._start_step} iterations were {done} "
                f"steps; give {done // self._start_step}"
            )

    def save_checkpoint(self, step: int) -> None:
        """As nerfstudio's, but the file appears only when whole: a kill during a save leaves the last good one."""
        if self.local_rank == 0:
            self._write(training_state(self, step), self.config.save_only_latest_checkpoint)

    def _path(self, step: int) -> Path:
        return checkpoint_path(self.checkpoint_dir, step)

    def _write(self, state: dict[str, Any], is_only: bool) -> None:
        """Write a checkpoint; ``is_only``: instead of the others there."""
        path = self._path(state["step"])
        write_checkpoint(path, state)
        if self._session is not None:
            self._session.write((state["step"] + 1) * self.config.steps_per_iteration)
        if is_only:
            remove_others(path)


def _evaluated_config() -> Path | None:
    """The config.yml that nerfstudio's ``eval_setup`` is loading; it tells nobody else."""
    frame = sys._getframe(2)
    path = frame.f_locals.get("config_path") if frame.f_code.co_name == "eval_setup" else None
    return path if isinstance(path, Path) else None


def _resolved(config: AdaptiveTrainerConfig) -> AdaptiveTrainerConfig:
    """The configuration with which a run is evaluated."""
    resolved = copy.deepcopy(config)
    if isinstance(resolved.pipeline.model, AdaptiveModelConfig):
        resolved.pipeline.model = resolved.pipeline.model.resolved()
    return resolved


def _resumed_run(config: AdaptiveTrainerConfig) -> Path | None:
    """The folder of the run that is resumed; None where there is none, or the checkpoint lies outside of one."""
    loaded = folder_to_load(config.load_dir) or (config.load_checkpoint and config.load_checkpoint.parent)
    if loaded is None or Path(loaded).resolve().name != CHECKPOINTS:
        return None
    return Path(loaded).resolve().parent


def _in_words(rates: dict[str, float]) -> str:
    """Learning rates by group; of one group the number alone."""
    return ", ".join(f"{rate:.3g}" if len(rates) == 1 else f"{name} {rate:.3g}" for name, rate in rates.items())
