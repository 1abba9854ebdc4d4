"""The paper's tables and figures of images: the fits of each, and the paper's own numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.variants import Variant
from aire_nerfstudio.fields.sine_layers import Activation
from aire_nerfstudio.reproduce.experiment import OURS, BudgetName, Cell, Choice, Experiment, Gain, changed
from aire_nerfstudio.reproduce.image_fit import ImageFit


@dataclass(frozen=True)
class Budget:
    """How large the fits are. Widths, and epochs and moments of the schedules, scale together.

    Attributes:
        width: what the paper's 512 becomes.
        length: epochs over the paper's.
        side: longer side of the pictures in pixels, None: as they are.
        batch: pixels a step.
        crop: side of the square cut out of the middle instead, None: the whole picture.
    """

    width: int
    length: float
    side: int | None
    batch: int = 65_536
    crop: int | None = None

    def widths(self, *paper: int) -> tuple[int, ...]:
        """The paper's widths at this size."""
        return tuple(max(2, round(width * self.width / 512)) for width in paper)

    def epochs(self, paper: int) -> int:
        """The paper's epochs at this length."""
        return max(20, round(paper * self.length))


# FINER's 16 of DIV2K, over which the paper's averages are.
PICTURES = tuple(f"{number:02d}" for number in range(16))
BUDGETS: dict[BudgetName, Budget] = {
    "smoke": Budget(width=16, length=0.006, side=20),
    "cpu": Budget(width=128, length=0.3, side=128),
    # As smooth as the paper's pictures: reduced ones are so busy that held-out pixels can hardly be told from the rest.
    "crop": Budget(width=128, length=0.3, side=None, crop=128),
    "paper": Budget(width=512, length=1.0, side=None),
}


def _aire(**moments: object) -> AireConfig:
    return replace(AireConfig(), **moments)  # type: ignore[arg-type]


# Percent of the run rather than epochs: every budget keeps the paper's proportions.
TABLE_3 = _aire(
    unit="percent", densify_at=5.0, densify_fraction=0.25, decay_start=45.0, prune_at=90.0, prune_layers=(0,),
    prune_fraction=0.6,
)  # fmt: skip
PRUNE_ONLY = replace(TABLE_3, densify_at=None, densify_fraction=0.0, prune_fraction=0.5)


def _fits(
    choice: Choice, adaptation: AireConfig, widths: tuple[int, ...], epochs: int, variant: Variant = "aire",
    activation: Activation = "siren",
) -> tuple[ImageFit, ...]:  # fmt: skip
    budget, used = BUDGETS[choice.budget], changed(adaptation, choice, variant)
    return tuple(
        ImageFit(
            image=image, side=budget.side, crop=budget.crop, activation=activation, widths=budget.widths(*widths),
            epochs=budget.epochs(epochs), batch=budget.batch, seed=seed, variant=variant, adaptation=used,
        )
        for image in choice.sources
        for seed in choice.seeds
    )  # fmt: skip


# Two hidden layers, as the paper counts: its input layer comes on top.
LARGE = (512, 512, 512)


def table3(choice: Choice) -> Experiment:
    """Large, small and AIRe, SIREN and FINER."""
    paper = {
        ("siren", "large"): 39.59, ("siren", "small"): 34.60, ("siren", "aire"): 37.07,
        ("finer", "large"): 38.77, ("finer", "small"): 38.87, ("finer", "aire"): 39.91,
    }  # fmt: skip
    cells, gains = [], []
    for activation in ("siren", "finer"):
        for variant in ("large", "small", *OURS):
            fits = _fits(choice, TABLE_3, LARGE, 5000, variant, activation)  # type: ignore[arg-type]
            row = f"{activation} {variant}"
            cells.append(Cell(row, "PSNR test", fits, "psnr_test", paper.get((activation, variant))))
            cells.append(Cell(row, "PSNR train", fits, "psnr_train"))
            cells.append(Cell(row, "parameters", fits, "parameters", is_better="lower"))
            cells.append(Cell(row, "seconds", fits, "seconds", is_better="lower"))
        for other in ("small", "large"):
            gain = paper[activation, "aire"] - paper[activation, other]
            gains.append(Gain(f"{activation} aire", f"{activation} {other}", "PSNR test", round(gain, 2)))
            gains.append(Gain(f"{activation} aire", f"{activation} {other}", "PSNR train"))
            gains += [
                Gain(f"{activation} {variant}", f"{activation} {other}", column)
                for variant in OURS[1:]
                for column in ("PSNR test", "PSNR train")
            ]
    notes = (
        "Not the paper's: aire_early, the same changes at 5, 10 and 30 % of the run; aire_rounds, input neurons "
        "doubled at 5 %, then eight rounds of removal from all layers between 10 and 30 %, to as many parameters as "
        "small has. Seconds are of fits that share the machine with as many others as --jobs says.",
    )
    return Experiment("images-table3", "Table 3: large, small and AIRe", tuple(cells), tuple(gains), notes)


