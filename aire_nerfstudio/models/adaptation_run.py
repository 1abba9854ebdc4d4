"""The adaptation of one training: its strategy, what the strategy remembers, and the schedule's clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.optim import Optimizer

from aire_nerfstudio.adaptation.aire import AireStrategy
from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.aire_plan import planned_widths, times_in_steps
from aire_nerfstudio.adaptation.base import Report, Strategy, widths
from aire_nerfstudio.adaptation.budget import count_parameters
from aire_nerfstudio.adaptation.control import Refused, Request, Status
from aire_nerfstudio.adaptation.importance import contribution, weakest
from aire_nerfstudio.adaptation.layers import ends
from aire_nerfstudio.adaptation.schedule import Schedule
from aire_nerfstudio.errors import InputError, first_line
from aire_nerfstudio.fields.neurons import NeuronGroup
from aire_nerfstudio.models.adaptation_log import RETURN, AdaptationLog
from aire_nerfstudio.models.adaptive_config import AdaptiveModelConfig
from aire_nerfstudio.models.removal_check import RemovalCheck
from aire_nerfstudio.models.rng import set_rng_state
from aire_nerfstudio.models.task import AdaptiveTask
from aire_nerfstudio.notices import warn
from aire_nerfstudio.record import RunRecord, Snapshot

# What aire_early and aire_rounds have values of their own for.
SET_BY_VARIANTS = (
    *("densify_at", "densify_count", "densify_fraction", "decay_start", "prune_at", "prune_counts", "rounds"),
)


class AdaptationRun:
    """Changes a task's network when it is time.

    Args:
        task: whose network adapts.
        strategy: decides when and how.
    """

    def __init__(self, task: AdaptiveTask, strategy: Strategy) -> None:
        self._task = task
        self.strategy = strategy
        """Decides when and how the network changes."""
        self.log = AdaptationLog(task)
        self.state: Any = None
        """The strategy's; None before training."""
        self.saved: dict[str, Any] | None = None
        """A checkpoint's entries, until training takes them up."""
        self.step = 0
        """The present optimizer step."""
        self._optimizers: Sequence[Optimizer] = ()
        self.revision = 0
        """Counts what may change the loss besides batch, parameters and the penalty's weight."""
        self.is_frozen = False
        """Whether the schedule's clock stands still."""
        self.frozen_steps = 0
        """Optimizer steps for which it did."""
        self._total_steps = 0

    @property
    def config(self) -> AdaptiveModelConfig:
        """The model's settings."""
        return self._task.config

    @property
    def clock(self) -> int:
        """The schedule's step: that of the run, less those for which it was frozen."""
        return self.step - self.frozen_steps

    @property
    def position(self) -> tuple[int, int]:
        """Optimizer steps done, and on the schedule's clock."""
        return self.step, self.clock

    @property
    def _groups(self) -> list[NeuronGroup]:
        return self._task.adaptive_groups(self._task.field)

    def _averages(self) -> list[list[NeuronGroup]]:
        average = self._task.field_average
        return [] if average is None else [self._task.adaptive_groups(average)]

    # --- a run's begin and end --------------------------------------------------------------------------------------

    def begin(self, total_steps: int, optimizers: Sequence[Optimizer]) -> None:
        """Lay out the schedule over the run, or take up the one of the checkpoint.

        Args:
            total_steps: optimizer steps of the run.
            optimizers: they change with the parameters.

        Raises:
            InputError: the checkpoint is another variant's, or the task cannot do what the schedule asks for.
        """
        saved, config, task = self.saved, self.config, type(self._task).__name__
        if saved is not None and saved["variant"] != config.variant:
            raise InputError(
                f"the checkpoint is of the variant {saved['variant']!r} and this run of {config.variant!r}; add "
                f"--pipeline.model.variant {saved['variant']}"
            )
        if saved is None:
            self.state = self.strategy.init_state(self._groups, self._task.steps_per_epoch(), total_steps)
        else:
            self.state = self._restored(saved["strategy"])
            self._tell_of_times(total_steps)
        self._total_steps, self._optimizers = total_steps, optimizers
        self._extend_schedule()
        if saved is None or not self.log.record.snapshots:
            self.log.begin(total_steps)
        adaptation = config.adaptation
        wants_residual = adaptation.densify_from == "residual" and adaptation.densify_at is not None
        if wants_residual and not self._task.probe().residual:
            raise InputError(
                f"densify_from is 'residual', which a {task} cannot give: its adaptive network has no truth of its "
                "own; use 'harmonics'"
            )
        if adaptation.target_psnr is not None and not self._task.has_psnr:
            raise InputError(
                f"target_psnr is {adaptation.target_psnr}, but a {task} has no PSNR; name target_parameters or "
                "target_bytes"
            )

    def _tell_of_times(self, total_steps: int) -> None:
        """Say where the times given for a resumed run are not those that hold."""
        if not isinstance(self.strategy, AireStrategy) or self.log.changes_by_hand:
            return
        kept = self.state.schedule
        given = times_in_steps(self.strategy.config, self._task.steps_per_epoch(), total_steps)
        if given != (kept.densify_at, kept.decay_start, kept.prune_at):
            held = f"densify_at {kept.densify_at}, decay_start {kept.decay_start}, prune_at {kept.prune_at}"
            CONSOLE.log(f"The times of the checkpoint hold ({held}; steps), not those of this command")

    def _tell_of_variant(self) -> None:
        """Say which of the settings that were given a variant sets itself."""
        given, default = self.config.adaptation, type(self.config)().adaptation
        if self.saved is not None or not isinstance(self.strategy, AireStrategy):
            return
        own = self.strategy.config
        moved = [
            name
            for name in SET_BY_VARIANTS
            if getattr(given, name) != getattr(default, name) and getattr(own, name) != getattr(given, name)
        ]
        if moved:
            values = ", ".join(f"{name} {_in_words(getattr(own, name))}" for name in moved)
            CONSOLE.log(
                f"The variant {self.config.variant} sets {values} itself (times in percent of the run), whatever this "
                "command says; the variant aire takes yours"
            )

    def print_plan(self) -> None:
        """Draw the table of what is to come."""
        self._tell_of_variant()
        plan = self.strategy.plan(self.state, widths(self._groups))
        self.log.print_plan(self.steps_done(), plan, self._total_steps)
        if self.saved is None and isinstance(self.strategy, AireStrategy):
            self._warn_of_budget(self.strategy.config, self.state.schedule)

    def _warn_of_budget(self, config: AireConfig, schedule: Schedule) -> None:
        """Say where the budget is more than the network will ever have."""
        if config.most_parameters is None:
            return
        n_in, n_out = ends(self._groups)
        # With a budget no removal is foretold: these are the widths with what is added.
        largest = count_parameters(n_in, planned_widths(config, widths(self._groups), schedule), n_out)
        if config.most_parameters >= largest:
            warn(
                f"the budget is {config.most_parameters:,} parameters and the network never has "
                f"more than {largest:,}: nothing will be removed"
            )

    def steps_done(self) -> int:
        """Optimizer steps before the one that training takes up: 0, or those of the checkpoint."""
        return 0 if self.saved is None else int(self.saved["step"]) + 1

    def not_reached(self) -> list[str]:
        """Stages of the schedule that are still to come, by name."""
        return [span.name for span in self.status().spans if span.start > self.clock]

    def missed_target(self) -> str | None:
        """What was asked of the run and is not reached, in one line; None: all is well."""
        return self.strategy.missed_target(self.state)

    # --- around an optimizer step -----------------------------------------------------------------------------------

    def before_step(self, step: int) -> bool:
        """What is due before an optimizer step, counted from the start of the run.

        Returns:
            Whether anything was decided.
        """
        self.step = step
        if self.saved is not None:
            # Only now: set-up itself draws random numbers, which the uninterrupted run did not draw here.
            set_rng_state(self.saved["rng"])
            self.saved = None
        if self.is_frozen:
            self.frozen_steps += 1
            return False
        if not self.strategy.is_due(self.state, self.clock):
            return False
        check = self._expected_of_removal()
        reports = self.strategy.step(
            self._groups, self._optimizers, self.state, self.clock, self._averages(), self._task.probe()
        )
        self._record_changes(reports, step)
        if check is not None:
            self.log.compare_removal(check, step)
        return True

    def _expected_of_removal(self) -> RemovalCheck | None:
        """What theorem 2 says of the removal that is due; None where there is none, or it says nothing."""
        status, network = self.status(), self._task.adaptive_network(self._task.field)
        if getattr(getattr(self.state, "schedule", None), "densify_at", None) == self.clock:
            return None  # what is added at the same step changes outputs, too
        if self.clock != status.removal_at or not status.targets:
            return None
        if network.activation != "siren" or self.config.adaptation.compensation != "none":
            return None
        return self.log.expect_removal(self.step, status.targets)

    def is_due_next(self) -> bool:
        """Whether the schedule changes something after the present step."""
        return not self.is_frozen and self.strategy.is_due(self.state, self.clock + 1)

    def _record_changes(self, reports: Sequence[Report], step: int) -> None:
        """What follows changes just made before ``step``; theirs are the schedule's."""
        self.revision += bool(reports)
        for report in reports:
            report = replace(report, step=step)
            self.log.add_change(report, self.status().targets)
            self._task.on_change(report)

    def constrain(self, error: Tensor | None) -> None:
        """After an optimizer step: bring the weights back to what is allowed; ``error []``: of its batch."""
        self.strategy.constrain(self._groups, self._optimizers, self.state, self.clock, error)

    def penalty(self, weight: Tensor | None) -> Tensor:
        """The regulariser at the present step, ``[]``; ``weight []`` in place of :attr:`penalty_weight`."""
        if self.state is None:
            return torch.zeros((), device=self._task.device)
        return self.strategy.penalty(self._groups, self.state, self.clock, weight)

    @property
    def penalty_weight(self) -> float:
        """Factor of the regulariser at the present step."""
        return 0.0 if self.state is None else self.strategy.penalty_weight(self.state, self.clock)

    def penalty_reads(self) -> Sequence[Tensor]:
        """What the regulariser reads besides the weights."""
        if self.state is None:
            return ()
        return self.strategy.penalty_reads(self.state, torch.device(self._task.device))

    # --- by hand, after the present step ----------------------------------------------------------------------------

    def change(self, request: Request) -> str:
        """Do what a person asks for; what was done, in words.

        Raises:
            Refused: it makes no sense at present; nothing was changed.
        """
        end = self.step + 1 + (request.steps or 0)
        # The strategy knows its own clock alone, which may stand still meanwhile.
        if request.action == "decay" and request.steps is not None and end >= self._total_steps:
            raise Refused(f"the decay would end at step {end:,} and the run at {self._total_steps:,}; give fewer steps")
        reports = self.strategy.control(
            self._groups, self._optimizers, self.state, self.clock + 1, request, self._averages(), self._task.probe()
        )
        self._record_changes(reports, self.step + 1)
        return "; ".join(f"{report.event} {list(report.counts)}" for report in reports)

    def freeze(self, is_frozen: bool) -> str:
        """Stop the schedule's clock, or let it go on, from the next step; what was done, in words.

        Raises:
            Refused: there is no schedule.
        """
        if not self.status().controllable:
            raise Refused(f"the variant {self.config.variant} has no schedule to freeze")
        if is_frozen != self.is_frozen:
            self.is_frozen = is_frozen
            self.log.add_event(self.step + 1, "freeze" if is_frozen else "unfreeze", by_hand=True)
        return f"the schedule {'stands still' if is_frozen else 'goes on'}"

    # --- for whoever watches ----------------------------------------------------------------------------------------

    @property
    def record(self) -> RunRecord:
        """Curves and snapshots so far."""
        return self.log.record

    @property
    def history(self) -> list[dict[str, Any]]:
        """Events so far, as plain data."""
        return self.log.history

    @property
    def sizes(self) -> tuple[int, int]:
        """Parameters of the trained field when the run began, and now."""
        return self.log.initial_parameters, self._task.count_parameters()

    def status(self) -> Status:
        """Stages, and the neurons that are to go; of a loaded checkpoint as it was saved."""
        state = self._present_state()
        return Status() if state is None else self.strategy.status(state)

    def snapshot(self) -> Snapshot:
        """How the neurons of the live network stand."""
        return self.log.snapshot(self.step, self.status().targets)

    def weak_neurons(self, groups: Sequence[NeuronGroup]) -> dict[int, Tensor]:
        """Neurons of a network by layer that are to go; before they are chosen, those that would be.

        Where nothing is ever removed: the weakest, as many as the configuration would remove; for the eye alone.
        """
        chosen = self.status().targets
        if chosen:
            return {layer: torch.tensor(indices, dtype=torch.long) for layer, indices in chosen.items()}
        state = self._present_state()
        candidates = {} if state is None else self.strategy.candidates(groups, state)
        if candidates:
            return candidates
        adaptation = self.config.adaptation
        layers = [layer for layer in adaptation.prune_layers if layer < len(groups)]
        return {
            layer: weakest(contribution(groups[layer]), round(adaptation.prune_fraction * groups[layer].width)).cpu()
            for layer in layers
        }

    def _present_state(self) -> Any:
        if self.state is None and self.saved is not None and self.saved["strategy"]:
            return self._restored(self.saved["strategy"])
        return self.state

    # --- checkpoint -------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain Python values only."""
        return {
            "step": self.step,
            "strategy": {} if self.state is None else self.state.to_dict(),
            "held": self.frozen_steps,
            "is_frozen": self.is_frozen,
            "now": self.snapshot().to_dict(),
            **self.log.to_dict(),
        }

    def load_dict(self, saved: dict[str, Any]) -> None:
        """Keep what :meth:`to_dict` gave until training takes it up."""
        self.saved = saved
        self.step = int(saved["step"])
        # Earlier releases of this version kept neither.
        self.frozen_steps, self.is_frozen = int(saved.get("held", 0)), bool(saved.get("is_frozen", False))
        self.log.load_dict(saved)

    def take_up(self) -> None:
        """Go on, in the midst of training, from the state that was just loaded."""
        saved = self.saved
        assert saved is not None
        self.revision += 1
        self.state = self._restored(saved["strategy"])
        self._extend_schedule()
        set_rng_state(saved["rng"])
        self.saved = None

    def note_return(self, step: int) -> None:
        """Remember that training went back to before ``step``, where it was still sound."""
        self.log.add_event(step, RETURN)

    def _restored(self, saved: dict[str, Any]) -> Any:
        """The strategy's state of a checkpoint."""
        try:
            return self.strategy.restore(saved)
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
            raise InputError(
                f"the checkpoint's strategy has entries that this package does not write ({first_line(error)}); it is "
                "damaged"
            ) from error

    def _extend_schedule(self) -> None:
        """In a run that is extended, what is asked for by hand may take place in the whole of it."""
        schedule = getattr(self.state, "schedule", None)
        if schedule is not None and schedule.total < self._total_steps:
            self.state.schedule = replace(schedule, total=self._total_steps)


def _in_words(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)
