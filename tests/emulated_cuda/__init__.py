"""A CUDA device without one: what torch's CUDA code asks of it happens on the processor, in ordinary memory.

``runtime.c``, preloaded, is CUDA's runtime: one device whose memory is the host's, and no kernel. ``device.py`` gives
every operation that has a kernel for CUDA another one, which calls the processor's on the same memory. To torch and to
this package it is a device like any other: tensors, storages, streams, the allocator, its generator and autograd are
torch's own. Kernels that are not torch's (``launches.py``) run in Triton's interpreter and in the processor's library.

It shows what a processor cannot: tensors on two devices, numbers read back in the middle of a step, generators of
another device, calls that a graph cannot hold, graphs that hold on to what was exchanged, memory never given back.
It does not show what only a device can: whether kernels compiled for it are right, races between streams, speed, and
what a graph's memory is used for once it has been given back: replays here keep all that they touch.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def why_not() -> str | None:
    """Why there can be no emulated device here; None where there can."""
    if not sys.platform.startswith("linux"):
        return "the runtime is preloaded, which is written for Linux"
    if shutil.which("gcc") is None:
        return "no gcc"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None if _headers() else "torch has no CUDA headers beside it"


def _headers() -> list[Path]:
    """Where ``cuda_runtime_api.h`` is, and what it includes: beside torch, and in Triton."""
    places = [Path(p) for name in ("nvidia", "triton") for p in _folders(name)]
    runtime = [h.parent for place in places for h in sorted(place.glob("*/include/cuda_runtime_api.h"))]
    inside = [place / "backends" / "nvidia" / "include" for place in places]
    return [*runtime, *(place for place in inside if place.is_dir())] if runtime else []


def _folders(name: str) -> list[str]:
    found = importlib.util.find_spec(name)
    return list(found.submodule_search_locations or ()) if found else []


def environment(folder: Path) -> dict[str, str]:
    """The environment of a Python process with an emulated device.

    Args:
        folder: for the compiled runtime.
    """
    library = folder / "libcuda.so.1"
    if not library.is_file():
        includes = [f"-I{place}" for place in _headers()]
        command = ["gcc", "-w", "-shared", "-fPIC", *includes, "-Wl,-soname,libcuda.so.1", str(HERE / "runtime.c")]
        subprocess.run([*command, "-o", str(library)], check=True)
    # They would reach the allocator, the number of devices, or tests within tests.
    leaves_out = ("PYTORCH_", "PYTEST_", "CUDA_VISIBLE_DEVICES")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(leaves_out)}
    paths = [str(HERE / "hook"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **kept,
        "LD_PRELOAD": str(library),
        "PYTHONPATH": os.pathsep.join(paths),
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
    }


def main(arguments: list[str]) -> int:
    """``python -m emulated_cuda COMMAND...`` from ``tests/``: a command with an emulated device."""
    import tempfile

    if why_not() is not None or not arguments:
        print(f"error: {why_not() or 'usage: python -m emulated_cuda COMMAND...'}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(arguments, env=environment(Path(folder)), check=False).returncode