def table2(choice: Choice) -> Experiment:
    """Pruning methods at the same number of parameters."""
    paper = {
        "small": (34.60, 0.92), "depgraph": (27.56, 0.82), "rigl": (34.29, 0.95), "zell": (18.96, 0.39),
        "aire": (37.07, 0.95),
    }  # fmt: skip
    cells = []
    for variant, (psnr, ssim) in paper.items():
        fits = _fits(choice, TABLE_3, LARGE, 5000, variant)  # type: ignore[arg-type]
        cells += [
            Cell(variant, "PSNR test", fits, "psnr_test", psnr),
            Cell(variant, "SSIM", fits, "ssim", ssim),
            Cell(variant, "PSNR train", fits, "psnr_train"),
            Cell(variant, "parameters", fits, "parameters", is_better="lower"),
        ]
    gains = [
        Gain("aire", other, "PSNR test", round(paper["aire"][0] - psnr, 2))
        for other, (psnr, _) in paper.items()
        if other != "aire"
    ]
    return Experiment("images-table2", "Table 2: pruning methods, SIREN", tuple(cells), tuple(gains))


def table4(choice: Choice) -> Experiment:
    """With and without densification."""
    paper = {"siren": (36.44, 37.58, 39.47), "finer": (40.84, 41.80, 41.88)}
    rows: tuple[tuple[str, Variant, AireConfig], ...] = (
        ("small", "small", TABLE_3), ("prune only", "aire", PRUNE_ONLY), ("densify + prune", "aire", TABLE_3),
    )  # fmt: skip
    cells = [
        Cell(row, f"{activation} PSNR test", _fits(choice, config, LARGE, 5000, variant, activation), "psnr_test", psnr)  # type: ignore[arg-type]
        for activation, numbers in paper.items()
        for (row, variant, config), psnr in zip(rows, numbers, strict=True)
    ]
    gains = [
        Gain(row, "small", f"{activation} PSNR test", round(psnr - numbers[0], 2))
        for activation, numbers in paper.items()
        for (row, _, _), psnr in zip(rows[1:], numbers[1:], strict=True)
    ]
    note = (
        "The paper's numbers are of a subset of the pictures that it does not name: its small SIREN has 36.44 dB there "
        "and 34.60 over all 16 (table 3)."
    )
    return Experiment("images-table4", "Table 4: densification", tuple(cells), tuple(gains), (note,))


def table1(choice: Choice) -> Experiment:
    """Data-adaptive sizes: only neurons below the threshold go."""
    numbers = {
        "00": (31.96, 31.56, 35.89), "01": (37.93, 35.63, 65.28), "02": (30.76, 29.17, 52.39),
        "03": (37.40, 35.04, 56.80), "04": (33.88, 31.09, 60.08),
    }  # fmt: skip
    config = replace(TABLE_3, prune_layers=(0, 1), prune_fraction=0.6, prune_rule="threshold")
    cells = []
    for image in choice.sources:
        one = replace(choice, sources=(image,))
        label = image.rsplit(".", 1)[0]
        large, ours, reduction = numbers.get(label, (None, None, None))
        fits = _fits(one, config, (512, 256, 256), 5000)
        cells += [
            Cell(
                label,
                "large PSNR",
                _fits(one, config, (512, 256, 256), 5000, "large"),
                "psnr_test",
                large,
                is_of_file=True,
            ),
            Cell(label, "AIRe PSNR", fits, "psnr_test", ours, is_of_file=True),
            Cell(label, "reduction %", fits, "reduction", reduction, is_of_file=True),
        ]
    note = "Chosen: the weakest 60 % of the input and first hidden layers; removed: those with contribution <= 0.01."
    return Experiment("images-table1", "Table 1: sizes that follow the data, SIREN", tuple(cells), notes=(note,))


