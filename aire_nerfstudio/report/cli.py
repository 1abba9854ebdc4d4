"""Entry point of ``aire-report``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from aire_nerfstudio.errors import InputError, exit_on_bad_input, first_line
from aire_nerfstudio.files import check_place
from aire_nerfstudio.report.facts import CONFIG, REPORT, from_its_folder, read_run
from aire_nerfstudio.report.page import write_report
from aire_nerfstudio.report.portrait import Portrait


@dataclass
class MakeReport:
    """Write one HTML page about a run, or about two side by side, that needs no network."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of one run or two, such as outputs/NAME/METHOD/2026-01-31_120000."""
    output_path: Path | None = None
    """File to write; None: report.html in the run's folder, of two runs report.html here."""
    views: int = 3
    """Evaluation views to show, at most."""
    longest_side: int = 400
    """Pixels; larger views are rendered smaller. 0: as they are."""
    pictures: bool = True
    """Whether to load the runs' data and render views (this runs the runs' config.yml, as ns-eval does)."""
    quiet: bool = False
    """Print errors only."""
    _console: tyro.conf.Suppress[Console] = field(default_factory=Console)

    def main(self) -> None:
        """Gather and write."""
        if len(self.runs) not in (1, 2):
            raise InputError(f"aire-report takes one run or two; {len(self.runs)} folders were given")
        if self.views < 1 or self.longest_side < 0:
            raise InputError(
                f"--views {self.views} must be at least 1 and --longest-side {self.longest_side} at least 0"
            )
        facts = [read_run(run) for run in self.runs]
        path = self.output_path or (self.runs[0] / REPORT if len(self.runs) == 1 else Path(REPORT))
        check_place("--output-path", path)
        self._console.quiet = self.quiet
        shown = [self._portraits(run) if self.pictures else [] for run in self.runs]
        try:
            write_report(path, facts, shown)
        except InputError:
            raise
        except Exception as error:  # entries that only a page looks at
            raise InputError(
                f"{' and '.join(map(str, self.runs))}: the record cannot be drawn ({first_line(error)}); it is damaged"
            ) from error
        self._console.print(f"wrote {path}: {path.stat().st_size / 1e6:.1f} MB", markup=False, soft_wrap=True)

    def _portraits(self, run: Path) -> list[Portrait]:
        from nerfstudio.utils.eval_utils import eval_setup

        if not (run / CONFIG).is_file():
            raise InputError(f"{run} holds no {CONFIG}, so nothing can be rendered; add --no-pictures")
        with self._console.status(f"rendering {run}"):
            try:
                _, pipeline, _, _ = eval_setup(
                    run / CONFIG, test_mode="test", update_config_callback=from_its_folder(run)
                )
                model: Any = pipeline.model
                return model.portraits(pipeline.datamanager, self.views, self.longest_side or None)
            except (Exception, SystemExit) as error:
                why = first_line(error).removeprefix("error: ")
                if not isinstance(error, SystemExit):
                    why = f"{type(error).__name__}: {why}"
                raise InputError(
                    f"{run} cannot be rendered ({why}); run it from the folder it was trained in, where its data are, "
                    "or leave the views out with --no-pictures"
                ) from error


@exit_on_bad_input
def main() -> None:
    """Parse and run."""
    tyro.cli(MakeReport, prog="aire-report").main()
