"""Entry points of this package's own commands; nerfstudio's deprecation warnings do not belong in their output."""

from __future__ import annotations

import warnings


def export() -> None:
    """``aire-export``."""
    warnings.filterwarnings("ignore", module="nerfstudio")
    from aire_nerfstudio.export.cli import main

    main()


def reproduce() -> None:
    """``aire-reproduce``."""
    warnings.filterwarnings("ignore", module="nerfstudio")
    from aire_nerfstudio.reproduce.cli import main

    main()


def report() -> None:
    """``aire-report``."""
    warnings.filterwarnings("ignore", module="nerfstudio")
    from aire_nerfstudio.report.cli import main

    main()


def inspect() -> None:
    """``aire-inspect``."""
    warnings.filterwarnings("ignore", module="nerfstudio")
    from aire_nerfstudio.inspection import main

    main()


def compare() -> None:
    """``aire-compare``."""
    warnings.filterwarnings("ignore", module="nerfstudio")
    from aire_nerfstudio.compare.cli import main

    main()


def bench() -> None:
    """``aire-bench``."""
    from aire_nerfstudio.bench.cli import main

    main()
