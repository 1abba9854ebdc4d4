"""What a run's folder tells without executing anything from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aire_nerfstudio.checkpoint_file import read_checkpoint
from aire_nerfstudio.errors import InputError, first_line
from aire_nerfstudio.record import RunRecord, Snapshot
from aire_nerfstudio.sessions import read_sessions

# What is learned of so many coordinates.
TASKS = {2: "image", 3: "surface", 4: "flow"}
STATE_KEY = "_model._extra_state"
CHECKPOINTS, CONFIG, EVALUATION, REPORT = "nerfstudio_models", "config.yml", "eval.json", "report.html"


@dataclass(frozen=True)
class RunFacts:
    """A finished, or an unfinished, run.

    Attributes:
        name: method and experiment.
        folder: the run's.
        step: optimizer steps done.
        task: what was learned: ``NeRF`` or one of :data:`TASKS`.
        settings: of the network, which its shapes do not tell.
        variant: of the adaptation.
        parameters: of the trained field at the start and in the checkpoint.
        checkpoint_bytes: size of the checkpoint file, optimizer and all.
        history: events, as plain data.
        record: curves and snapshots; None for a checkpoint of an earlier release.
        now: the neurons in the checkpoint; None likewise.
        sessions: entries of ``run.json``.
        scores: what ``ns-eval`` wrote into ``eval.json``; empty where it did not.
        config: text of ``config.yml``; empty where there is none.
    """

    name: str
    folder: Path
    step: int
    task: str
    settings: Mapping[str, Any]
    variant: str
    parameters: tuple[int, int]
    checkpoint_bytes: int
    history: list[dict[str, Any]]
    record: RunRecord | None
    now: Snapshot | None
    sessions: list[dict[str, Any]]
    scores: dict[str, float]
    config: str

    @property
    def seconds(self) -> float:
        """Of all processes that trained it, set-up excluded, as far as ``run.json`` knows them; 0: not at all."""
        return sum(float(session.get("seconds", 0)) for session in self.sessions)


def read_run(folder: Path) -> RunFacts:
    """Read a run's folder; checkpoints with ``weights_only=True``.

    Raises:
        InputError: no run of this package, or a damaged one.
    """
    folder = folder.absolute()
    path = latest_checkpoint(folder)
    try:
        saved = read_checkpoint(path)
        state = saved["pipeline"][STATE_KEY]
        has_record = "record" in state
        return RunFacts(
            name=f"{folder.parent.name} · {folder.parent.parent.name}",
            folder=folder,
            step=int(state["step"]) + 1,
            task=_task(saved["pipeline"]),
            settings=dict(state["settings"]),
            variant=str(state["variant"]),
            parameters=(int(state["initial_parameters"]), int(state["parameters"])),
            checkpoint_bytes=path.stat().st_size,
            history=list(state["history"]),
            record=RunRecord.from_dict(state["record"]) if has_record else None,
            now=Snapshot.from_dict(state["now"]) if has_record else None,
            sessions=read_sessions(folder),
            scores=_scores(folder / EVALUATION, path.name),
            config=_text(folder / CONFIG),
        )
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} is no whole checkpoint of an aire method ({first_line(error)})") from error


def _task(weights: Mapping[str, Any]) -> str:
    """What was learned, by the number of coordinates that the network takes."""
    first = weights.get("_model.field.layers.0.weight")
    return "NeRF" if first is None else TASKS[first.shape[1]]


def latest_checkpoint(folder: Path) -> Path:
    """The last checkpoint in a run's folder.

    Raises:
        InputError: there is none.
    """
    try:
        checkpoints = sorted((folder / CHECKPOINTS).glob("step-*.ckpt"))
    except OSError as error:
        raise InputError(f"{folder} cannot be looked into ({error.strerror or error}); give a run's folder") from error
    if not checkpoints:
        raise InputError(
            f"{folder} holds no {CHECKPOINTS}/step-*.ckpt; give a run's folder, such as "
            "outputs/NAME/METHOD/2026-01-31_120000"
        )
    return checkpoints[-1]


def checkpoint_named(path: Path) -> Path:
    """The checkpoint that is meant by a run's folder or its ``config.yml``, the last one, or by the file itself.

    Raises:
        InputError: the folder holds none.
    """
    run = path.parent if path.name == CONFIG else path
    return latest_checkpoint(run) if run.is_dir() else run


def from_its_folder(run: Path) -> Callable[[Any], Any]:
    """For nerfstudio's ``eval_setup``: checkpoints come from ``run``; the config names the folder it was trained in."""

    def update(config: Any) -> Any:
        config.get_base_dir = run.absolute
        return config

    return update


def _scores(path: Path, checkpoint: str) -> dict[str, float]:
    """What ns-eval found of this checkpoint; nothing where it evaluated another."""
    if not path.is_file():
        return {}
    try:
        evaluated = json.loads(path.read_text("utf8"))
        results = evaluated["results"]
        if Path(evaluated.get("checkpoint", checkpoint)).name != checkpoint:
            return {}
        return {str(name): float(value) for name, value in results.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}); remove it or run ns-eval again") from error


def _text(path: Path) -> str:
    return path.read_text("utf8", errors="replace") if path.is_file() else ""