def table8(choice: Choice) -> Experiment:
    """SPDER."""
    widths = (512, 256, 256)
    config = replace(TABLE_3, prune_layers=(0,), prune_fraction=0.6, prune_counts=None)
    cells = []
    for variant, psnr, reduction in (("large", 30.77, None), ("small", None, None), ("aire", 34.61, 34.89)):
        fits = _fits(choice, config, widths, 5000, variant, "spder")  # type: ignore[arg-type]
        cells += [
            Cell(variant, "PSNR test", fits, "psnr_test", psnr),
            Cell(variant, "reduction %", fits, "reduction", reduction),
        ]
    note = "The paper does not say which neurons go; here 640 -> 256 input neurons, as in table 3: -33.25 %."
    gains = (Gain("aire", "large", "PSNR test", 3.84), Gain("aire", "small", "PSNR test"))
    return Experiment("images-table8", "Table 8: SPDER", tuple(cells), gains, (note,))


def table9(choice: Choice) -> Experiment:
    """Inference time of table 3's networks."""
    cells = []
    for variant in ("large", "aire"):
        fits = _fits(choice, TABLE_3, LARGE, 5000, variant)  # type: ignore[arg-type]
        cells += [
            Cell(variant, "ms a picture", fits, "inference_ms", is_better="lower"),
            Cell(variant, "parameters", fits, "parameters", is_better="lower"),
        ]
    notes = (
        "The paper: -17.16 % on its CPU, -26.17 % on its GPU, at -24.95 % parameters. Medians of 9 evaluations of the "
        "whole picture after the fit, on the device of the fits.",
    )
    gains = (Gain("aire", "large", "ms a picture"),)
    return Experiment("images-table9", "Table 9: inference time, SIREN", tuple(cells), gains, notes, is_timed=True)


def figure5(choice: Choice) -> Experiment:
    """Share of input and first hidden neurons removed, with and without targeted decay."""
    large = _fits(choice, _aire(), LARGE, 5000, "large")
    cells = [
        Cell("nothing removed", "after fine-tuning", large, "psnr_test"),
        Cell("nothing removed", "parameters", large, "parameters", is_better="lower"),
    ]
    for share in (0.2, 0.4, 0.6, 0.8):
        for decay in ("targeted", "none"):
            config = _aire(
                unit="percent", decay_start=45.0, prune_at=90.0, prune_layers=(0, 1), prune_fraction=share, decay=decay
            )
            fits = _fits(choice, config, LARGE, 5000)
            row = f"p = {share}, {'TWD' if decay == 'targeted' else 'no decay'}"
            cells += [
                Cell(row, "before removal", fits, "psnr_test_before_removal"),
                Cell(row, "after removal", fits, "psnr_test_after_removal"),
                Cell(row, "after fine-tuning", fits, "psnr_test"),
                Cell(row, "parameters", fits, "parameters", is_better="lower"),
            ]
    gains = [
        Gain(f"p = {share}, TWD", f"p = {share}, no decay", column)
        for share in (0.2, 0.4, 0.6, 0.8)
        for column in ("after removal", "after fine-tuning")
    ]
    gains += [
        Gain(f"p = {share}, {how}", "nothing removed", "after fine-tuning", is_ratio=True)
        for share in (0.2, 0.4, 0.6, 0.8)
        for how in ("TWD", "no decay")
    ]
    notes = (
        "The paper, of one picture: with 28 % of the network's weights left (p = 0.6) TWD keeps 92 % of the PSNR "
        "before fine-tuning; after it the drop is below 2.1 %, 3.8 % without TWD.",
    )
    return Experiment("images-figure5", "Figure 5: pruning rate, SIREN", tuple(cells), tuple(gains), notes)


def figure10(choice: Choice) -> Experiment:
    """Just after the removal, with and without targeted decay; curve, contributions and spectra."""
    cells = []
    for row, config, psnr in (("TWD", TABLE_3, 38.12), ("no decay", replace(TABLE_3, decay="none"), 24.13)):
        fits = _fits(choice, config, LARGE, 5000)
        cells += [
            Cell(row, "before removal", fits, "psnr_test_before_removal"),
            Cell(row, "after removal", fits, "psnr_test_after_removal", psnr),
            Cell(row, "end", fits, "psnr_test"),
        ]
    gains = (Gain("TWD", "no decay", "after removal", 13.99),)
    return Experiment("images-figure10", "Figure 10: around the removal", tuple(cells), gains, is_recorded=True)


