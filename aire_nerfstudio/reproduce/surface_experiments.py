"""The paper's tables and figures of surfaces and their flow: the fits of each, and the paper's own numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.variants import Variant
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.sine_layers import Activation
from aire_nerfstudio.reproduce.experiment import OURS, BudgetName, Cell, Choice, Experiment, Gain, changed
from aire_nerfstudio.reproduce.fit import Fit
from aire_nerfstudio.reproduce.flow_fit import MOMENTS, FlowFit
from aire_nerfstudio.reproduce.surface_fit import IN_PAPERS_UNIT, SurfaceFit


@dataclass(frozen=True)
class Budget:
    """How large the fits are.

    Attributes:
        width: what the paper's 256 becomes.
        length: epochs over the paper's.
        points: on the surface, and as many off it, a step.
        pool: points of the cube whose distances are known.
        learning_rate: at the beginning.
        final_ratio: rate at the end over that.
        resolution: of the mesh that is scored.
        flow_length: epochs of the flow over the paper's.
        omega: factor of the paper's w0 (a small network of w0 60 does not learn in so short a run).
    """

    width: int
    length: float
    points: int
    pool: int
    learning_rate: float
    final_ratio: float
    resolution: int
    flow_length: float
    omega: float = 1.0

    def widths(self, *paper: int) -> tuple[int, ...]:
        """The paper's widths at this size."""
        return tuple(max(2, round(width * self.width / 256)) for width in paper)


BUDGETS: dict[BudgetName, Budget] = {
    "smoke": Budget(16, 0.001, 1_000, 2_000, 1e-3, 0.1, 32, 0.00005, omega=0.25),
    "cpu": Budget(64, 0.3, 4_000, 400_000, 1e-3, 0.1, 256, 0.01, omega=0.5),
    "paper": Budget(256, 1.0, 10_000, 1_000_000, 1e-4, 1.0, 512, 1.0),
}

LARGE = (256, 256, 256)
LOSS = "log10 of the training loss"
SHAPES = ("armadillo", "bunny", "dragon", "buddha", "lucy")
# Table 6: 200, 500 and 300 of 1,000 epochs; [256, 256, 256] -> [64, 64, 256].
TABLE_6 = AireConfig(unit="percent", decay_start=20.0, prune_at=70.0, prune_layers=(0, 1), prune_fraction=0.75)
TABLE_5 = replace(TABLE_6, prune_fraction=0.5)
ROUNDS_NOTE = (
    "Not the paper's: aire_early, the same removal between 10 and 30 % of the run; aire_rounds, eight rounds of "
    "removal from all layers between 10 and 30 %, to as many parameters as small has."
)


def _omega_note(choice: Choice) -> tuple[str, ...]:
    """Said where a budget's w0 is not the paper's."""
    factor = _budget(choice).omega
    return () if factor == 1 else (f"This budget's w0 is {factor:g} times the paper's, as its networks are narrower.",)


CHAMFER_NOTE = (
    "Chamfer distance: the mean distance of samples to the other surface plus the mean back, times 100. Lengths are in "
    "the paper's unit, half of the shape's longest side; our shapes reach from -0.9 to 0.9, so that those of the fits, "
    "and of ns-eval, are 0.9 times these. The paper does not say how it samples."
)

AVERAGED_NOTE = (
    "Averaged: of an average of the weights over the last steps, which ns-train evaluates. At a constant learning rate "
    "the last state's distance, the paper's measure, depends on the step at which training stops."
)


def _length(
    row: str, column: str, fits: tuple[Fit, ...], metric: str = "chamfer_x100", paper: float | None = None,
    rounding: float = 0.005, is_of_file: bool = False,
) -> Cell:  # fmt: skip
    """A cell of a distance between surfaces, in the paper's unit."""
    return Cell(row, column, fits, metric, paper, "lower", rounding, is_of_file, IN_PAPERS_UNIT)


def _budget(choice: Choice) -> Budget:
    if choice.budget not in BUDGETS:
        raise InputError(f"surfaces have no budget {choice.budget}; choose one of {', '.join(BUDGETS)}")
    return BUDGETS[choice.budget]


