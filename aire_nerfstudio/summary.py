"""One line about a finished run: ``python -m aire_nerfstudio.summary RUN_DIR``."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from aire_nerfstudio.checkpoint_file import read_checkpoint
from aire_nerfstudio.errors import InputError, exit_on_bad_input
from aire_nerfstudio.report.facts import EVALUATION, STATE_KEY, latest_checkpoint


@dataclass(frozen=True)
class Size:
    """Parameters of the trained field at the beginning of the run and in the checkpoint."""

    initial: int
    final: int

    @property
    def change(self) -> float:
        """Change in percent; negative when the network shrank."""
        return 100 * (self.final / self.initial - 1)


def read_size(checkpoint: Path) -> Size:
    """Read the parameter counts from a checkpoint file of this package, without executing anything from it.

    Raises:
        InputError: the file is missing, damaged, or of another method.
    """
    state = read_checkpoint(checkpoint)["pipeline"]
    try:
        saved = state[STATE_KEY]
        return Size(int(saved["initial_parameters"]), int(saved["parameters"]))
    except Exception as error:
        raise InputError(f"{checkpoint} is no whole checkpoint of an aire method ({type(error).__name__})") from error


def summarise(run: Path) -> str:
    """The line, such as ``PSNR 27.1 dB | 160,012 parameters (-20.7 %) | outputs/...``; of a surface its chamfer.

    Args:
        run: a run's folder, with ``nerfstudio_models/`` and the ``eval.json`` that ``ns-eval`` wrote.

    Raises:
        InputError: either is missing or cannot be read, or the one is of another checkpoint.
    """
    checkpoint, report = latest_checkpoint(run), run / EVALUATION
    try:
        evaluated = json.loads(report.read_text("utf8"))
        quality, of = _quality(evaluated["results"]), Path(evaluated.get("checkpoint", checkpoint)).name
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{report} cannot be read; make it with `ns-eval --load-config {run}/config.yml --output-path {report}`"
        ) from error
    if of != checkpoint.name:
        raise InputError(
            f"{report} is of {of}, and the last checkpoint is {checkpoint.name}; run `ns-eval --load-config "
            f"{run}/config.yml --output-path {report}` again"
        )
    size = read_size(checkpoint)
    return f"{quality} | {size.final:,} parameters ({size.change:+.1f} %) | {run}"


def _quality(results: dict[str, float]) -> str:
    """What a task is judged by: PSNR, or of surfaces the chamfer distance."""
    if "on_surface_error" not in results:
        return f"PSNR {float(results['psnr']):.1f} dB"
    if "chamfer_x100" not in results:
        return "no surface"
    return f"chamfer x 100 {float(results['chamfer_x100']):.3f}"


@exit_on_bad_input
def main() -> None:
    """Print the line."""
    parser = argparse.ArgumentParser(description="One line about a finished run.")
    parser.add_argument("run", type=Path, help="the run's folder")
    print(summarise(parser.parse_args().run))


if __name__ == "__main__":
    main()
