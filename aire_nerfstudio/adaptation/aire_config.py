"""What a person sets of the AIRe schedule, and the rules that hold whatever the network and the run are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from aire_nerfstudio.adaptation.compensation import Compensation
from aire_nerfstudio.adaptation.decay import Decay
from aire_nerfstudio.adaptation.frequencies import Densify
from aire_nerfstudio.adaptation.importance import Criterion, criteria
from aire_nerfstudio.adaptation.schedule import ScheduleError, ScheduleUnit

BYTES_PER_PARAMETER = 4
LEAST = {"target_parameters": 1, "target_bytes": BYTES_PER_PARAMETER, "target_psnr": 1}

_CHOICES: dict[str, tuple[str, ...]] = {
    "unit": get_args(ScheduleUnit),
    "densify_from": get_args(Densify),
    "decay": get_args(Decay),
    "compensation": get_args(Compensation),
    "prune_rule": ("all", "threshold"),
}


@dataclass(frozen=True)
class AireConfig:
    """When and how much the network adapts. Times of events are counted in ``unit``."""

    unit: ScheduleUnit = "percent"
    """What the times below count: optimizer steps, epochs, or percent of the run."""
    densify_at: float | None = None
    """When input neurons are added; None: never."""
    densify_count: int = 0
    """How many input neurons are added; 0: densify_fraction decides."""
    densify_fraction: float = 0.0
    """Share of the input layer's width to add, in [0, 1]; used where densify_count is 0."""
    densify_from: Densify = "harmonics"
    """Which frequencies are added. harmonics: companions of the strongest neurons, weights and bias doubled (the
    paper's; twice the frequency for SIREN). residual: where the residual has most energy, up to twice the largest
    there is; exact for SIREN alone."""
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
    and prune_layers, prune_fraction and prune_counts are not used. None: no such limit."""
    target_bytes: int | None = None
    """The same in bytes, four a parameter."""
    target_psnr: float | None = None
    """PSNR in dB of the training batches that the result must keep: between decay_start and prune_at neurons go in
    rounds, from whatever layer, as long as it is reached. None: no such limit."""
    rounds: int = 1
    """In how many rounds neurons go to reach target_parameters or target_bytes; each looks at the contributions anew
    and takes at least 2 steps. 1: all at once, at prune_at. target_psnr takes as many as it needs."""
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

    @property
    def has_target(self) -> bool:
        """Whether the contributions decide layers and numbers, so that the final widths cannot be foretold."""
        return any(t is not None for t in (self.target_parameters, self.target_bytes, self.target_psnr))

    @property
    def budget_in_words(self) -> str:
        """The option that names the budget, and its value."""
        if self.target_bytes is None:
            return f"target_parameters is {self.target_parameters}"
        return f"target_bytes is {self.target_bytes} ({self.most_parameters} parameters)"

    @property
    def most_parameters(self) -> int | None:
        """What target_parameters or target_bytes allow the adaptive network in the end."""
        return self.target_parameters if self.target_bytes is None else self.target_bytes // BYTES_PER_PARAMETER


def check(config: AireConfig) -> None:
    """Refuse what can never be run.

    Raises:
        ScheduleError: a value out of range, or settings that exclude each other.
    """
    _check_types(config)
    for name, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ScheduleError(f"{name} is {value}; it must be finite")
    if not 0 <= config.densify_fraction <= 1:
        raise ScheduleError(f"densify_fraction is {config.densify_fraction}; it must lie in [0, 1]")
    if (config.densify_at is None) != (config.densify_count == 0 and config.densify_fraction == 0):
        raise ScheduleError(
            f"densify_at {config.densify_at} and densify_count {config.densify_count} (or densify_fraction "
            f"{config.densify_fraction}) go together; give both or neither"
        )
    for name, kinds in {**_CHOICES, "criterion": criteria()}.items():
        if getattr(config, name) not in kinds:
            raise ScheduleError(f"{name} is {getattr(config, name)!r}; choose one of {', '.join(kinds)}")
    if config.densify_count < 0:
        raise ScheduleError(f"densify_count is {config.densify_count}; it must be 0 or more")
    if len(set(config.prune_layers)) != len(config.prune_layers):
        raise ScheduleError(f"prune_layers {config.prune_layers} names a layer twice")
    targets = {name: getattr(config, name) for name in ("target_parameters", "target_bytes", "target_psnr")}
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) > 1:
        raise ScheduleError(f"{' and '.join(given)} exclude each other; name one")
    for name, value in given.items():
        if not math.isfinite(value) or value < LEAST[name]:
            raise ScheduleError(f"{name} is {value}; it must be finite and at least {LEAST[name]}")
        if config.decay_start is None:
            raise ScheduleError(f"{name} is {value}, but nothing is ever removed; set decay_start and prune_at")
    if config.rounds < 1 or (config.rounds > 1 and config.most_parameters is None):
        raise ScheduleError(
            f"rounds is {config.rounds}; it must be at least 1, and more than 1 need target_parameters or target_bytes"
        )
    if config.has_target and config.prune_rule != "all":
        raise ScheduleError(f"{next(iter(given))} needs all chosen neurons to go; use prune_rule 'all'")
    if config.epsilon < 0 or config.decay_weight < 0 or config.plain_weight_decay < 0:
        raise ScheduleError("epsilon, decay_weight and plain_weight_decay must be 0 or more")
    if config.decay_start is not None:
        if not config.prune_layers:
            raise ScheduleError("decay_start is set but prune_layers is empty; name at least one layer")
        if config.prune_counts is None and not config.has_target and not 0 < config.prune_fraction < 1:
            raise ScheduleError(f"prune_fraction is {config.prune_fraction}; it must lie in (0, 1)")
        if config.prune_counts is not None and len(config.prune_counts) != len(config.prune_layers):
            raise ScheduleError(
                f"prune_counts {config.prune_counts} must have one number for each of the layers {config.prune_layers}"
            )


def check_order(config: AireConfig) -> None:
    """Refuse times in an order that no run can have, before one is laid out; variants may move them.

    Raises:
        ScheduleError: the removal before the decay, or new neurons within it.
    """
    start, end, added, unit = config.decay_start, config.prune_at, config.densify_at, config.unit
    if start is None or end is None:
        return
    if start > end:
        raise ScheduleError(f"decay_start is {start:g} and prune_at {end:g} ({unit}); the decay comes first")
    if added is not None and start < added < end:
        raise ScheduleError(
            f"densify_at is {added:g} ({unit}), inside the decay stage [{start:g}, {end:g}); move it before the decay "
            "or to the pruning or later"
        )


def _check_types(config: AireConfig) -> None:
    """Refuse what the command line cannot give, but a caller in Python can."""
    for name, hint in get_type_hints(AireConfig).items():
        value, kinds = getattr(config, name), get_args(hint) or (hint,)
        if get_origin(hint) is Literal:
            continue  # by name, below
        is_numbers = isinstance(value, tuple) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = (
            (value is None and type(None) in kinds)
            or (is_number and float in kinds)
            or (is_number and isinstance(value, int) and int in kinds)
            or (is_numbers and (get_origin(hint) is tuple or any(get_origin(kind) is tuple for kind in kinds)))
        )
        if not fits:
            raise ScheduleError(f"{name} is {value!r}; it must be {str(hint).replace('typing.', '')}")
