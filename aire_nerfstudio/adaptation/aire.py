"""AIRe: densify input frequencies, move information out of weak neurons, remove them.

Source: "Adaptive Training of INRs via Pruning and Densification", sections 3.1 and 3.2; the choices made where the
paper is silent are listed in ``docs/method.md``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from aire_nerfstudio.adaptation import surgery
from aire_nerfstudio.adaptation.aire_config import AireConfig, check
from aire_nerfstudio.adaptation.base import PlannedEvent, Probe, Report, widths
from aire_nerfstudio.adaptation.budget import choose_for_budget
from aire_nerfstudio.adaptation.compensation import apply_correction, correction
from aire_nerfstudio.adaptation.control import Action, Refused, Request, StageSpan, Status, spread
from aire_nerfstudio.adaptation.decay import cap_contribution, plain_penalty, soft_threshold, targeted_penalty
from aire_nerfstudio.adaptation.frequencies import residual_frequencies
from aire_nerfstudio.adaptation.importance import contribution, score, strongest, taylor_saliency, weakest
from aire_nerfstudio.adaptation.schedule import Schedule, ScheduleError, to_steps
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.neurons import NeuronGroup

NEW_COLUMN_BOUND = 1e-4
# How many steps before a decision the Taylor scores are averaged over.
SALIENCY_STEPS = 100


@dataclass
class AireState:
    """Where a run stands. ``targets[i]`` are the chosen neurons of layer ``layers[i]``.

    ``caps[i]`` are their contributions when chosen; ``saliency`` are running scores, one ``[n]`` a layer.
    """

    schedule: Schedule
    is_densified: bool = False
    is_decaying: bool = False
    is_pruned: bool = False
    layers: tuple[int, ...] = ()
    targets: list[Tensor] = field(default_factory=list)
    caps: list[Tensor] = field(default_factory=list)
    saliency: list[Tensor] = field(default_factory=list)
    _on_device: tuple[list[Tensor], torch.device, dict[int, Tensor]] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def targets_on(self, device: torch.device) -> dict[int, Tensor]:
        """Chosen neurons of each layer, on ``device``: copied once a choice, since a copy waits for the device."""
        there = self._on_device
        if there is None or there[0] is not self.targets or there[1] != device:
            copied = {layer: chosen.to(device) for layer, chosen in zip(self.layers, self.targets, strict=True)}
            there = self._on_device = (self.targets, device, copied)
        return there[2]

    @property
    def removal_at(self) -> int | None:
        """The step before which the chosen neurons go, if that is still to come."""
        return None if self.is_pruned else self.schedule.prune_at

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain Python values only."""
        return {
            "schedule": {
                "total": self.schedule.total,
                "densify_at": self.schedule.densify_at,
                "decay_start": self.schedule.decay_start,
                "prune_at": self.schedule.prune_at,
            },
            "is_densified": self.is_densified,
            "is_decaying": self.is_decaying,
            "is_pruned": self.is_pruned,
            "layers": list(self.layers),
            "targets": [t.cpu() for t in self.targets],
            "caps": [t.cpu() for t in self.caps],
            "saliency": [t.cpu() for t in self.saliency],
        }

    def load_dict(self, saved: dict[str, Any]) -> None:
        """Restore what :meth:`to_dict` gave; the saved schedule replaces the configured one."""
        self.schedule = Schedule(**saved["schedule"])
        self.is_densified = bool(saved["is_densified"])
        self.is_decaying = bool(saved["is_decaying"])
        self.is_pruned = bool(saved["is_pruned"])
        self.layers = tuple(saved["layers"])
        self.targets = [t.clone() for t in saved["targets"]]
        self.caps = [t.clone() for t in saved["caps"]]
        self.saliency = [t.clone() for t in saved["saliency"]]


