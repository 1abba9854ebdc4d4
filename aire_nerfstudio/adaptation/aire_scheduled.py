"""What AIRe does at the times of its schedule: densify input frequencies, press weak neurons empty, remove them.

Source: "Adaptive Training of INRs via Pruning and Densification", sections 3.1 and 3.2; the choices made where the
paper is silent are listed in ``docs/method.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from aire_nerfstudio.adaptation import surgery
from aire_nerfstudio.adaptation.aire_config import AireConfig, check
from aire_nerfstudio.adaptation.aire_plan import densify_count, planned_events, removal_count, resolve_schedule
from aire_nerfstudio.adaptation.aire_state import AireState
from aire_nerfstudio.adaptation.base import PlannedEvent, Probe, Report, widths
from aire_nerfstudio.adaptation.budget import choose_for_budget
from aire_nerfstudio.adaptation.compensation import apply_correction, correction
from aire_nerfstudio.adaptation.control import Action
from aire_nerfstudio.adaptation.decay import cap_contribution, plain_penalty, soft_threshold, targeted_penalty
from aire_nerfstudio.adaptation.densification import add, companions, rows_from_residual, small_columns
from aire_nerfstudio.adaptation.importance import contribution, needs_outputs, score, taylor_saliency, weakest
from aire_nerfstudio.adaptation.layers import counts_per_layer, ends, indices_per_layer, parameters_of
from aire_nerfstudio.adaptation.schedule import Schedule, ScheduleError
from aire_nerfstudio.fields.neurons import NeuronGroup

# How many steps before a decision the Taylor scores are averaged over.
SALIENCY_STEPS = 100


class ScheduledAire:
    """What happens at the schedule's times; :class:`~aire_nerfstudio.adaptation.aire.AireStrategy` answers people, too.

    Args:
        config: the run's choices.
        first_omega: the network's first ``w0``. Only ``densify_from="residual"`` needs it: a wrong value scales all
            new frequencies by the same factor.

    Raises:
        ScheduleError: a value out of range, found at construction or, where it depends on the network or the run, in
            :meth:`init_state`.
    """

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
        """A fresh state; see :func:`~aire_nerfstudio.adaptation.aire_plan.resolve_schedule` for what is refused."""
        return AireState(resolve_schedule(self.config, groups, steps_per_epoch, total_steps))

    def restore(self, saved: dict[str, Any]) -> AireState:
        """The state that a checkpoint holds; its schedule replaces the configured one."""
        state = AireState(Schedule(total=1))
        state.load_dict(saved)
        return state

    def plan(self, state: AireState, start: Sequence[int]) -> list[PlannedEvent]:
        """Densification, decay and removal as far as they are still to come."""
        return planned_events(self.config, state, start)

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

    def parameters_kept(self, groups: Sequence[NeuronGroup], state: AireState) -> int:
        """All of the network's: what goes is cut out."""
        return parameters_of(groups)

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
        outputs = probe.outputs() if probe is not None and needs_outputs(self.config.criterion) else None
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
        count = densify_count(self.config, before[0]) if count is None else count
        inputs = [layers[0] for layers in (groups, *averages)]
        outgoing = small_columns(inputs[0], count)
        if self.config.densify_from == "residual":
            rows = [rows_from_residual(inputs[0], count, probe, self.first_omega)] * len(inputs)
        else:
            (scores,) = self._scores(groups, state, [0], probe)
            rows = companions(inputs, scores, count)
        add(inputs, rows, outgoing, optimizers)
        state.is_densified = True
        return Report(step, "densify", counts_per_layer(groups, {0: count}), before, widths(groups))

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
            weakest(scores[position], removal_count(self.config, position, groups[layer].width))
            for position, layer in enumerate(layers)
        ]

    @torch.no_grad()
    def candidates(self, groups: Sequence[NeuronGroup], state: AireState) -> dict[int, Tensor]:
        """What would be chosen now; nothing where the criterion asks for what is only there at the decision."""
        config = self.config
        has_goal = config.most_parameters is not None or not config.has_target
        if state.is_pruned or state.schedule.decay_start is None or not has_goal or needs_outputs(config.criterion):
            return {}
        if config.criterion == "taylor" and [len(s) for s in state.saliency if s.any()] != list(widths(groups)):
            return {}
        layers, chosen = self._weakest(groups, state, None)
        return {layer: indices.cpu() for layer, indices in zip(layers, chosen, strict=True)}

    @staticmethod
    def _chosen(groups: Sequence[NeuronGroup], state: AireState, step: int) -> Report:
        counts = {layer: len(t) for layer, t in zip(state.layers, state.targets, strict=True)}
        now, indices = widths(groups), indices_per_layer(groups, state.layers, state.targets)
        return Report(step, "decay", counts_per_layer(groups, counts), now, now, indices)

    def _weakest_for_size(
        self, groups: Sequence[NeuronGroup], state: AireState, probe: Probe | None, parameters: int
    ) -> tuple[Sequence[int], list[Tensor]]:
        """From all layers, so that at most ``parameters`` remain."""
        layers = range(len(groups))
        scores = self._scores(groups, state, layers, probe)
        return layers, choose_for_budget(scores, *ends(groups), parameters)[1]

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
        indices = indices_per_layer(groups, state.layers, doomed)
        state.targets, state.caps = [], []
        state.is_pruned = True
        return Report(step, "prune", counts_per_layer(groups, removed), before, widths(groups), indices)