def _fits(
    choice: Choice, adaptation: AireConfig, widths: tuple[int, ...] = LARGE, variant: Variant = "aire",
    activation: Activation = "siren", omega: float = 60.0, length: float = 1.0,
) -> tuple[SurfaceFit, ...]:  # fmt: skip
    budget = _budget(choice)
    return tuple(
        SurfaceFit(
            shape=shape, activation=activation, widths=budget.widths(*widths), epochs=1000.0 * length * budget.length,
            on_surface=budget.points, off_surface=budget.points, pool=budget.pool, learning_rate=budget.learning_rate,
            final_ratio=budget.final_ratio, omega=omega * budget.omega, seed=seed, variant=variant,
            adaptation=changed(adaptation, choice, variant), resolution=budget.resolution,
        )
        for shape in choice.sources
        for seed in choice.seeds
    )  # fmt: skip


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0]


def table1(choice: Choice) -> Experiment:
    """Data-adaptive sizes: only neurons below the threshold go."""
    numbers = {
        "armadillo": (0.62, 0.63, 73.30), "bunny": (0.76, 0.71, 72.33), "dragon": (0.73, 0.61, 70.33),
        "buddha": (0.59, 0.56, 41.27), "lucy": (0.92, 0.58, 52.50),
    }  # fmt: skip
    config = replace(TABLE_6, prune_rule="threshold")
    cells = []
    for shape in choice.sources:
        one = replace(choice, sources=(shape,))
        label = _stem(shape)
        large, ours, reduction = numbers.get(label, (None, None, None))
        fits = _fits(one, config)
        cells += [
            _length(label, "large CD", _fits(one, config, variant="large"), paper=large, is_of_file=True),
            _length(label, "AIRe CD", fits, paper=ours, is_of_file=True),
            Cell(label, "reduction %", fits, "reduction", reduction, is_of_file=True),
        ]
    note = "Chosen: the weakest 75 % of the first two layers; removed: those with contribution <= 0.01."
    notes = (note, CHAMFER_NOTE, *_omega_note(choice))
    return Experiment(
        "sdf-table1", "Table 1: sizes that follow the surface, SIREN", tuple(cells), (), notes,
        curve=LOSS,
    )  # fmt: skip


def _variants(
    choice: Choice, name: str, title: str, adaptation: AireConfig, omega: float,
    paper: dict[tuple[str, str], dict[str, float]], averages: dict[tuple[str, str], float],
) -> Experiment:  # fmt: skip
    """Large, small, AIRe and ours, SIREN and FINER, shape by shape and on average."""
    cells, gains = [], []
    for activation in ("siren", "finer"):
        for variant in ("large", "small", *OURS):
            row = f"{activation} {variant}"
            fits = _fits(choice, adaptation, variant=variant, activation=activation, omega=omega)  # type: ignore[arg-type]
            for shape in choice.sources if paper else ():
                here = tuple(fit for fit in fits if fit.shape == shape)
                number = paper.get((activation, variant), {}).get(_stem(shape))
                cells.append(_length(row, _stem(shape), here, paper=number, is_of_file=True))
            cells.append(_length(row, "mean CD", fits, paper=averages.get((activation, variant))))
            cells.append(_length(row, "mean CD, averaged", fits, "averaged_chamfer_x100"))
            cells.append(Cell(row, "normals", fits, "normal_consistency"))
            cells.append(Cell(row, "parameters", fits, "parameters", is_better="lower"))
            cells.append(Cell(row, "seconds", fits, "seconds", is_better="lower"))
        for variant in OURS:
            for other in ("large", "small"):
                mine, its = averages.get((activation, variant)), averages.get((activation, other))
                gain = None if mine is None or its is None else round(mine - its, 2)
                pair = f"{activation} {variant}", f"{activation} {other}"
                gains.append(Gain(*pair, "mean CD", gain, "lower"))
                gains.append(Gain(*pair, "mean CD, averaged", None, "lower"))
    notes = (
        ROUNDS_NOTE,
        CHAMFER_NOTE,
        AVERAGED_NOTE,
        "Seconds are of fits that share the machine with as many others as --jobs says.",
    )
    return Experiment(name, title, tuple(cells), tuple(gains), notes, is_recorded=True, curve=LOSS)