def ordering(choice: Choice) -> Experiment:
    """Densify, then prune, and the other way round."""
    first = _aire(
        unit="percent", densify_at=20.0, densify_fraction=0.5, decay_start=30.0, prune_at=40.0, prune_layers=(1,),
        prune_fraction=0.5,
    )  # fmt: skip
    second = replace(first, densify_at=30.0, decay_start=10.0, prune_at=20.0)
    cells = [
        Cell(row, "PSNR test", _fits(choice, config, (256, 512, 256), 2000), "psnr_test", psnr)
        for row, config, psnr in (("densify, prune", first, 33.99), ("prune, densify", second, 33.41))
    ]
    gains = (Gain("densify, prune", "prune, densify", "PSNR test", 0.58),)
    return Experiment("images-ordering", "Order of densification and pruning", tuple(cells), gains, is_recorded=True)


def decay(choice: Choice) -> Experiment:
    """Targeted, plain and no decay, and what this package adds."""
    rows: tuple[tuple[str, str, float | None], ...] = (
        ("targeted", "targeted", 36.9), ("none", "none", 34.7), ("plain weight decay", "weight_decay", 34.2),
        ("proximal (ours)", "proximal", None), ("scheduled (ours)", "scheduled", None),
    )  # fmt: skip
    cells = []
    for row, kind, psnr in rows:
        fits = _fits(choice, replace(TABLE_3, decay=kind), LARGE, 5000)  # type: ignore[arg-type]
        cells += [
            Cell(row, "PSNR test", fits, "psnr_test", psnr, rounding=0.05),
            Cell(row, "after removal", fits, "psnr_test_after_removal"),
            Cell(row, "PSNR train", fits, "psnr_train"),
        ]
    gains = (
        Gain("targeted", "none", "PSNR test", 2.2, rounding=0.05),
        Gain("targeted", "plain weight decay", "PSNR test", 2.7, rounding=0.05),
    )
    return Experiment("images-decay", "Decay before the removal, SIREN", tuple(cells), gains)


def _heat_map(
    name: str, title: str, choice: Choice, widths: tuple[int, ...], epochs: int, axes: tuple[str, str],
    columns: Sequence[float], rows: Sequence[float], config: Callable[[float, float], AireConfig], note: str = "",
) -> Experiment:  # fmt: skip
    cells = tuple(
        Cell(f"{row:g}", f"{column:g}", _fits(choice, config(column, row), widths, epochs), "psnr_test")
        for row, column in itertools.product(rows, columns)
    )
    return Experiment(name, title, cells, notes=(note,) if note else (), grid=axes)


def figure11(choice: Choice) -> Experiment:
    """Epochs before and of the decay, out of 5,000; half of the input neurons go."""
    steps = (100, 750, 1500, 2250)
    return _heat_map(
        "images-figure11", "Figure 11: epochs before the decay and of it, SIREN", choice, LARGE, 5000,
        ("epochs before the decay (of 5,000)", "epochs of decay"), steps, steps,
        lambda x, y: _aire(unit="percent", decay_start=x / 50, prune_at=(x + y) / 50, prune_layers=(0,)),
        "Four of the paper's eight numbers of epochs each way, and SIREN alone. It does not say how much is removed.",
    )  # fmt: skip


def figure12(choice: Choice) -> Experiment:
    """Shares of the input and first hidden neurons that go."""
    shares = (0.0, 0.2, 0.4, 0.6)

    def config(x: float, y: float) -> AireConfig:
        counts = tuple(round(share * BUDGETS[choice.budget].widths(512)[0]) for share in (x, y))
        return _aire(unit="percent", decay_start=45.0, prune_at=90.0, prune_layers=(0, 1), prune_counts=counts)

    return _heat_map(
        "images-figure12", "Figure 12: share pruned of two layers, SIREN", choice, LARGE, 5000,
        ("share of input neurons", "share of first hidden neurons"), shares, shares, config,
    )  # fmt: skip


def figure13(choice: Choice) -> Experiment:
    """When and how many input neurons are added, out of 3,000 epochs."""
    return _heat_map(
        "images-figure13", "Figure 13: when and how much to densify, SIREN", choice, LARGE, 3000,
        ("epochs before densification (of 3,000)", "share added"), (100, 750, 1500, 2250), (0.1, 0.25, 0.5, 0.75),
        lambda x, y: _aire(unit="percent", densify_at=x / 30, densify_fraction=y),
    )  # fmt: skip


IMAGE_EXPERIMENTS: dict[str, Callable[[Choice], Experiment]] = {
    "images-table1": table1, "images-table2": table2, "images-table3": table3, "images-table4": table4,
    "images-table8": table8, "images-table9": table9, "images-figure5": figure5, "images-figure10": figure10,
    "images-figure11": figure11, "images-figure12": figure12, "images-figure13": figure13,
    "images-ordering": ordering, "images-decay": decay,
}  # fmt: skip
