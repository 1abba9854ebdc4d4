"""``aire-inspect``: what a checkpoint is and went through, and what its config.yml would run; nothing is executed."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from aire_nerfstudio.checkpoint_file import read_checkpoint
from aire_nerfstudio.errors import InputError, exit_on_bad_input, first_line, printable
from aire_nerfstudio.report.facts import CONFIG, STATE_KEY, checkpoint_named

# What nerfstudio's own configurations hold: classes, whose names begin with a capital, and one function.
KNOWN = re.compile(
    r"(nerfstudio|aire_nerfstudio|pathlib|collections|datetime|torch\.optim)\.([a-z_]\w*\.)*(_?[A-Z]\w*|nerfstudio_collate)"
)
# Of those, what is called while the file is read; Python 3.13 has paths in pathlib._local.
CALLED = re.compile(
    r"pathlib\.(_local\.)?\w*Path|datetime\.\w+|collections\.OrderedDict|nerfstudio\.utils\.writer\.EventName"
    r"|nerfstudio\.cameras\.cameras\.CameraType"
)
LARGEST_CONFIG, DEEPEST_CONFIG = 1 << 18, 50


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint tells.

    Attributes:
        path: the file.
        bytes: its size.
        iteration: that it was saved after.
        tensors: shape and number format of each, by name; of the pipeline alone.
        state: what this package keeps beside the weights; empty for other methods.
        learning_rates: by group of parameters.
        config: classes, functions and calls that reading ``config.yml`` would execute; None: there is no such file.
    """

    path: Path
    bytes: int
    iteration: int
    tensors: dict[str, tuple[tuple[int, ...], str]]
    state: dict[str, Any]
    learning_rates: dict[str, float]
    config: list[str] | None

    def layers(self) -> list[tuple[str, int, int]]:
        """Name, inputs and outputs of each affine layer of the trained field, in order."""
        found = []
        for name, (shape, _) in self.tensors.items():
            if name.startswith("_model.field.") and name.endswith(".weight") and len(shape) == 2:
                found.append((name.removeprefix("_model.field.").removesuffix(".weight"), shape[1], shape[0]))
        return found

    def unknown(self) -> list[str]:
        """Of ``config``: what nerfstudio's own configurations do not ask for."""
        return [name for name in self.config or [] if not is_known(name)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``: without curves and random generators."""
        kept = ("version", "variant", "settings", "step", "initial_parameters", "parameters", "history", "is_frozen")
        return {
            "path": str(self.path),
            "bytes": self.bytes,
            "iteration": self.iteration,
            "layers": [{"name": name, "inputs": i, "outputs": o} for name, i, o in self.layers()],
            "tensors": {name: {"shape": list(shape), "dtype": kind} for name, (shape, kind) in self.tensors.items()},
            "state": {name: self.state[name] for name in kept if name in self.state},
            "learning_rates": self.learning_rates,
            "config": self.config,
            "config_unknown": self.unknown(),
        }


def inspect(path: Path) -> Inspection:
    """Read a checkpoint, or the last one of a run's folder, and the names in the run's ``config.yml``.

    Raises:
        InputError: there is none, or it is damaged or hostile.
    """
    file = checkpoint_named(path).absolute()
    saved = read_checkpoint(file)
    with _damage_named(file):
        return _inspection(file, saved)


@contextlib.contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    """Say of entries that trip whoever looks at them that they are no checkpoint's."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"checkpoint {file} has entries that nobody writes ({first_line(error)}); it is damaged"
        ) from error