TABLE_6_PAPER: dict[tuple[str, str], dict[str, float]] = {
    key: dict(zip(SHAPES, values, strict=True))
    for key, values in {
        ("siren", "large"): (0.60, 0.75, 0.65, 0.50, 0.74), ("siren", "small"): (0.99, 0.79, 0.82, 0.98, 0.86),
        ("siren", "aire"): (0.65, 0.69, 0.62, 0.64, 0.61), ("finer", "large"): (2.13, 2.06, 2.17, 2.74, 1.60),
        ("finer", "small"): (5.51, 10.80, 4.57, 2.58, 1.92), ("finer", "aire"): (0.88, 0.95, 0.73, 1.10, 0.76),
    }.items()
}  # fmt: skip
TABLE_3_PAPER = {
    ("siren", "large"): 0.65, ("siren", "small"): 0.89, ("siren", "aire"): 0.64, ("finer", "large"): 2.14,
    ("finer", "small"): 5.08, ("finer", "aire"): 0.88,
}  # fmt: skip
TABLE_5_PAPER = {
    ("siren", "large"): 0.56, ("siren", "small"): 0.59, ("siren", "aire"): 0.58, ("finer", "large"): 0.63,
    ("finer", "small"): 0.67, ("finer", "aire"): 0.63,
}  # fmt: skip


def table3(choice: Choice) -> Experiment:
    """Averages of table 6's fits."""
    return _variants(choice, "sdf-table3", "Table 3: surfaces, w0 60, 83.96 % fewer", TABLE_6, 60.0, {}, TABLE_3_PAPER)


def table5(choice: Choice) -> Experiment:
    """Half of the first two layers goes, w0 30."""
    return _variants(choice, "sdf-table5", "Table 5: surfaces, w0 30, 62.14 % fewer", TABLE_5, 30.0, {}, TABLE_5_PAPER)


def table6(choice: Choice) -> Experiment:
    """Three quarters of the first two layers go, w0 60, shape by shape."""
    return _variants(
        choice, "sdf-table6", "Table 6: surfaces, w0 60, 83.96 % fewer, shape by shape", TABLE_6, 60.0, TABLE_6_PAPER,
        TABLE_3_PAPER,
    )  # fmt: skip


def table7(choice: Choice) -> Experiment:
    """Training time, and the small network given twice the epochs."""
    rows: tuple[tuple[str, Variant, float, tuple[float, ...], float | None], ...] = (
        ("large", "large", 1.0, (52, 34, 60, 159, 75), 0.65), ("small", "small", 1.0, (27, 17, 31, 83, 39), 0.89),
        ("small, twice the epochs", "small", 2.0, (55, 35, 65, 179, 82), 0.86),
        ("aire", "aire", 1.0, (52, 34, 60, 162, 76), 0.64),
        ("aire_early", "aire_early", 1.0, (), None), ("aire_rounds", "aire_rounds", 1.0, (), None),
    )  # fmt: skip
    cells = []
    for row, variant, length, seconds, chamfer in rows:
        fits = _fits(choice, TABLE_6, variant=variant, length=length)
        papers = dict(zip(SHAPES, seconds, strict=True)) if seconds else {}
        for shape in choice.sources:
            here = tuple(fit for fit in fits if fit.shape == shape)
            number = papers.get(_stem(shape))
            cells.append(Cell(row, f"{_stem(shape)} s", here, "seconds", number, "lower", 0.5, True, is_judged=False))
        average = sum(seconds) / 5 if seconds else None
        cells.append(Cell(row, "mean s", fits, "seconds", average, "lower", 0.5, is_judged=False))
        cells.append(_length(row, "mean CD", fits, paper=chamfer))
        cells.append(_length(row, "mean CD, averaged", fits, "averaged_chamfer_x100"))
    gains = tuple(
        Gain(row, "large", "mean s", 1.01 if row == "aire" else None, "lower", is_ratio=True)
        for row in ("small", "aire", *OURS[1:])
    )
    notes = (
        *_omega_note(choice),
        ROUNDS_NOTE,
        "Seconds are of other machines than the paper's, and are compared as ratios alone, where fits ran alone.",
        CHAMFER_NOTE,
        AVERAGED_NOTE,
    )
    return Experiment(
        "sdf-table7", "Table 7: training time of surfaces, SIREN, w0 60", tuple(cells), gains, notes, is_timed=True,
        curve=LOSS,
    )  # fmt: skip


