"""What a person selects by name: AIRe, its ablations, the baselines; all end at the same size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from aire_nerfstudio.adaptation.aire import AireStrategy
from aire_nerfstudio.adaptation.aire_config import AireConfig, check
from aire_nerfstudio.adaptation.aire_plan import densify_count, planned_widths
from aire_nerfstudio.adaptation.base import Strategy
from aire_nerfstudio.adaptation.budget import count_parameters
from aire_nerfstudio.adaptation.depgraph import DepGraphStrategy
from aire_nerfstudio.adaptation.none import FixedStrategy
from aire_nerfstudio.adaptation.rigl import RigLStrategy
from aire_nerfstudio.adaptation.rounds import TargetSizeStrategy
from aire_nerfstudio.adaptation.schedule import Schedule, ScheduleError
from aire_nerfstudio.adaptation.target_psnr import TargetPsnrStrategy
from aire_nerfstudio.adaptation.zell import ZellStrategy, lattice_size

# In two dimensions the 780 frequencies of the paper; in more, as many as a layer can hold.
LATTICE_LIMITS = {1: 511, 2: 19, 3: 4, 4: 2}

# Found by ablation (docs/results.md): what is chosen early has the whole run to be made up for.
EARLY = {"densify": 5.0, "decay": 10.0, "prune": 30.0}
# A PSNR is reached late in a run, so neurons must be allowed to go late.
EARLY_ROUNDS_END = 90.0

# Likewise: many neurons are added, and rounds look again at what they have become worth.
IN_ROUNDS = {"densify": 5.0, "fraction": 1.0, "start": 10.0, "end": 30.0, "rounds": 8}

Variant = Literal[
    "aire", "aire_early", "aire_rounds", "large", "small", "weight_decay", "no_decay", "depgraph", "rigl", "zell"
]  # fmt: skip


def final_widths(config: AireConfig, large: Sequence[int]) -> tuple[int, ...]:
    """Widths that AIRe's schedule leads to from ``large``; with ``prune_rule="threshold"`` the least they can be."""
    if config.has_target:
        raise ScheduleError(
            "a target (parameters, bytes or PSNR) lets the contributions decide the widths, so none can be foretold; "
            "give the small network and the baselines prune_layers and prune_counts instead, or train the variant "
            "large with the widths that a run with the target ended at"
        )
    check(config)
    # The order of events matters for shares only; a run of any length has the same one.
    moments = [config.densify_at, config.decay_start, config.prune_at]
    ranked = sorted({m for m in moments if m is not None})
    densify_at, decay_start, prune_at = (None if m is None else ranked.index(m) for m in moments)
    schedule = Schedule(len(ranked) + 1, densify_at, decay_start, prune_at)
    return planned_widths(config, large, schedule)


def early(config: AireConfig, large: Sequence[int]) -> AireConfig:
    """AIRe's configuration with its moments moved to the beginning of the run; what is never done stays so.

    With a target PSNR neurons go from the same early moment on, but until 90 % of the run. Neurons are added before any
    are chosen here, and it ends at the size that ``config`` leads to all the same.
    """
    counts = config.prune_counts
    moments = (config.densify_at, config.prune_at)
    if None not in moments and config.densify_at >= config.prune_at and not config.has_target:  # type: ignore[operator]
        # What is added last is added first here, and a share to remove would be one of more neurons.
        grown = (large[0] + densify_count(config, large[0]), *large[1:])
        lost = [before - after for before, after in zip(grown, final_widths(config, large), strict=True)]
        counts = tuple(lost[layer] for layer in config.prune_layers)
    return replace(
        config,
        prune_counts=counts,
        unit="percent",
        densify_at=_moved(config.densify_at, EARLY["densify"]),
        decay_start=_moved(config.decay_start, EARLY["decay"]),
        prune_at=_moved(config.prune_at, EARLY["prune"] if config.target_psnr is None else EARLY_ROUNDS_END),
    )


