"""The installed commands as a user types them."""

import os
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent


def environment():
    """That of this process, with the commands on its path and nerfstudio's deprecation warnings silenced."""
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONWARNINGS": "ignore"}


def run_command(*command, cwd):
    """A finished command: name, then arguments of any type; its outcome is the caller's to check."""
    return subprocess.run(
        [str(BIN / command[0]), *map(str, command[1:])],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
