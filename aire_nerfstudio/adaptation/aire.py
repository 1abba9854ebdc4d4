"""The AIRe strategy: what its schedule has, and what a person asks for in between."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch.optim import Optimizer

from aire_nerfstudio.adaptation.aire_plan import densify_count
from aire_nerfstudio.adaptation.aire_scheduled import SALIENCY_STEPS, ScheduledAire
from aire_nerfstudio.adaptation.aire_state import AireState
from aire_nerfstudio.adaptation.base import Probe, Report
from aire_nerfstudio.adaptation.control import Action, Refused, Request, StageSpan, Status, spread
from aire_nerfstudio.adaptation.importance import weakest
from aire_nerfstudio.adaptation.schedule import Schedule
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.neurons import NeuronGroup


class AireStrategy(ScheduledAire):
    """The AIRe schedule over the sine layers of one network, which a person may change while it runs.

    Args and errors as those of :class:`~aire_nerfstudio.adaptation.aire_scheduled.ScheduledAire`.
    """

    can_grow: ClassVar[bool] = True
    """Whether neurons may be added by hand."""

    def status(self, state: AireState) -> Status:
        """The schedule's stages and the neurons that decay."""
        targets = zip(state.layers, state.targets, strict=True) if state.is_decaying and not state.is_pruned else ()
        chosen = {layer: tuple(indices.tolist()) for layer, indices in targets}
        return Status(self._spans(state), chosen, state.removal_at, controllable=True)

    def _spans(self, state: AireState) -> tuple[StageSpan, ...]:
        schedule = state.schedule
        moments = (schedule.densify_at, schedule.decay_start, schedule.prune_at)
        edges = sorted({0, schedule.total, *(at for at in moments if at is not None)})
        return tuple(StageSpan(schedule.stage(start), start, end) for start, end in pairwise(edges))

    @torch.no_grad()
    def control(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: AireState,
        step: int,
        request: Request,
        averages: Sequence[Sequence[NeuronGroup]] = (),
        probe: Probe | None = None,
    ) -> list[Report]:
        """Do what a person asks for; see :class:`base.Strategy`.

        What the schedule had planned of the same kind counts as done; what has been done already is done once more.
        """
        # Not the copies on the device: a captured step reads them where they are.
        before = copy.deepcopy({name: value for name, value in vars(state).items() if name != "_on_device"})
        targets = state.targets
        try:
            return self._controlled(groups, optimizers, state, step, request, averages, probe)
        except InputError as error:
            vars(state).update(before, targets=targets)
            raise error if isinstance(error, Refused) else Refused(str(error)) from error

    def _controlled(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: AireState,
        step: int,
        request: Request,
        averages: Sequence[Sequence[NeuronGroup]],
        probe: Probe | None,
    ) -> list[Report]:
        if request.action == "densify":
            report = self._densify_by_hand(groups, optimizers, state, step, request, averages, probe)
        elif request.action == "decay":
            report = self._decay_by_hand(groups, state, step, request, probe)
        elif request.action == "prune":
            report = self._prune_by_hand(groups, optimizers, state, step, averages, probe)
        else:
            following = self._following(state, step)
            if following == "skip":
                raise Refused("nothing is left in the schedule; densify, decay and prune work without it")
            return self._controlled(groups, optimizers, state, step, Request(following), averages, probe)
        return [replace(report, by_hand=True)]

    def _following(self, state: AireState, step: int) -> Action:
        """What the schedule has next; ``skip``: nothing."""
        schedule = state.schedule
        if state.is_decaying and not state.is_pruned:
            return "prune"
        waiting: list[tuple[int, Action]] = []
        if schedule.densify_at is not None and not state.is_densified:
            waiting.append((schedule.densify_at, "densify"))
        if schedule.decay_start is not None and not state.is_decaying:
            waiting.append((schedule.decay_start, "decay"))
        # Of two at the same moment the one that the schedule does first.
        return min(waiting, key=lambda pair: pair[0])[1] if waiting else "skip"

    def _densify_by_hand(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: AireState,
        step: int,
        request: Request,
        averages: Sequence[Sequence[NeuronGroup]],
        probe: Probe | None,
    ) -> Report:
        width = groups[0].width
        count = request.count or densify_count(self.config, width)
        if not self.can_grow:
            raise Refused("this variant adds no neurons; train the variant aire")
        if state.is_decaying and not state.is_pruned:
            raise Refused("neurons are decaying; remove them first (prune), then densify")
        if count < 1:
            raise Refused("the configuration adds no neurons and no count was given; give one")
        if count > width:
            raise Refused(f"count is {count}; the input layer has {width} neurons, so at most {width} can be added")
        if self.config.criterion == "taylor" and self.config.densify_from == "harmonics":
            self._check_saliency(state, step)
        planned = None if state.is_densified else self._with_densification(state.schedule, step)
        report = self._densify(groups, optimizers, state, step, averages, probe, count)
        state.schedule = planned or state.schedule
        return report

    def _decay_by_hand(
        self, groups: Sequence[NeuronGroup], state: AireState, step: int, request: Request, probe: Probe | None
    ) -> Report:
        if state.is_decaying and not state.is_pruned:
            chosen = sum(len(t) for t in state.targets)
            raise Refused(f"{chosen} neurons are decaying already; remove them first (prune)")
        if self.config.criterion == "taylor":
            self._check_saliency(state, step)
        self._check_layers(groups, request)
        schedule = self._decay_schedule(state, step, request)
        if request.count is None:
            report = self._choose(groups, state, step, probe)
        else:
            layers = self.config.prune_layers
            shares = spread(request.count, [groups[layer].width for layer in layers])
            scores = self._scores(groups, state, layers, probe)
            self._aim(groups, state, layers, [weakest(s, n) for s, n in zip(scores, shares, strict=True)])
            report = self._chosen(groups, state, step)
        state.schedule, state.is_pruned = schedule, False
        return report

    def _with_densification(self, schedule: Schedule, step: int) -> Schedule:
        return replace(schedule, densify_at=step)

    def _check_saliency(self, state: AireState, step: int) -> None:
        """The scores are followed before scheduled decisions only."""
        if not state.saliency or not self._is_soon(state, step):
            raise Refused(f"'taylor' has fresh scores only in the {SALIENCY_STEPS} steps before a scheduled decision")

    def _check_layers(self, groups: Sequence[NeuronGroup], request: Request) -> None:
        """What a schedule would have been checked for at the start of the run."""
        layers, counts = self.config.prune_layers, self.config.prune_counts
        if not layers or min(layers) < 0 or max(layers) >= len(groups):
            raise Refused(f"prune_layers is {layers}; the network's sine layers are 0 to {len(groups) - 1}")
        if request.count is None and counts is not None and len(counts) != len(layers):
            raise Refused(f"prune_counts {counts} must have one number for each of the layers {layers}; give a count")

    def _decay_schedule(self, state: AireState, step: int, request: Request) -> Schedule:
        """The schedule with the decay beginning at ``step``."""
        schedule = state.schedule
        planned = schedule.prune_at if not state.is_decaying else None
        if request.steps is not None:
            end = step + request.steps
        elif planned is not None and planned > step:
            end = planned
        else:
            end = step + max(1, schedule.total // 10)
        if end >= schedule.total:
            raise Refused(f"the decay would end at step {end:,} and the run at {schedule.total:,}; give fewer steps")
        densify_at = schedule.densify_at
        if densify_at is not None and not state.is_densified and step < densify_at < end:
            raise Refused(f"neurons are added at step {densify_at:,}, within the decay; densify first")
        return replace(schedule, decay_start=step, prune_at=end)

    def _prune_by_hand(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: AireState,
        step: int,
        averages: Sequence[Sequence[NeuronGroup]],
        probe: Probe | None,
    ) -> Report:
        if not state.is_decaying or state.is_pruned:
            raise Refused("no neurons are chosen; start their decay first")
        schedule = replace(state.schedule, prune_at=step)
        report = self._prune(groups, optimizers, state, step, averages, probe)
        state.schedule = schedule
        return report
