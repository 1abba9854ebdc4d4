"""Entry point of ``aire-export``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tyro

from aire_nerfstudio.errors import exit_on_bad_input
from aire_nerfstudio.export.compare import ExportCompare
from aire_nerfstudio.export.image import ExportImage
from aire_nerfstudio.export.mesh import ExportMesh


@exit_on_bad_input
def main() -> None:
    """Parse and run."""
    commands: dict[str, Callable[..., Any]] = {"image": ExportImage, "mesh": ExportMesh, "compare": ExportCompare}
    description = "What a trained network stands for, as a file other programs read."
    tyro.extras.subcommand_cli_from_dict(commands, description=description).main()
