"""Trainings that are killed at random moments, resumed, and compared with the one that was not."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from commands import fork
from tiny import SAVE, STEPS, checkpoints, differences, kill_at, load, tiny_config, train

MOMENTS = ("before", "after", "save", "name")


@dataclass
class Outcome:
    """A training with its kills.

    Attributes:
        kills: ``(moment, number)`` of those that took place.
        resumed_from: step of the checkpoint that each later process took up; -1: none was there yet, begun anew.
        faults: what went otherwise than it should.
    """

    kills: list = field(default_factory=list)
    resumed_from: list = field(default_factory=list)
    faults: list = field(default_factory=list)


def whole(task, folder, seed=42):
    """The last checkpoint of an undisturbed training."""
    code = _in_a_process(task, folder / "whole", seed, None, None)
    assert code == 0, (
        f"the undisturbed training of {task} ended with {code}: {(folder / 'whole.log').read_text()[-2000:]}"
    )
    return load(checkpoints(tiny_config(task, folder / "whole"))[-1])


def killed(task, folder, kills, seed, expected):
    """Train with as many kills at moments drawn from ``seed``; compare the end with ``expected`` to the bit."""
    draw, outcome, source = random.Random(seed), Outcome(), None
    for turn in range(kills + 1):
        first = 0 if source is None else source[1] + 1
        plan = None if turn == kills else (draw.choice(MOMENTS), draw.randint(first, STEPS - 1))
        run = folder / f"{seed}-{turn}"
        code = _in_a_process(task, run, 42, plan, source)
        if plan is not None and code == -9:
            outcome.kills.append(plan)
        elif code != 0:
            outcome.faults.append(
                f"turn {turn}, plan {plan}: status {code}: {run.with_suffix('.log').read_text()[-800:]}"
            )
            return outcome
        found = checkpoints(tiny_config(task, run))
        outcome.faults += [f"turn {turn}: {path.name} is damaged" for path in found if not _is_whole(path)]
        if code == 0:
            outcome.faults += [f"turn {turn}: differs in {d}" for d in differences(load(found[-1]), expected)[:3]]
            break
        outcome.faults += _what_is_missing(plan, found, first, turn)
        if found:
            source = (found[-1].parent, int(found[-1].stem[5:]))
        outcome.resumed_from.append(-1 if source is None else source[1])
    for run in folder.glob(f"{seed}-*"):
        shutil.rmtree(run) if run.is_dir() else run.unlink()
    return outcome


def _what_is_missing(plan, found, first, turn):
    """A checkpoint that was finished before the kill and is not there."""
    moment, number = plan
    # Iterations after which nerfstudio saves: multiples of SAVE but 0, and the last one.
    due = [step for step in (*range(SAVE, STEPS, SAVE), STEPS - 1) if step >= first]
    finished = [step for step in due if step < number]
    there = [int(path.stem[5:]) for path in found]
    return [
        f"turn {turn}: step {step} was saved and is gone ({moment} {number})" for step in finished if step not in there
    ]


def _is_whole(path):
    try:
        return load(path)["step"] == int(path.stem[5:])
    except Exception:
        return False


def _in_a_process(task, folder, seed, plan, source):
    process = fork(_train, task, str(folder), seed, plan, source)
    process.join(300)
    process.kill()
    return process.exitcode


def _train(task, folder, seed, plan, source):
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    if plan is not None:
        kill_at(*plan)
    config = tiny_config(task, folder)
    if source is not None:
        config.load_dir, config.load_step = source
    train(config, seed)
