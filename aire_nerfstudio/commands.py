"""Entry points of this package's own commands; nerfstudio's deprecation warnings do not belong in their output."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable

from aire_nerfstudio.errors import INTERRUPTED
from aire_nerfstudio.processes import terminated_as_interrupted

# Exit status where nobody reads on, as shells have it.
UNREAD = 141


def _ends_quietly(command: Callable[[], None]) -> Callable[[], None]:
    """Ctrl-C and ``kill`` end a command in a line, and what it started; what it writes appears only when whole."""

    @functools.wraps(command)
    def wrapper() -> None:
        try:
            with terminated_as_interrupted():
                command()
        except KeyboardInterrupt:
            print("\nerror: interrupted", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:  # ``| head`` has seen enough; what is buffered must not be tried again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(UNREAD) from None

    return wrapper


@_ends_quietly
def export() -> None:
    """``aire-export``."""
    warnings.filterwarnings("ignore", module="nerfstudio")
    from aire_nerfstudio.export.cli import main

    main()


@_ends_quietly
def reproduce() -> None:
    """``aire-reproduce``."""
    warnings.filterwarnings("ignore", module="nerfstudio")
    from aire_nerfstudio.reproduce.cli import main

    main()


@_ends_quietly
def report() -> None:
    """``aire-report``."""
    warnings.filterwarnings("ignore", module="nerfstudio")
    from aire_nerfstudio.report.cli import main

    main()


@_ends_quietly
def inspect() -> None:
    """``aire-inspect``."""
    warnings.filterwarnings("ignore", module="nerfstudio")
    from aire_nerfstudio.inspection import main

    main()


@_ends_quietly
def compare() -> None:
    """``aire-compare``."""
    warnings.filterwarnings("ignore", module="nerfstudio")
    from aire_nerfstudio.compare.cli import main

    main()


@_ends_quietly
def bench() -> None:
    """``aire-bench``."""
    from aire_nerfstudio.bench.cli import main

    main()
