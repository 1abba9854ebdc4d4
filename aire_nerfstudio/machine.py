"""What a figure was measured on."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
from pathlib import Path

import torch

# What decides about figures.
SOURCES = (".py", ".cpp", ".h", ".cu")


def machine(device: str) -> dict[str, str]:
    """Device, torch and Python, in words.

    Args:
        device: as torch names it, such as ``cpu`` or ``cuda:0``.
    """
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()
    return {"device": name, "torch": torch.__version__, "python": platform.python_version()}


@functools.cache
def code() -> str:
    """A checksum of this package's sources, 12 hexadecimal digits: which state of the code a figure is of."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.suffix in SOURCES and p.is_file()):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def processor() -> str:
    """The processor's name, where the system tells it, and its cores."""
    name = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"
