"""All tables and figures of the paper, by name."""

from __future__ import annotations

from collections.abc import Callable

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.reproduce.experiment import Choice, Experiment, Kind
from aire_nerfstudio.reproduce.image_experiments import IMAGE_EXPERIMENTS
from aire_nerfstudio.reproduce.surface_experiments import SURFACE_EXPERIMENTS

EXPERIMENTS: dict[str, Callable[[Choice], Experiment]] = {**IMAGE_EXPERIMENTS, **SURFACE_EXPERIMENTS}


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
        InputError: no such name, a budget that its kind does not have, or no files or seeds.
    """
    kind = kind_of(name)
    if not choice.sources or not choice.seeds:
        raise InputError(f"no {kind} or no seeds; name at least one of each")
    return EXPERIMENTS[name](choice)
