"""What every export needs: the run, and a place to write to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from aire_nerfstudio.checkpoint_file import read_checkpoint
from aire_nerfstudio.errors import InputError, first_line
from aire_nerfstudio.files import check_file
from aire_nerfstudio.report.facts import CHECKPOINTS, CONFIG, STATE_KEY, from_its_folder, latest_checkpoint

M = TypeVar("M")


@contextlib.contextmanager
def bar(name: str, is_quiet: bool) -> Iterator[Callable[[float], None]]:
    """A progress bar with the time that is left; gives the function that takes the share done, in [0, 1]."""
    columns = (TextColumn(name), BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, disable=is_quiet) as progress:
        task = progress.add_task(name, total=1.0)
        yield lambda share: progress.update(task, completed=share)


def config_of(path: Path, option: str = "--load-config") -> Path:
    """The config.yml that is named, or that of the run whose folder is named.

    Raises:
        InputError: no such file.
    """
    config = path / CONFIG if path.is_dir() else path
    check_file(config, option, "give a run's folder, or its config.yml")
    return config


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
        model = _model_without_data(config)
        if model is None:
            here = from_its_folder(config.parent)
            model = eval_setup(config, test_mode="inference", update_config_callback=here)[1].model
    except InputError as error:  # said in a line already
        why = str(error)
        raise InputError(f"{why} ({option} {config})" if "does not exist" in why else why) from error
    except Exception as error:
        raise InputError(
            f"{option} {config} cannot be loaded ({type(error).__name__}: {first_line(error)}); give the config.yml of "
            "a run, from the folder it was trained in: it names its data from there"
        ) from error
    if not isinstance(model, kind):
        raise InputError(f"{config} is a run of {type(model).__name__}; `{command}` exports {methods} runs")
    return model


def _model_without_data(config: Path) -> Any:
    """The model of a run that needs no data to be made; None: it needs them, or the run is of an earlier release."""
    import torch
    import yaml
    from nerfstudio.data.scene_box import SceneBox

    run = config.parent
    # As nerfstudio reads it; aire-inspect tells what that would execute.
    trained = yaml.load(config.read_text("utf8"), Loader=yaml.Loader)
    folder = run / CHECKPOINTS
    if not folder.is_dir():
        return None
    step = getattr(trained, "load_step", None)
    saved = read_checkpoint(latest_checkpoint(run) if step is None else folder / f"step-{step:09d}.ckpt")["pipeline"]
    metadata = saved.get(STATE_KEY, {}).get("without_data")
    if not metadata:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    box = SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3]))
    model = trained.pipeline.model.setup(scene_box=box, num_train_data=1, metadata=dict(metadata), device=device)
    weights = {name.removeprefix("_model."): value for name, value in saved.items() if name.startswith("_model.")}
    model.to(device).load_state_dict(weights)
    return model
