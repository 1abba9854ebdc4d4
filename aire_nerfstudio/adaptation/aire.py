"""AIRe: densify input frequencies, move information out of weak neurons, remove them.

Source: "Adaptive Training of INRs via Pruning and Densification", sections 3.1 and 3.2; the choices made where the
paper is silent are listed in ``docs/method.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from aire_nerfstudio.adaptation import surgery
from aire_nerfstudio.adaptation.base import PlannedEvent, Probe, Report, widths
from aire_nerfstudio.adaptation.budget import choose_for_budget
from aire_nerfstudio.adaptation.compensation import Compensation, apply_correction, correction
from aire_nerfstudio.adaptation.decay import (
    Decay,
    cap_contribution,
    plain_penalty,
    soft_threshold,
    targeted_penalty,
)
from aire_nerfstudio.adaptation.frequencies import Densify, residual_frequencies
from aire_nerfstudio.adaptation.importance import (
    Criterion,
    contribution,
    score,
    strongest,
    taylor_saliency,
    weakest,
)
from aire_nerfstudio.adaptation.schedule import Schedule, ScheduleError, ScheduleUnit, to_steps
from aire_nerfstudio.fields.neurons import NeuronGroup

NEW_COLUMN_BOUND = 1e-4
# How many steps before a decision the Taylor scores are averaged over.
SALIENCY_STEPS = 100

_CHOICES: dict[str, tuple[str, ...]] = {
    "unit": get_args(ScheduleUnit),
    "densify_from": get_args(Densify),
    "criterion": get_args(Criterion),
    "decay": get_args(Decay),
    "compensation": get_args(Compensation),
    "prune_rule": ("all", "threshold"),
}


@dataclass(frozen=True)
class AireConfig:
    """When and how much the network adapts. Moments are counted in ``unit``."""

    unit: ScheduleUnit = "percent"
    """What the moments below count: optimizer steps, epochs, or percent of the run."""
    densify_at: float | None = None
    """When input neurons are added; None: never."""
    densify_count: int = 0
    """How many input neurons are added; 0: densify_fraction decides."""
    densify_fraction: float = 0.0
    """Share of the input layer's width to add, in [0, 1]; used where densify_count is 0."""
    densify_from: Densify = "harmonics"
    """Which frequencies are added: twice the strongest (the paper's), or where the residual has most energy, up to
    twice the largest there is."""
    decay_start: float | None = None
    """When the neurons to remove are chosen and their decay begins; None: nothing is ever removed."""
    prune_at: float | None = None
    """When the chosen neurons are removed."""
    prune_layers: tuple[int, ...] = (0, 1)
    """Sine layers that lose neurons; 0 is the input layer."""
    prune_fraction: float = 0.5
    """Share of each of these layers to choose, in (0, 1), of the width at decay_start."""
    prune_counts: tuple[int, ...] | None = None
    """Numbers of neurons to choose, one a layer of prune_layers; overrides prune_fraction."""
    target_parameters: int | None = None
    """Parameters that the adaptive network may have in the end; layers and numbers then follow from the contributions,
    and prune_layers, prune_fraction and prune_counts are not used. Four bytes each. None: no such limit."""
    prune_rule: Literal["all", "threshold"] = "all"
    """Remove all chosen neurons (fixed final size), or those whose contribution is at most epsilon."""
    epsilon: float = 0.01
    """Threshold on the L1 norm of a neuron's outgoing column (w0 not folded in)."""
    criterion: Criterion = "l1"
    """What decides which neurons are strong and weak: l1 or l2 norm of the outgoing column, activation, taylor."""
    decay: Decay = "targeted"
    """The decay stage: the paper's L1 term in the loss on the chosen columns (targeted), the same as a proximal step
    outside Adam, a cap on their norm that falls linearly to 0 (scheduled), L2 on all weights, or none."""
    decay_weight: float = 1.0
    """Factor of the targeted and proximal decay; the paper's alpha rises from 0 to 1, times this."""
    compensation: Compensation = "none"
    """On removal: nothing, the mean output goes into the next bias, or the next layer is refitted to the data."""
    plain_weight_decay: float = 1e-4
    """Factor of the plain weight decay, when chosen."""


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
        first_omega: the network's first ``w0``; only ``densify_from="residual"`` needs it.

    Raises:
        ScheduleError: a value out of range, found at construction or, where it depends on the network or the run, in
            :meth:`init_state`.
    """

    def __init__(self, config: AireConfig, first_omega: float = 30.0) -> None:
        self.config = config
        self.first_omega = first_omega
        if not 0 <= config.densify_fraction <= 1:
            raise ScheduleError(f"densify_fraction is {config.densify_fraction}; it must lie in [0, 1]")
        if (config.densify_at is None) != (config.densify_count == 0 and config.densify_fraction == 0):
            raise ScheduleError(
                f"densify_at {config.densify_at} and densify_count {config.densify_count} (or densify_fraction "
                f"{config.densify_fraction}) go together; give both or neither"
            )
        for name, kinds in _CHOICES.items():
            if getattr(config, name) not in kinds:
                raise ScheduleError(f"{name} is {getattr(config, name)!r}; choose one of {', '.join(kinds)}")
        if config.densify_count < 0:
            raise ScheduleError(f"densify_count is {config.densify_count}; it must be 0 or more")
        if len(set(config.prune_layers)) != len(config.prune_layers):
            raise ScheduleError(f"prune_layers {config.prune_layers} names a layer twice")
        if config.target_parameters is not None and (config.target_parameters < 1 or config.decay_start is None):
            raise ScheduleError(
                f"target_parameters is {config.target_parameters}; it must be at least 1, and decay_start and prune_at "
                "must say when"
            )
        if config.epsilon < 0 or config.decay_weight < 0 or config.plain_weight_decay < 0:
            raise ScheduleError("epsilon, decay_weight and plain_weight_decay must be 0 or more")
        if config.decay_start is not None:
            if not config.prune_layers:
                raise ScheduleError("decay_start is set but prune_layers is empty; name at least one layer")
            if config.prune_counts is not None and len(config.prune_counts) != len(config.prune_layers):
                raise ScheduleError(
                    f"prune_counts {config.prune_counts} must have one number for each of the layers "
                    f"{config.prune_layers}"
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
        if config.target_parameters is not None:
            n_in, n_out = groups[0].weight.parameter.shape[1], groups[-1].next_bias.numel()
            choose_for_budget([torch.zeros(width) for width in planned], n_in, n_out, config.target_parameters)
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
            if config.target_parameters is not None:
                at_most = f" to {config.target_parameters:,} parameters{at_most}"
            rows.append((schedule.prune_at, f"prune{at_most}"))
        events = [PlannedEvent(at, event) for at, event in sorted(rows)]
        is_fresh = not (state.is_densified or state.is_decaying or state.is_pruned)
        if events and is_fresh and config.target_parameters is None:
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
        if schedule.decay_start is not None and self.config.target_parameters is None:
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

    def penalty(self, groups: Sequence[NeuronGroup], state: AireState, step: int) -> Tensor:
        """``alpha(step) * sum_{j in I} |W_{*j}|_1`` in the decay stage, ``[]``; zero elsewhere.

        With ``decay="weight_decay"``: ``plain_weight_decay * sum W^2`` over all the weights of the groups instead; the
        proximal and the scheduled decay act in :meth:`constrain`.
        """
        zero = groups[0].weight.parameter.new_zeros(())
        if not state.is_decaying or state.is_pruned:
            return zero
        if self.config.decay == "weight_decay":
            return self.config.plain_weight_decay * plain_penalty(groups)
        alpha = self.config.decay_weight * state.schedule.decay_weight(step)
        if self.config.decay != "targeted" or alpha == 0:
            return zero
        return alpha * targeted_penalty(groups, self._targets(state, zero.device))

    def constrain(
        self, groups: Sequence[NeuronGroup], optimizers: Sequence[Optimizer], state: AireState, step: int
    ) -> None:
        """After an optimizer step: the proximal or scheduled decay, and the scores that need gradients."""
        if self.config.criterion == "taylor" and self._is_soon(state.schedule, step):
            self._follow_saliency(groups, state)
        if not state.is_decaying or state.is_pruned or self.config.decay not in ("proximal", "scheduled"):
            return
        targets = self._targets(state, groups[0].weight.parameter.device)
        schedule = state.schedule
        assert schedule.decay_start is not None
        assert schedule.prune_at is not None
        # One step on: after the stage's last step the scheduled norm is 0, and the pruning changes nothing.
        alpha = (step + 1 - schedule.decay_start) / (schedule.prune_at - schedule.decay_start)
        if self.config.decay == "proximal":
            soft_threshold(groups, targets, alpha * self.config.decay_weight, optimizers)
        else:
            caps = dict(zip(targets, state.caps, strict=True))
            cap_contribution(groups, targets, {layer: (1 - alpha) * cap for layer, cap in caps.items()})

    def _targets(self, state: AireState, device: torch.device) -> dict[int, Tensor]:
        return {layer: chosen.to(device) for layer, chosen in zip(state.layers, state.targets, strict=True)}

    @staticmethod
    def _is_soon(schedule: Schedule, step: int) -> bool:
        decisions = (schedule.densify_at, schedule.decay_start)
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

    @torch.no_grad()
    def step(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: AireState,
        step: int,
        shadows: Sequence[Sequence[NeuronGroup]] = (),
        probe: Probe | None = None,
    ) -> list[Report]:
        """Make the changes due before the optimizer step ``step``, each once; see :class:`base.Strategy`."""
        schedule = state.schedule
        reports: list[Report] = []

        def densify_if_due() -> None:
            if schedule.densify_at is not None and step >= schedule.densify_at and not state.is_densified:
                reports.append(self._densify(groups, optimizers, state, step, shadows, probe))

        if schedule.densifies_first:
            densify_if_due()
        if schedule.decay_start is not None and step >= schedule.decay_start and not state.is_decaying:
            reports.append(self._choose(groups, state, step, probe))
        if schedule.prune_at is not None and step >= schedule.prune_at and not state.is_pruned:
            reports.append(self._prune(groups, optimizers, state, step, shadows, probe))
        if not schedule.densifies_first:
            densify_if_due()
        return reports

    def _densify(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: AireState,
        step: int,
        shadows: Sequence[Sequence[NeuronGroup]],
        probe: Probe | None,
    ) -> Report:
        before = widths(groups)
        count = self.densify_count(before[0])
        columns = groups[0].outgoing.parameter
        outgoing = columns.new_empty(columns.shape[0], count).uniform_(-NEW_COLUMN_BOUND, NEW_COLUMN_BOUND)
        if self.config.densify_from == "residual":
            rows, phases = self._rows_from_residual(groups[0], count, probe)
            new = [(rows, phases)] * (1 + len(shadows))
        else:
            (scores,) = self._scores(groups, state, [0], probe)
            parents = strongest(scores, count)
            layers = [twin[0] for twin in (groups, *shadows)]
            new = [(2 * g.weight.parameter[parents], 2 * g.bias.parameter[parents]) for g in layers]
        for (weight, bias), twin, held_by in zip(
            new, (groups, *shadows), (optimizers, *([()] * len(shadows))), strict=True
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
        before = widths(groups)
        if self.config.target_parameters is None:
            layers = self.config.prune_layers
            scores = self._scores(groups, state, layers, probe)
            state.targets = [
                weakest(scores[position], self._amount(position, before[layer], layer)).cpu()
                for position, layer in enumerate(layers)
            ]
        else:
            layers = tuple(range(len(groups)))
            scores = self._scores(groups, state, layers, probe)
            n_in, n_out = groups[0].weight.parameter.shape[1], groups[-1].next_bias.numel()
            _, chosen = choose_for_budget(scores, n_in, n_out, self.config.target_parameters)
            state.targets = [indices.cpu() for indices in chosen]
        state.layers = tuple(layers)
        state.caps = [
            contribution(groups[layer])[chosen.to(scores[0].device)].detach().cpu()
            for layer, chosen in zip(layers, state.targets, strict=True)
        ]
        state.is_decaying = True
        counts = {layer: len(t) for layer, t in zip(state.layers, state.targets, strict=True)}
        return Report(step, "decay", _per_layer(groups, counts), before, before)

    def _prune(
        self,
        groups: Sequence[NeuronGroup],
        optimizers: Sequence[Optimizer],
        state: AireState,
        step: int,
        shadows: Sequence[Sequence[NeuronGroup]],
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
                for twin in (groups, *shadows):
                    apply_correction(twin[layer], *added)
            surgery.prune(groups[layer], targets, optimizers)
            for shadow in shadows:
                surgery.prune(shadow[layer], targets)
            removed[layer] = len(targets)
        state.targets, state.caps = [], []
        state.is_pruned = True
        return Report(step, "prune", _per_layer(groups, removed), before, widths(groups))


def _per_layer(groups: Sequence[NeuronGroup], counts: dict[int, int]) -> tuple[int, ...]:
    return tuple(counts.get(index, 0) for index in range(len(groups)))