def in_rounds(config: AireConfig, large: Sequence[int], dims: int, out_features: int) -> AireConfig:
    """AIRe's configuration with removal in rounds from all layers, to as many parameters as it would end with.

    Where neurons are added, as many as the input layer has. A target of the configuration's own stays.
    """
    target = None
    if not config.has_target and config.decay_start is not None:
        target = count_parameters(dims, final_widths(config, large), out_features)
    does_add = config.densify_at is not None
    return replace(
        config,
        unit="percent",
        densify_at=_moved(config.densify_at, IN_ROUNDS["densify"]),
        densify_count=0,
        densify_fraction=IN_ROUNDS["fraction"] if does_add else 0.0,
        decay_start=_moved(config.decay_start, IN_ROUNDS["start"]),
        prune_at=_moved(config.prune_at, IN_ROUNDS["end"] if config.target_psnr is None else EARLY_ROUNDS_END),
        target_parameters=config.target_parameters if target is None else target,
        rounds=int(IN_ROUNDS["rounds"]) if config.target_psnr is None and config.decay_start is not None else 1,
    )


def starting_widths(
    variant: Variant, config: AireConfig, large: Sequence[int], dims: int, lattice_limit: int
) -> tuple[int, ...]:
    """Widths at the beginning: the final ones for ``small``, with a lattice's first for ``zell``, else ``large``."""
    if variant == "small":
        return final_widths(config, large)
    if variant == "zell":
        return (lattice_size(lattice_limit, dims), *large[1:])
    return tuple(large)


def make_strategy(
    variant: Variant,
    config: AireConfig,
    large: Sequence[int],
    dims: int,
    out_features: int,
    lattice_limit: int = 19,
    first_omega: float = 30.0,
) -> Strategy:
    """The strategy of a variant.

    Args:
        variant: which.
        config: AIRe's schedule; the others take its moments and its final widths from it.
        large: widths of the large network.
        dims: coordinates a point.
        out_features: outputs of the network.
        lattice_limit: largest frequency of ``zell``'s lattice; 19 is for two dimensions, 4 for three.
        first_omega: ``w0`` of the first layer; :class:`~aire_nerfstudio.fields.sine_mlp.SineMLP`'s own by default.

    Raises:
        ScheduleError: a value of the schedule that cannot be, or a baseline without a removal to imitate.
    """
    if variant in ("large", "small"):
        return FixedStrategy()
    if variant == "aire":
        return _aire(config, first_omega)
    if variant == "aire_early":
        return _aire(early(config, large), first_omega)
    if variant == "aire_rounds":
        return _aire(in_rounds(config, large, dims, out_features), first_omega)
    if variant == "weight_decay":
        return _aire(replace(config, decay="weight_decay"), first_omega)
    if variant == "no_decay":
        return _aire(replace(config, decay="none"), first_omega)
    small = final_widths(config, large)
    if variant == "rigl":
        return RigLStrategy(count_parameters(dims, small, out_features))
    start = starting_widths(variant, config, large, dims, lattice_limit)
    lost = {layer: before - after for layer, (before, after) in enumerate(zip(start, small, strict=True))}
    if config.prune_at is None or min(lost.values()) < 0 or not any(lost.values()):
        raise ScheduleError(
            f"the variant {variant} removes neurons once, at prune_at, to reach {list(small)} from {list(start)}; set "
            "decay_start and prune_at so that neurons go and none are added"
        )
    once = replace(
        config,
        densify_at=None,
        densify_count=0,
        densify_fraction=0.0,
        decay_start=config.prune_at,
        decay="none",
        prune_layers=tuple(layer for layer, count in lost.items() if count),
        prune_counts=tuple(count for count in lost.values() if count),
        prune_rule="all",
    )
    if variant == "depgraph":
        return DepGraphStrategy(once)
    return ZellStrategy(once, lattice_limit, first_omega)


def _aire(config: AireConfig, first_omega: float) -> AireStrategy:
    if config.target_psnr is not None:
        return TargetPsnrStrategy(config, first_omega)
    return (AireStrategy if config.rounds == 1 else TargetSizeStrategy)(config, first_omega)


def _moved(moment: float | None, at: float) -> float | None:
    """Another moment for what happens; what is never done stays so."""
    return None if moment is None else at
