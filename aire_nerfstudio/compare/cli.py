"""Entry point of ``aire-compare``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from aire_nerfstudio.compare.contestant import Contestant, circumstances, contestant, device_here, scene_format
from aire_nerfstudio.compare.report import Entry, write_all
from aire_nerfstudio.compare.trial import Trial
from aire_nerfstudio.errors import InputError, exit_on_bad_input
from aire_nerfstudio.files import check_place, write_text
from aire_nerfstudio.machine import machine
from aire_nerfstudio.processes import alone_in
from aire_nerfstudio.report.template import duration

DEFAULT = ("aire-siren", "aire-finer", "nerfacto", "vanilla-nerf", "instant-ngp", "splatfacto")
# A time becomes a number of steps after a trial of this share of it, at most so long. The clock stops what is slower.
PILOT_SHARE, PILOT_SECONDS = 0.1, 20.0
# Steps get quicker as grids empty and networks shrink: what ended before this share of its time is trained once more,
# with as many iterations as its whole run made a second, and a little less, so that the clock does not cut it off. So
# is what the clock did cut off before this share of its schedule, whose learning rate had not come down.
ENOUGH, SAFETY, FINISHED = 0.85, 0.98, 0.97
# For set-up and rendering beside the training itself, before a trial counts as stuck.
PATIENCE_SECONDS = 900.0
MANY_STEPS = 10_000_000
DESCRIPTION = "trial.json"


@dataclass
class Compare:
    """Train several methods on one scene for the same time, or the same steps, and score all of them the same way.

    A method that cannot run here is listed with the reason. On a CPU our methods take the sizes of
    scripts/lego_cpu.sh; options that are given come after them.
    """

    data: Path
    """Scene in Blender's or nerfstudio's format."""
    methods: tuple[str, ...] = DEFAULT
    """Methods; with options in quotes ("aire-siren --pipeline.model.variant large"), and a label ("big=aire-siren")."""
    minutes: float | None = None
    """Training time of each, set-up excluded; 5 unless steps are given."""
    steps: int | None = None
    """Training steps of each, instead of a time."""
    output_dir: Path = Path("comparison")
    """Folder of the tables, the page, the pictures and the logs. What is finished there is not run again."""
    views: int = 5
    """Test views to score, evenly spread."""
    longest_side: int | None = None
    """Pixels; larger views are rendered and compared smaller. None: as they are."""
    render_minutes: float = 5.0
    """After so long no further view of a method is begun."""
    quiet: bool = False
    """Print errors only."""

    def main(self) -> None:
        """Run what is missing, then write."""
        self._check()
        from nerfstudio.configs.method_configs import all_methods

        contestants = [contestant(text, set(all_methods)) for text in self.methods]
        for each in contestants if self.steps is not None else ():
            if any(word.replace("_", "-").startswith("--steps-per-iteration") for word in each.options):
                raise InputError(
                    f"--steps {self.steps} counts iterations; leave --steps-per-iteration out of {each.label!r}"
                )
        names = [as_name(c.label) for c in contestants]
        if len(set(names)) != len(names):
            raise InputError(f"--methods names {names}, some twice; give labels: 'small=aire-siren --...'")
        for name in names:
            folder = self.output_dir / name
            if folder.exists() and not (folder / DESCRIPTION).is_file() and any(folder.iterdir()):
                raise InputError(f"{folder} is no trial's folder and would be overwritten; choose another --output-dir")
        console = Console(quiet=self.quiet)
        device = device_here()
        trials = [self.output_dir / name for name in names]
        state = circumstances(self.data, device, [*trials, *map(_before, trials)])
        check_place("--output-dir", self.output_dir, is_folder=True)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with alone_in(self.output_dir, "--output-dir"):
            entries = self._entries(contestants, device, state, console)
            facts = {
                "scene": str(self.data),
                "budget": f"{self._minutes:g} min of training" if self.steps is None else f"{self.steps:,} steps",
                **machine(device),
            }
            for path in write_all(entries, facts, self.output_dir):
                console.print(f"wrote {path}", markup=False, soft_wrap=True)

    def _entries(
        self, contestants: Sequence[Contestant], device: str, state: dict[str, str], console: Console
    ) -> list[Entry]:
        entries = []
        with Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console, transient=True,
        ) as progress:  # fmt: skip
            bar = progress.add_task("compare", total=len(contestants), left="")
            began = time.monotonic()
            for done, each in enumerate(contestants):
                took = (time.monotonic() - began) / max(1, done)
                left = f"about {duration(took * (len(contestants) - done))} left" if done else ""
                progress.update(bar, description=each.label, left=left)
                entry = self._entry(each, device, state)
                entries.append(entry)
                progress.advance(bar)
                console.print(f"{entry.label}: {entry.in_words()}", highlight=False, markup=False, soft_wrap=True)
        return entries

    @property
    def _minutes(self) -> float:
        return 5.0 if self.minutes is None else self.minutes

    def _check(self) -> None:
        if scene_format(self.data) == "blender-data" and not (self.data / "transforms_test.json").is_file():
            raise InputError(f"{self.data} has no transforms_test.json; methods are scored on its test views")
        if self.minutes is not None and self.steps is not None:
            raise InputError(f"--minutes {self.minutes:g} and --steps {self.steps} exclude each other; give one")
        if not 0 < self._minutes < float("inf"):
            raise InputError(f"--minutes is {self.minutes}; it must be positive")
        for name in ("steps", "longest_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
        if self.views < 1 or self.render_minutes <= 0 or not self.methods:
            raise InputError("--views and --render-minutes must be positive, and --methods must name one at least")

    def _entry(self, each: Contestant, device: str, state: dict[str, str]) -> Entry:
        obstacle = each.obstacle(device)
        if obstacle is not None:
            return Entry(each.label, each.method, (), {}, None, obstacle)
        command = each.command(self.data.absolute(), device)
        folder = self.output_dir.absolute() / as_name(each.label)
        if self.steps is not None:
            outcome = self._trained(self._trial(command, folder, device, self.steps, None, state))
        elif each.is_ours:
            outcome = self._trained_in_time(command, folder, device, state)
        else:
            outcome = self._trained(self._trial(command, folder, device, MANY_STEPS, 60 * self._minutes, state))
        if isinstance(outcome, str):
            return Entry(each.label, each.method, tuple(command), {}, folder, outcome)
        return Entry(each.label, each.method, tuple(command), outcome, folder, None)

    def _trained(self, trial: Trial) -> dict[str, Any] | str:
        """What became of a training, an earlier call's if it was the same, or why there is nothing."""
        kept = self._kept(trial)
        if kept is not None:
            return kept
        shutil.rmtree(trial.folder, ignore_errors=True)
        return _run(trial)

    def _trained_in_time(
        self, command: list[str], folder: Path, device: str, state: dict[str, str]
    ) -> dict[str, Any] | str:
        """Of a method whose schedule spans the run: a time becomes a number of steps."""
        seconds, path = 60 * self._minutes, self.output_dir / "rates.json"
        known: dict[str, float] = _read(path) or {}
        key = json.dumps([command, state, seconds])
        of_the_run = f"whole run {key}"
        if key not in known:
            pilot = self._pilot(command, seconds, device, state)
            if isinstance(pilot, str):
                return pilot
            known[key] = pilot
            write_text(path, json.dumps(known, indent=1))
        if of_the_run not in known:
            iterations = _iterations(seconds, known[key])
            outcome = self._trained(self._trial(command, folder, device, iterations, seconds, state))
            if isinstance(outcome, str):
                return outcome
            # Not its steps, which are the optimizer's.
            made = outcome.get("iterations", iterations)  # earlier releases kept none
            if outcome["seconds"] >= ENOUGH * seconds and made >= FINISHED * iterations:
                return outcome
            known[of_the_run] = SAFETY * made / outcome["seconds"]
            write_text(path, json.dumps(known, indent=1))
        iterations = _iterations(seconds, known[of_the_run])
        return self._trained_again(self._trial(command, folder, device, iterations, seconds, state))

    def _trained_again(self, trial: Trial) -> dict[str, Any] | str:
        """As :meth:`_trained`, but what was there stays where nothing comes of it."""
        folder, first = Path(trial.folder), _read(trial.result_path)
        if first is not None and not _is_alike(first.get("trial"), trial):
            first = None  # another command's, or another scene's
        before = _before(folder)
        shutil.rmtree(before, ignore_errors=True)
        if folder.exists() and self._kept(trial) is None:
            folder.rename(before)
        outcome: dict[str, Any] | str = "interrupted"
        try:
            outcome = self._trained(trial)
        finally:
            if isinstance(outcome, str) and before.exists():
                shutil.rmtree(folder, ignore_errors=True)
                before.rename(folder)
            shutil.rmtree(before, ignore_errors=True)
        return first if isinstance(outcome, str) and first is not None else outcome

    def _trial(
        self, command: list[str], folder: Path, device: str, steps: int, seconds: float | None, state: dict[str, str]
    ) -> Trial:
        return Trial(
            command, str(folder), device, steps, seconds, self.views, self.longest_side, 60 * self.render_minutes,
            state,
        )  # fmt: skip

    @staticmethod
    def _pilot(command: list[str], seconds: float, device: str, state: dict[str, str]) -> float | str:
        """Iterations a second of a short run, or why there are none."""
        short = min(PILOT_SECONDS, PILOT_SHARE * seconds)
        with tempfile.TemporaryDirectory() as folder:
            outcome = _run(Trial(command, folder, device, MANY_STEPS, short, 0, None, 0, state))
        return outcome if isinstance(outcome, str) else outcome["rate"]

    @staticmethod
    def _kept(trial: Trial) -> dict[str, Any] | None:
        """The outcome of an earlier call, if it was the same trial."""
        saved = _read(trial.result_path)
        return saved if saved is not None and saved.get("trial") == dataclasses.asdict(trial) else None