def _inspection(file: Path, saved: Mapping[str, Any]) -> Inspection:
    state = saved["pipeline"].get(STATE_KEY, {})
    tensors = {
        str(name): (tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in saved["pipeline"].items()
        if isinstance(value, Tensor)
    }
    places = (file.parent.parent / CONFIG, file.parent / CONFIG)
    config = next((place for place in places if place.is_file()), places[0])
    return Inspection(
        path=file,
        bytes=file.stat().st_size,
        iteration=int(saved["step"]),
        tensors=tensors,
        state=dict(state) if isinstance(state, Mapping) else {},
        learning_rates=dict(_learning_rates(saved.get("optimizers"))),
        config=executed_by(config) if config.is_file() else None,
    )


def _learning_rates(optimizers: Any) -> Iterator[tuple[str, float]]:
    if isinstance(optimizers, Mapping):
        for name, optimizer in optimizers.items():
            for group in optimizer.get("param_groups", [])[:1]:
                yield str(name), float(group["lr"])


def executed_by(config: Path) -> list[str]:
    """Names of all classes, functions and calls in a ``config.yml``, as ``yaml.Loader`` would resolve them.

    Its syntax is read and nothing is made of it. Calls end in ``()``.

    Raises:
        InputError: it is no YAML, or larger than any configuration.
    """
    if config.stat().st_size > LARGEST_CONFIG:
        raise InputError(f"{config} has {config.stat().st_size:,} bytes, which no configuration has")
    names = set()
    try:
        depth = 0
        for event in yaml.parse(config.read_text("utf8"), Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST_CONFIG:
                raise InputError(f"{config} nests {depth} deep, which no configuration does")
            tag = str(getattr(event, "tag", None) or "").removeprefix("tag:yaml.org,2002:python/")
            kind, _, name = tag.partition(":")
            if kind in ("name", "module", "object"):
                names.add(name)
            elif kind in ("object/apply", "object/new"):
                names.add(f"{name}()")
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{config} is no YAML ({first_line(error)})") from error
    return sorted(names)


def is_known(name: str) -> bool:
    """Whether a name of :func:`executed_by` is one that nerfstudio's own configurations hold."""
    return bool(CALLED.fullmatch(name[:-2]) if name.endswith("()") else KNOWN.fullmatch(name))


@dataclass
class Inspect:
    """Show a checkpoint's architecture and history, and what its config.yml would run, without executing anything."""

    path: Annotated[Path, tyro.conf.Positional]
    """A checkpoint file, or a run's folder, of which the last checkpoint is taken."""
    json: bool = False
    """Print JSON, with every tensor's shape."""
    _console: tyro.conf.Suppress[Console] = field(default_factory=Console)

    def main(self) -> None:
        """Read and print."""
        found = inspect(self.path)
        if self.json:
            with _damage_named(found.path):
                text = json.dumps(found.to_dict(), indent=1, default=str)
            print(text)
            return
        for part in _parts(found):
            self._console.print(part, markup=False, highlight=False, soft_wrap=isinstance(part, str))


def _parts(found: Inspection) -> list[str | Table]:
    """What is printed, made before the first line is."""
    with _damage_named(found.path):
        parts = [printable(f"{found.path}: {found.bytes:,} bytes, saved after iteration {found.iteration:,}")]
        parts += _state_lines(found.state) or ["not of an aire method: its tensors alone are shown"]
        tables = [_layer_table(found)]
        if found.state.get("history"):
            tables.append(_history_table(found.state["history"]))
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in found.learning_rates.items())
    last = [printable(f"learning rate: {rates}")] if rates else []
    if found.config is None:
        last.append(f"no {CONFIG} beside it; a checkpoint alone executes nothing")
    elif found.unknown():
        last.append(
            printable(f"warning: loading {CONFIG} would run {', '.join(found.unknown())}: give it to no ns- command")
        )
    else:
        last.append(f"{CONFIG} names {len(found.config)} things, all as nerfstudio's own do; ns- commands execute it")
    return [*parts, *tables, *last]


def _state_lines(state: Mapping[str, Any]) -> list[str]:
    if not state:
        return []
    simple = (str, int, float, bool, type(None))
    given = {name: value for name, value in state.get("settings", {}).items() if isinstance(value, simple)}
    settings = ", ".join(f"{name} {str(value)[:40]}" for name, value in given.items())
    before, now = int(state.get("initial_parameters", 0)), int(state.get("parameters", 0))
    change = f" ({100 * (now / before - 1):+.1f} %)" if before else ""
    return [
        printable(f"variant {state.get('variant')}, {int(state.get('step', -1)) + 1:,} optimizer steps; {settings}"),
        f"{before:,} parameters at the start, {now:,} now{change}",
    ]


def _layer_table(found: Inspection) -> Table:
    table = Table(title="layers", title_justify="left")
    table.add_column("name")
    for column in ("inputs", "outputs"):
        table.add_column(column, justify="right")
    for name, inputs, outputs in found.layers():
        table.add_row(Text(printable(name)), f"{inputs:,}", f"{outputs:,}")
    if not found.layers():
        for name, (shape, _) in list(found.tensors.items())[:40]:
            table.add_row(Text(printable(name)), "", str(list(shape)))
    return table


def _history_table(history: list[dict[str, Any]]) -> Table:
    table = Table(title="history", title_justify="left")
    for column in ("step", "event", "neurons", "widths after", "parameters", "change of the output"):
        table.add_column(column, justify="left" if column in ("event", "widths after") else "right")
    for event in history:
        by_hand = " by hand" if event.get("by_hand") else ""
        effect = f"{event['effect']:.3g} of {event['bound']:.3g}" if "effect" in event else ""
        cells = (
            f"{int(event['step']):,}", f"{event['event']}{by_hand}", list(event["counts"]), list(event["after"]),
            f"{int(event['parameters']):,}", effect,
        )  # fmt: skip
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


@exit_on_bad_input
def main() -> None:
    """Read the command line and print."""
    tyro.cli(Inspect).main()
