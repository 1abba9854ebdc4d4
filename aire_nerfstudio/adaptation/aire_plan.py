"""What AIRe's configuration means for a network and a run: the schedule in steps, the widths it leads to. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.aire_state import AireState
from aire_nerfstudio.adaptation.base import PlannedEvent, widths
from aire_nerfstudio.adaptation.budget import choose_for_budget
from aire_nerfstudio.adaptation.layers import ends
from aire_nerfstudio.adaptation.schedule import Schedule, ScheduleError, to_steps
from aire_nerfstudio.fields.neurons import NeuronGroup


def times_in_steps(
    config: AireConfig, steps_per_epoch: int, total_steps: int
) -> tuple[int | None, int | None, int | None]:
    """``densify_at``, ``decay_start`` and ``prune_at`` in optimizer steps; None where nothing happens."""

    def in_steps(value: float | None) -> int | None:
        return None if value is None else to_steps(value, config.unit, steps_per_epoch, total_steps)

    return in_steps(config.densify_at), in_steps(config.decay_start), in_steps(config.prune_at)


def resolve_schedule(
    config: AireConfig, groups: Sequence[NeuronGroup], steps_per_epoch: int, total_steps: int
) -> Schedule:
    """Resolve the configuration's times to steps and check them against the network and the run.

    Args:
        config: the run's choices.
        groups: the network's layers, input first.
        steps_per_epoch: ``ceil(samples / batch)``.
        total_steps: optimizer steps of the run.

    Raises:
        ScheduleError: an event outside the run, an unknown layer, or more neurons to remove than a layer has.
    """
    schedule = Schedule(total_steps, *times_in_steps(config, steps_per_epoch, total_steps))
    planned = planned_widths(config, widths(groups), schedule)
    decisions = (schedule.densify_at, schedule.decay_start)
    if config.criterion == "taylor" and 0 in decisions:
        raise ScheduleError("the criterion 'taylor' needs gradients from before a decision; decide later than step 0")
    if config.criterion == "taylor" and schedule.densify_at is not None and len(set(decisions)) == 1:
        raise ScheduleError(
            f"densify_at and decay_start are both step {schedule.densify_at}; the criterion 'taylor' needs "
            "gradients of the new neurons before it chooses: begin the decay later"
        )
    if config.most_parameters is not None:
        # Rounds say it in their own words.
        if schedule.densify_at is not None and not schedule.densifies_first and config.rounds == 1:
            raise ScheduleError(
                f"{config.budget_in_words} and neurons are added after the removal, at step {schedule.densify_at}, "
                "which would exceed it; add them before the decay, or name no budget"
            )
        try:
            choose_for_budget([torch.zeros(width) for width in planned], *ends(groups), config.most_parameters)
        except ScheduleError as error:
            raise ScheduleError(f"{config.budget_in_words}; {error}") from error
    return schedule


def planned_events(config: AireConfig, state: AireState, start: Sequence[int]) -> list[PlannedEvent]:
    """Densification, decay and removal as far as they are still to come, in order; ``start``: widths now."""
    schedule, rows, now = state.schedule, [], list(start)
    # With a budget or a threshold the contributions decide; what has begun is not foretold again.
    is_foretold = not (state.is_decaying or config.has_target or config.prune_rule != "all")

    def densify() -> None:
        count = densify_count(config, now[0])
        now[0] += count
        is_known = is_foretold or (schedule.densifies_first and not state.is_decaying)
        at = schedule.densify_at
        assert at is not None
        rows.append(PlannedEvent(at, f"densify: {count} input neurons", tuple(now) if is_known else None))

    is_to_come = schedule.densify_at is not None and not state.is_densified
    if is_to_come and schedule.densifies_first:
        densify()
    if schedule.decay_start is not None and not state.is_decaying:
        chosen = "the weakest neurons are chosen"
        event = chosen if config.decay == "none" else f"{config.decay} decay of the weakest neurons begins"
        rows.append(PlannedEvent(schedule.decay_start, event))
    if schedule.prune_at is not None and not state.is_pruned:
        at_most = "" if config.prune_rule == "all" else f" (at most; contribution <= {config.epsilon})"
        if config.most_parameters is not None:
            at_most = f" to {config.most_parameters:,} parameters of this network"
        if is_foretold:
            for position, layer in enumerate(config.prune_layers):
                now[layer] -= removal_count(config, position, now[layer])
        rows.append(PlannedEvent(schedule.prune_at, f"prune{at_most}", tuple(now) if is_foretold else None))
    if is_to_come and not schedule.densifies_first:
        densify()
    return rows


def planned_widths(config: AireConfig, start: Sequence[int], schedule: Schedule) -> tuple[int, ...]:
    """Widths at the end of the run (with ``prune_rule="threshold"``: the least they can be).

    Args:
        config: the run's choices.
        start: widths at the beginning.
        schedule: the resolved schedule; its order of densification and pruning matters for shares.

    Raises:
        ScheduleError: an unknown layer, or no neuron would be left in one.
    """
    now = list(start)

    def densify() -> None:
        count = densify_count(config, now[0])
        if count > now[0]:
            raise ScheduleError(
                f"densify_count is {count}; the input layer has {now[0]} neurons, so at most {now[0]} can be doubled"
            )
        now[0] += count

    if schedule.densify_at is not None and schedule.densifies_first:
        densify()
    if schedule.decay_start is not None and not config.has_target:
        for position, layer in enumerate(config.prune_layers):
            if not 0 <= layer < len(now):
                raise ScheduleError(
                    f"prune_layers names layer {layer}; the network's sine layers are 0 to {len(now) - 1}"
                )
            now[layer] -= removal_count(config, position, now[layer])
    if schedule.densify_at is not None and not schedule.densifies_first:
        densify()
    return tuple(now)


def densify_count(config: AireConfig, width: int) -> int:
    """How many neurons are added to an input layer of the given width."""
    return config.densify_count or round(config.densify_fraction * width)


def removal_count(config: AireConfig, position: int, width: int) -> int:
    """How many neurons to choose in ``prune_layers[position]`` of the given width; at least one must remain.

    Raises:
        ScheduleError: none would remain, or the number is negative.
    """
    layer = config.prune_layers[position]
    if config.prune_counts is not None:
        count = config.prune_counts[position]
        what = f"prune_counts asks for {count}"
    else:
        count = round(config.prune_fraction * width)
        what = f"prune_fraction {config.prune_fraction} asks for {count}"
    if count < 0:
        raise ScheduleError(f"{what} neurons in layer {layer}; it must be 0 or more")
    if count >= width:
        raise ScheduleError(f"{what} of the {width} neurons of layer {layer}; at least one must remain")
    return count
