"""What every export needs: the run, and a place to write to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from aire_nerfstudio.errors import InputError, first_line
from aire_nerfstudio.files import check_file
from aire_nerfstudio.report.facts import from_its_folder

M = TypeVar("M")


@contextlib.contextmanager
def bar(name: str, is_quiet: bool) -> Iterator[Callable[[float], None]]:
    """A progress bar with the time that is left; gives the function that takes the share done, in [0, 1]."""
    columns = (TextColumn(name), BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, disable=is_quiet) as progress:
        task = progress.add_task(name, total=1.0)
        yield lambda share: progress.update(task, completed=share)


def check_config(path: Path, option: str = "--load-config") -> None:
    """Refuse a config.yml that is not there.

    Raises:
        InputError: no such file.
    """
    check_file(path, option, "give a run's config.yml")


def load_model(config: Path, kind: type[M], command: str, methods: str, option: str = "--load-config") -> M:
    """The trained model of a run.

    Args:
        config: the run's config.yml.
        kind: class that the model must have.
        command: name of the export, for messages.
        methods: names of the methods that make such models, for messages.
        option: that names the run, for messages.

    Raises:
        InputError: the run cannot be loaded, or is of another kind.
    """
    from nerfstudio.utils.eval_utils import eval_setup

    try:
        here = from_its_folder(config.parent)
        _, pipeline, _, _ = eval_setup(config, test_mode="inference", update_config_callback=here)
    except InputError as error:  # said in a line already
        why = str(error)
        raise InputError(f"{why} ({option} {config})" if "does not exist" in why else why) from error
    except Exception as error:
        raise InputError(
            f"{option} {config} cannot be loaded ({type(error).__name__}: {first_line(error)}); give the config.yml of "
            "a run, from the folder it was trained in: it names its data from there"
        ) from error
    model: Any = pipeline.model
    if not isinstance(model, kind):
        raise InputError(f"{config} is a run of {type(model).__name__}; `{command}` exports {methods} runs")
    return model