def figure4(choice: Choice) -> Experiment:
    """A large network that diverges and AIRe that does not: four layers, w0 60, half the epochs."""
    config, widths = TABLE_6, (256, 256, 256, 256)
    # [256] * 4 -> [64, 64, 64, 256].
    config = replace(config, prune_layers=(0, 1, 2))
    cells = []
    for variant in ("large", "small", *OURS):
        fits = _fits(choice, config, widths, variant, length=0.5)  # type: ignore[arg-type]
        cells += [
            _length(variant, "CD", fits),
            _length(variant, "CD, averaged", fits, "averaged_chamfer_x100"),
            _length(variant, "Hausdorff", fits, "hausdorff"),
            Cell(variant, "normals", fits, "normal_consistency"),
            Cell(variant, "parameters", fits, "parameters", is_better="lower"),
        ]
    note = "The paper, without numbers: the large network diverges on the Armadillo and AIRe does not."
    notes = (note, *_omega_note(choice), ROUNDS_NOTE, CHAMFER_NOTE, AVERAGED_NOTE)
    return Experiment(
        "sdf-figure4", "Figure 4: four layers, w0 60, half the epochs, SIREN", tuple(cells), (), notes,
        is_recorded=True, curve=LOSS,
    )  # fmt: skip


def flow(choice: Choice) -> Experiment:
    """Mean curvature flow: AIRe's surfaces against the large network's."""
    budget = _budget(choice)
    starts = tuple(replace(fit, adaptation=AireConfig()) for fit in _fits(choice, TABLE_6, variant="large", omega=30.0))
    config = replace(TABLE_6, prune_fraction=0.25)

    def fits(variant: Variant) -> tuple[FlowFit, ...]:
        scale = budget.points / 10_000
        return tuple(
            FlowFit(
                start=start, epochs=10_000.0 * budget.flow_length, on_surface=round(15_000 * scale),
                off_surface=round(15_000 * scale), space_time=round(30_000 * scale),
                learning_rate=budget.learning_rate, final_ratio=budget.final_ratio, variant=variant,
                adaptation=AireConfig() if variant == "large" else changed(config, choice, variant),
                resolution=budget.resolution,
            )
            for start in starts
        )  # fmt: skip

    cells = [Cell("large", "parameters", fits("large"), "parameters", is_better="lower"),
             Cell("large", "seconds", fits("large"), "seconds", is_better="lower")]  # fmt: skip
    for variant in OURS:
        these = fits(variant)
        is_papers = variant == "aire"
        cells += [
            *(_length(variant, f"CD to large, t = {t:g}", these, f"chamfer_{t:g}") for t in MOMENTS),
            _length(variant, "mean CD", these, "chamfer_mean", 0.004 if is_papers else None, 0.0005),
            _length(variant, "mean CD, averaged", these, "averaged_chamfer_mean"),
            Cell(variant, "parameters", these, "parameters", is_better="lower"),
            Cell(variant, "reduction %", these, "reduction", 34.13 if is_papers else None),
            Cell(variant, "seconds", these, "seconds", is_better="lower"),
        ]
    notes = (
        "Chamfer distance (not times 100) between the surfaces of a network and of the large one at the same moment, "
        "in the paper's unit, half of the shape's longest side. Our shapes reach from -0.9 to 0.9 and move as far in "
        "the same time, which is 1.23 times the paper's alpha for theirs. The paper's flow is of the Armadillo.",
        AVERAGED_NOTE,
    )
    return Experiment(
        "flow", "Mean curvature flow, SIREN, w0 30", tuple(cells), (), notes, is_recorded=True, curve=LOSS
    )


SURFACE_EXPERIMENTS: dict[str, Callable[[Choice], Experiment]] = {
    "sdf-table1": table1, "sdf-table3": table3, "sdf-table5": table5, "sdf-table6": table6, "sdf-table7": table7,
    "sdf-figure4": figure4, "flow": flow,
}  # fmt: skip
