"""What a table or figure is: its cells, the fits behind them, differences of rows, and what the person asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.variants import Variant
from aire_nerfstudio.reproduce.fit import Fit

BudgetName = Literal["smoke", "cpu", "crop", "paper"]
Kind = Literal["images", "surfaces"]
OURS: tuple[Variant, ...] = ("aire", "aire_early", "aire_rounds")


@dataclass(frozen=True)
class Cell:
    """One entry of a table: the fits it averages, and what the paper has there.

    Attributes:
        row: label of its row.
        column: label of its column.
        fits: over files and seeds.
        metric: which of a fit's figures.
        paper: the paper's value, if it gives one.
        is_better: ``higher`` or ``lower`` values.
        rounding: half a unit of the paper's last digit: what falls short of its value by no more meets it.
        is_of_file: whether the paper's value is for these fits' one file, not its average over all.
        factor: what a fit's figure is multiplied by to be in the paper's unit.
        is_judged: whether the paper's value can be held against ours at all; seconds of other machines cannot.
    """

    row: str
    column: str
    fits: tuple[Fit, ...]
    metric: str
    paper: float | None = None
    is_better: Literal["higher", "lower"] = "higher"
    rounding: float = 0.005
    is_of_file: bool = False
    factor: float = 1.0
    is_judged: bool = True


@dataclass(frozen=True)
class Gain:
    """A difference of two rows in one column, which stays comparable when the budget is not the paper's.

    Attributes:
        row: label of the one row.
        minus: label of the other.
        column: label of the column.
        paper: the paper's difference (or ratio), if it gives one.
        is_better: ``higher`` or ``lower`` values.
        is_ratio: the one divided by the other instead.
        rounding: half a unit of the paper's last digit.
    """

    row: str
    minus: str
    column: str
    paper: float | None = None
    is_better: Literal["higher", "lower"] = "higher"
    is_ratio: bool = False
    rounding: float = 0.005


@dataclass(frozen=True)
class Experiment:
    """A table or figure."""

    name: str
    title: str
    cells: tuple[Cell, ...]
    gains: tuple[Gain, ...] = ()
    notes: tuple[str, ...] = ()
    is_recorded: bool = False
    """Whether the fits keep what the figures need: reconstructions and contributions."""
    is_timed: bool = False
    """Whether times are what it is about: then fits run one at a time."""
    grid: tuple[str, str] | None = None
    """Axis labels (columns, rows) where the table is a heat map."""
    curve: str = "PSNR of the training batch (dB)"
    """What the training curves show."""
    averaged: frozenset[str] = frozenset()
    """Files that the paper's averages are over, without suffix; of others nothing can be said against them. Empty: the
    paper does not say."""

    def fits(self) -> list[Fit]:
        """All its fits, each once."""
        return list(dict.fromkeys(fit for cell in self.cells for fit in cell.fits))


@dataclass(frozen=True)
class Choice:
    """What the person asked for."""

    budget: BudgetName
    sources: tuple[str, ...]
    """Pictures or shapes, by file name."""
    seeds: tuple[int, ...] = (0,)
    changes: tuple[tuple[str, object], ...] = field(default=())
    """Fields of AIRe's configuration to set otherwise than the paper: how a switch is put to the test."""


def changed(adaptation: AireConfig, choice: Choice, variant: Variant) -> AireConfig:
    """The schedule with what the person asked to set otherwise; the baselines stay as they are."""
    return replace(adaptation, **dict(choice.changes)) if choice.changes and variant in OURS else adaptation  # type: ignore[arg-type]
