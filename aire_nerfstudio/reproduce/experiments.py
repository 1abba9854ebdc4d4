"""The paper's tables and figures of images, surfaces and their flow, by name; NeRF is trained by ``ns-train``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from aire_nerfstudio.adaptation.aire_config import check, check_order
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.reproduce.experiment import Choice, Experiment, Kind
from aire_nerfstudio.reproduce.image_experiments import IMAGE_EXPERIMENTS, PICTURES
from aire_nerfstudio.reproduce.surface_experiments import SHAPES, SURFACE_EXPERIMENTS

EXPERIMENTS: dict[str, Callable[[Choice], Experiment]] = {**IMAGE_EXPERIMENTS, **SURFACE_EXPERIMENTS}

# Files behind the paper's numbers, where they are not all of their kind. Table 4 has "a subset" of the pictures, whose
# small networks are 1.8 dB above those of all 16; figure 10 shows one picture.
AVERAGED: dict[str, tuple[str, ...]] = {"flow": ("armadillo",), "images-table4": (), "images-figure10": ()}


def kind_of(name: str) -> Kind:
    """What an experiment learns.

    Raises:
        InputError: no such name.
    """
    if name not in EXPERIMENTS:
        raise InputError(f"{name!r} is no experiment; choose one of {', '.join(EXPERIMENTS)}")
    return "images" if name in IMAGE_EXPERIMENTS else "surfaces"


def make_experiment(name: str, choice: Choice) -> Experiment:
    """The experiment of a name.

    Raises:
        InputError: no such name, a budget that its kind does not have, no files or seeds, or a schedule that cannot be.
    """
    kind = kind_of(name)
    if not choice.sources or not choice.seeds:
        raise InputError(f"no {kind} or no seeds; name at least one of each")
    averaged = AVERAGED.get(name, SHAPES if kind == "surfaces" else PICTURES)
    experiment = replace(EXPERIMENTS[name](choice), averaged=frozenset(averaged))
    for fit in experiment.fits():
        check(fit.adaptation)
        if fit.variant in ("aire", "weight_decay", "no_decay"):  # others have times of their own, or none
            check_order(fit.adaptation)
    return experiment