class AireStrategy:
    """The AIRe schedule over the sine layers of one network; ``groups[0]`` is its input layer.

    Args:
        config: the run's choices.
        first_omega: the network's first ``w0``; only ``densify_from="residual"`` needs it, whose frequencies are off
            by as much as it is.

    Raises:
        ScheduleError: a value out of range, found at construction or, where it depends on the network or the run, in
            :meth:`init_state`.
    """

    can_grow: ClassVar[bool] = True
    """Whether neurons may be added by hand."""
    removes_once: ClassVar[bool] = True
    """Whether all go at ``prune_at``: to a ``target_psnr``, or in ``rounds``, they go in between."""

    def __init__(self, config: AireConfig, first_omega: float = 30.0) -> None:
        self.config = config
        self.first_omega = first_omega
        check(config)
        if self.removes_once and (config.target_psnr is not None or config.rounds > 1):
            raise ScheduleError(
                f"{type(self).__name__} removes once; target_psnr {config.target_psnr} and rounds {config.rounds} are "
                "for TargetPsnrStrategy and TargetSizeStrategy: take what variants.make_strategy gives"
            )

    def init_state(self, groups: Sequence[NeuronGroup], steps_per_epoch: int, total_steps: int) -> AireState:
        """Resolve the schedule to steps and check it against the network and the run.

        Args:
            groups: the network's layers, input first.
            steps_per_epoch: ``ceil(samples / batch)``.
            total_steps: optimizer steps of the run.

        Raises:
            ScheduleError: an event outside the run, an unknown layer, or more neurons to remove than a layer has.
        """
        config = self.config

        def moment(value: float | None) -> int | None:
            return None if value is None else to_steps(value, config.unit, steps_per_epoch, total_steps)

        schedule = Schedule(
            total=total_steps,
            densify_at=moment(config.densify_at),
            decay_start=moment(config.decay_start),
            prune_at=moment(config.prune_at),
        )
        planned = self.planned_widths(widths(groups), schedule)
        decisions = (schedule.densify_at, schedule.decay_start)
        if config.criterion == "taylor" and 0 in decisions:
            raise ScheduleError(
                "the criterion 'taylor' needs gradients from before a decision; decide later than step 0"
            )
        if config.criterion == "taylor" and schedule.densify_at is not None and len(set(decisions)) == 1:
            raise ScheduleError(
                f"densify_at and decay_start are both step {schedule.densify_at}; the criterion 'taylor' needs "
                "gradients of the new neurons before it chooses: begin the decay later"
            )
        if config.most_parameters is not None:
            choose_for_budget([torch.zeros(width) for width in planned], *_ends(groups), config.most_parameters)
        return AireState(schedule=schedule)

    def restore(self, saved: dict[str, Any]) -> AireState:
        """The state that a checkpoint holds; its schedule replaces the configured one."""
        state = AireState(Schedule(total=1))
        state.load_dict(saved)
        return state

    def plan(self, state: AireState, start: Sequence[int]) -> list[PlannedEvent]:
        """Densification, decay and removal as far as they are still to come."""
        schedule, config = state.schedule, self.config
        rows: list[tuple[int, str]] = []
        if schedule.densify_at is not None and not state.is_densified:
            rows.append((schedule.densify_at, f"densify: {self.densify_count(start[0])} input neurons"))
        if schedule.decay_start is not None and not state.is_decaying:
            rows.append((schedule.decay_start, f"{config.decay} decay of the weakest neurons begins"))
        if schedule.prune_at is not None and not state.is_pruned:
            at_most = "" if config.prune_rule == "all" else f" (at most; contribution <= {config.epsilon})"
            if config.most_parameters is not None:
                at_most = f" to {config.most_parameters:,} parameters{at_most}"
            rows.append((schedule.prune_at, f"prune{at_most}"))
        events = [PlannedEvent(at, event) for at, event in sorted(rows)]
        is_fresh = not (state.is_densified or state.is_decaying or state.is_pruned)
        if events and is_fresh and not config.has_target:
            events[-1] = PlannedEvent(events[-1].step, events[-1].event, self.planned_widths(start, schedule))
        return events

    def planned_widths(self, start: Sequence[int], schedule: Schedule) -> tuple[int, ...]:
        """Widths at the end of the run (with ``prune_rule="threshold"``: the least they can be).

        Args:
            start: widths at the beginning.
            schedule: the resolved schedule; its order of densification and pruning matters for shares.

        Raises:
            ScheduleError: an unknown layer, or no neuron would be left in one.
        """
        now = list(start)

        def densify() -> None:
            count = self.densify_count(now[0])
            if count > now[0]:
                raise ScheduleError(
                    f"densify_count is {count}; the input layer has {now[0]} neurons, so at most {now[0]} can be "
                    "doubled"
                )
            now[0] += count

        if schedule.densify_at is not None and schedule.densifies_first:
            densify()
        if schedule.decay_start is not None and not self.config.has_target:
            for position, layer in enumerate(self.config.prune_layers):
                if not 0 <= layer < len(now):
                    raise ScheduleError(
                        f"prune_layers names layer {layer}; the network's sine layers are 0 to {len(now) - 1}"
                    )
                now[layer] -= self._amount(position, now[layer], layer)
        if schedule.densify_at is not None and not schedule.densifies_first:
            densify()
        return tuple(now)

    def densify_count(self, width: int) -> int:
        """How many neurons are added to an input layer of the given width."""
        return self.config.densify_count or round(self.config.densify_fraction * width)

    def _amount(self, position: int, width: int, layer: int) -> int:
        """How many neurons to choose in ``prune_layers[position]`` of the given width; at least one must remain."""
        if self.config.prune_counts is not None:
            amount = self.config.prune_counts[position]
            what = f"prune_counts asks for {amount}"
        else:
            amount = round(self.config.prune_fraction * width)
            what = f"prune_fraction {self.config.prune_fraction} asks for {amount}"
        if amount < 0:
            raise ScheduleError(f"{what} neurons in layer {layer}; it must be 0 or more")
        if amount >= width:
            raise ScheduleError(f"{what} of the {width} neurons of layer {layer}; at least one must remain")
        return amount

    def penalty_weight(self, state: AireState, step: int) -> float:
        """``alpha(step)`` in the decay stage, or ``plain_weight_decay``; the other decays act in :meth:`constrain`."""
        if not state.is_decaying or state.is_pruned:
            return 0.0
        if self.config.decay == "weight_decay":
            return self.config.plain_weight_decay
        return self.config.decay_weight * self._progress(state, step) if self.config.decay == "targeted" else 0.0

    def penalty_reads(self, state: AireState, device: torch.device) -> Sequence[Tensor]:
        """The chosen neurons, in a targeted decay."""
        if not state.is_decaying or state.is_pruned or self.config.decay != "targeted":
            return ()
        return tuple(state.targets_on(device).values())

    def penalty(
        self, groups: Sequence[NeuronGroup], state: AireState, step: int, weight: Tensor | None = None
    ) -> Tensor:
        """``alpha(step) * sum_{j in I} |W_{*j}|_1`` in the decay stage, ``[]``; zero elsewhere.

        With ``decay="weight_decay"``: ``plain_weight_decay * sum W^2`` over all the weights of the groups instead.
        """
        zero = groups[0].weight.parameter.new_zeros(())
        factor = self.penalty_weight(state, step) if weight is None else weight
        if weight is None and factor == 0:
            return zero
        if self.config.decay == "weight_decay":
            return factor * plain_penalty(groups)
        return factor * targeted_penalty(groups, state.targets_on(zero.device))

    def constrain(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: AireState,
        step: int,
        error: Tensor | None = None,
    ) -> None:
        """After an optimizer step: the proximal or scheduled decay, and the scores that need gradients."""
        if self.config.criterion == "taylor" and self._is_soon(state, step):
            self._follow_saliency(groups, state)
        if not state.is_decaying or state.is_pruned or self.config.decay not in ("proximal", "scheduled"):
            return
        if self.config.decay == "scheduled":
            self._cap(groups, state, step)
            return
        strength = self.config.decay_weight * self._progress(state, step + 1)
        soft_threshold(groups, state.targets_on(groups[0].weight.parameter.device), strength, optimizers)

    def _cap(self, groups: Sequence[NeuronGroup], state: AireState, step: int) -> None:
        """Keep the chosen columns' norms below a line that falls to 0 with the stage's last step."""
        targets = state.targets_on(groups[0].weight.parameter.device)
        left = 1 - self._progress(state, step + 1)
        # Copied once, as the targets are.
        state.caps = [cap.to(groups[0].weight.parameter.device) for cap in state.caps]
        caps = dict(zip(targets, state.caps, strict=True))
        cap_contribution(groups, targets, {layer: left * cap for layer, cap in caps.items()})

    def missed_target(self, state: AireState) -> str | None:
        """Nothing is promised that could be missed."""
        return None

    def _progress(self, state: AireState, step: int) -> float:
        """How much of the decay stage is over before ``step``: 0 at its start, 1 at the removal."""
        schedule = state.schedule
        assert schedule.decay_start is not None
        assert schedule.prune_at is not None
        # Chosen by hand while the schedule stands still, neurons are ahead of its clock.
        return max(0, step - schedule.decay_start) / (schedule.prune_at - schedule.decay_start)

    @staticmethod
    def _is_soon(state: AireState, step: int) -> bool:
        decisions = (state.schedule.densify_at, state.schedule.decay_start)
        return any(at is not None and at - SALIENCY_STEPS <= step < at for at in decisions)

    @staticmethod
    def _follow_saliency(groups: Sequence[NeuronGroup], state: AireState) -> None:
        fresh = [taylor_saliency(group) for group in groups]
        if len(state.saliency) != len(groups) or any(
            new is not None and len(new) != len(old) for new, old in zip(fresh, state.saliency, strict=True)
        ):
            state.saliency = [torch.zeros(group.width) for group in groups]
        for new, old in zip(fresh, state.saliency, strict=True):
            if new is not None:
                old += (new.to(old) - old) / SALIENCY_STEPS

    def _scores(
        self, groups: Sequence[NeuronGroup], state: AireState, layers: Sequence[int], probe: Probe | None
    ) -> list[Tensor]:
        """Scores of the neurons of some layers, one ``[n]`` each."""
        outputs = probe.outputs() if probe is not None and self.config.criterion == "activation" else None
        return [
            score(
                groups[layer],
                self.config.criterion,
                None if outputs is None else outputs[layer],
                state.saliency[layer] if state.saliency else None,
            )
            for layer in layers
        ]

    def is_due(self, state: AireState, step: int) -> bool:
        """Whether a moment of the schedule has come."""
        return bool(self._due(state, step))

    @staticmethod
    def _due(state: AireState, step: int) -> list[Action]:
        """What is to be done before the optimizer step ``step``, in order."""
        schedule = state.schedule
        moments: list[tuple[Action, int | None, bool]] = [
            ("decay", schedule.decay_start, state.is_decaying),
            ("prune", schedule.prune_at, state.is_pruned),
        ]
        moments.insert(0 if schedule.densifies_first else 2, ("densify", schedule.densify_at, state.is_densified))
        return [action for action, at, is_done in moments if at is not None and step >= at and not is_done]

    @torch.no_grad()
    def step(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: AireState,
        step: int,
        averages: Sequence[Sequence[NeuronGroup]] = (),
        probe: Probe | None = None,
    ) -> list[Report]:
        """Make the changes due before the optimizer step ``step``, each once; see :class:`base.Strategy`."""
        reports: list[Report] = []
        for action in self._due(state, step):
            if action == "densify":
                reports.append(self._densify(groups, optimizers, state, step, averages, probe))
            elif action == "decay":
                reports.append(self._choose(groups, state, step, probe))
            else:
                reports.append(self._prune(groups, optimizers, state, step, averages, probe))
        return reports

    def _densify(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: AireState,
        step: int,
        averages: Sequence[Sequence[NeuronGroup]],
        probe: Probe | None,
        count: int | None = None,
    ) -> Report:
        before = widths(groups)
        count = self.densify_count(before[0]) if count is None else count
        columns = groups[0].outgoing.parameter
        outgoing = columns.new_empty(columns.shape[0], count).uniform_(-NEW_COLUMN_BOUND, NEW_COLUMN_BOUND)
        if self.config.densify_from == "residual":
            rows, phases = self._rows_from_residual(groups[0], count, probe)
            new = [(rows, phases)] * (1 + len(averages))
        else:
            (scores,) = self._scores(groups, state, [0], probe)
            parents = strongest(scores, count)
            layers = [twin[0] for twin in (groups, *averages)]
            new = [(2 * g.weight.parameter[parents], 2 * g.bias.parameter[parents]) for g in layers]
        for (weight, bias), twin, held_by in zip(
            new, (groups, *averages), (optimizers, *([()] * len(averages))), strict=True
        ):
            surgery.grow(twin[0], weight=weight, bias=bias, outgoing=outgoing, optimizers=held_by)
        state.is_densified = True
        return Report(step, "densify", _per_layer(groups, {0: count}), before, widths(groups))

    def _rows_from_residual(self, group: NeuronGroup, count: int, probe: Probe | None) -> tuple[Tensor, Tensor]:
        """Incoming rows ``[count, d]`` and biases ``[count]`` of new input neurons."""
        if probe is None or probe.residual is None:
            raise ScheduleError(
                "densify_from 'residual' needs the network's own residual, which this task lacks; use 'harmonics'"
            )
        weight = group.weight.parameter
        limit = 2 * self.first_omega * weight.abs().amax(0)
        frequencies, phases = residual_frequencies(*probe.residual(), limit, count)
        return (frequencies / self.first_omega).to(weight), (phases / self.first_omega).to(weight)

    def _choose(self, groups: Sequence[NeuronGroup], state: AireState, step: int, probe: Probe | None) -> Report:
        self._aim(groups, state, *self._weakest(groups, state, probe))
        return self._chosen(groups, state, step)

    def _weakest(
        self, groups: Sequence[NeuronGroup], state: AireState, probe: Probe | None
    ) -> tuple[Sequence[int], list[Tensor]]:
        """Layers, and of each the neurons that should go."""
        if self.config.most_parameters is not None:
            return self._weakest_for_size(groups, state, probe, self.config.most_parameters)
        layers = self.config.prune_layers
        scores = self._scores(groups, state, layers, probe)
        return layers, [
            weakest(scores[position], self._amount(position, groups[layer].width, layer))
            for position, layer in enumerate(layers)
        ]

    @torch.no_grad()
    def candidates(self, groups: Sequence[NeuronGroup], state: AireState) -> dict[int, Tensor]:
        """What would be chosen now; nothing where the criterion asks for what is only there at the decision."""
        config = self.config
        has_goal = config.most_parameters is not None or not config.has_target
        if state.is_pruned or state.schedule.decay_start is None or not has_goal or config.criterion == "activation":
            return {}
        if config.criterion == "taylor" and [len(s) for s in state.saliency if s.any()] != list(widths(groups)):
            return {}
        layers, chosen = self._weakest(groups, state, None)
        return {layer: indices.cpu() for layer, indices in zip(layers, chosen, strict=True)}

    @staticmethod
    def _chosen(groups: Sequence[NeuronGroup], state: AireState, step: int) -> Report:
        counts = {layer: len(t) for layer, t in zip(state.layers, state.targets, strict=True)}
        now, indices = widths(groups), _indices(groups, state.layers, state.targets)
        return Report(step, "decay", _per_layer(groups, counts), now, now, indices)

    def _weakest_for_size(
        self, groups: Sequence[NeuronGroup], state: AireState, probe: Probe | None, parameters: int
    ) -> tuple[Sequence[int], list[Tensor]]:
        """From all layers, so that at most ``parameters`` remain."""
        layers = range(len(groups))
        scores = self._scores(groups, state, layers, probe)
        return layers, choose_for_budget(scores, *_ends(groups), parameters)[1]

    @staticmethod
    def _aim(groups: Sequence[NeuronGroup], state: AireState, layers: Sequence[int], chosen: Sequence[Tensor]) -> None:
        """From now on these neurons decay."""
        state.layers, state.targets = tuple(layers), [indices.cpu() for indices in chosen]
        state.caps = [
            contribution(groups[layer])[indices].detach().cpu() for layer, indices in zip(layers, chosen, strict=True)
        ]
        state.is_decaying = True

    def _prune(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: AireState,
        step: int,
        averages: Sequence[Sequence[NeuronGroup]],
        probe: Probe | None,
    ) -> Report:
        before = widths(groups)
        removed: dict[int, int] = {}
        doomed: list[Tensor] = []
        # All layers are judged on the network as it is before any of them shrinks.
        for layer, targets in zip(state.layers, state.targets, strict=True):
            if self.config.prune_rule == "threshold":
                scores = contribution(groups[layer]).cpu()[targets]
                targets = targets[scores <= self.config.epsilon]
            doomed.append(targets)
        for layer, targets in zip(state.layers, doomed, strict=True):
            if self.config.compensation != "none":
                if probe is None:
                    raise ScheduleError("compensation needs the layers' outputs over data, which this task lacks")
                device = groups[layer].weight.parameter.device
                # Anew for each layer: the ones before it have changed.
                added = correction(groups[layer], targets.to(device), probe.outputs()[layer], self.config.compensation)
                for twin in (groups, *averages):
                    apply_correction(twin[layer], *added)
            surgery.prune(groups[layer], targets, optimizers)
            for average in averages:
                surgery.prune(average[layer], targets)
            removed[layer] = len(targets)
        indices = _indices(groups, state.layers, doomed)
        state.targets, state.caps = [], []
        state.is_pruned = True
        return Report(step, "prune", _per_layer(groups, removed), before, widths(groups), indices)

    # --- by hand -----------------------------------------------------------------------------------------------------

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
        count = request.count or self.densify_count(width)
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


def _ends(groups: Sequence[NeuronGroup]) -> tuple[int, int]:
    """Inputs and outputs of the network."""
    return groups[0].weight.parameter.shape[1], groups[-1].next_bias.numel()


def _indices(
    groups: Sequence[NeuronGroup], layers: Sequence[int], chosen: Sequence[Tensor]
) -> tuple[tuple[int, ...], ...]:
    """Chosen neurons, one tuple a layer of ``groups``."""
    by_layer = {layer: tuple(indices.tolist()) for layer, indices in zip(layers, chosen, strict=True)}
    return tuple(by_layer.get(index, ()) for index in range(len(groups)))


def _per_layer(groups: Sequence[NeuronGroup], counts: dict[int, int]) -> tuple[int, ...]:
    return tuple(counts.get(index, 0) for index in range(len(groups)))