def _before(folder: Path) -> Path:
    """Where an earlier result stays while the trial is made again."""
    return folder.with_name(f"{folder.name}.before")


def _is_alike(saved: object, trial: Trial) -> bool:
    """Whether a trial differs in nothing but the number of steps into which its time was turned."""
    return isinstance(saved, dict) and {**saved, "steps": trial.steps} == dataclasses.asdict(trial)


def _iterations(seconds: float, rate: float) -> int:
    return max(1, int(seconds * rate))


def _run(trial: Trial) -> dict[str, Any] | str:
    """The outcome of a trial in a process of its own, or the reason why there is none."""
    folder = Path(trial.folder)
    folder.mkdir(parents=True, exist_ok=True)
    description, log = folder / DESCRIPTION, folder / "log.txt"
    description.write_text(json.dumps(dataclasses.asdict(trial)))
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    # A number of steps takes as long as it takes.
    limit = None if trial.seconds is None else trial.seconds + trial.render_seconds + PATIENCE_SECONDS
    command = [sys.executable, "-m", "aire_nerfstudio.compare.trial", str(description)]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"did not finish within {limit:.0f} s"
        finally:
            # Data managers have processes of their own, which a method that was stopped leaves waiting.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    outcome = _read(trial.result_path)
    if process.returncode < 0:
        return f"was ended by {signal.Signals(-process.returncode).name}, of which it says nothing (out of memory?)"
    if process.returncode != 0 or outcome is None:
        return _last_words(log.read_text(errors="replace"))
    return outcome


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON file's content; None where it is missing or damaged."""
    try:
        content = json.loads(path.read_text("utf8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _last_words(text: str) -> str:
    """What a failed process said last."""
    lines = [line.strip(" │╭╮╰╯─") for line in text.splitlines()]
    spoken = [line for line in lines if any(c.isalnum() for c in line)]
    reasons = [line for line in spoken if re.search(r"error|unrecognized|invalid", line, re.IGNORECASE)]
    return [*spoken, *reasons][-1][:200] if spoken else "ended without a word"


def as_name(label: str) -> str:
    """A folder's name for a label, the same for no other: what cannot stand in one is told apart by a checksum."""
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in label)
    if name == label and len(name) <= 60 and name.strip("."):
        return name
    return f"{name[:50].strip('.')}-{zlib.crc32(label.encode()):08x}"


@exit_on_bad_input
def main() -> None:
    """Parse and run."""
    run: Callable[..., Any] = Compare
    tyro.cli(run, prog="aire-compare").main()
