"""Kernels as calls would launch them, compiled for a GPU that is not there: no spills, tensor cores, shared memory."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable

import torch
import triton
import triton.backends.nvidia as nvidia
from triton.backends.compiler import GPUTarget

from aire_nerfstudio.ops import triton_launches

CUOBJDUMP = os.path.join(os.path.dirname(nvidia.__file__), "bin", "cuobjdump")
# Bytes of shared memory that a block may have on consumers' GPUs.
SMALL = 101_376


class _Driver:
    """A GPU of an architecture, for the compiler alone."""

    def __init__(self, architecture: int) -> None:
        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        # What is compiled is remembered by device.
        return self._target.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compiled(call: Callable[[], object], architecture: int = 90, only: set[str] | None = None) -> dict[tuple, object]:
    """What ``call`` launches, or of that what is named, by kernel and specialisation, compiled and not run."""
    found: dict[tuple, object] = {}
    get = triton.JITFunction.__getitem__

    def launch(function: triton.JITFunction, grid: tuple) -> Callable[..., None]:
        def run(*args: object, **kwargs: object) -> None:
            if only is not None and function.__name__ not in only:
                return
            made = function.run(*args, grid=grid, warmup=True, **kwargs)
            found[function.__name__, made.hash] = made

        return run

    triton.runtime.driver.set_active(_Driver(architecture))
    triton_launches.COPY_ENGINE_WITHOUT_DEVICE = 90 <= architecture < 120
    triton.JITFunction.__getitem__ = launch
    try:
        call()
    finally:
        triton.JITFunction.__getitem__ = get
    return found


def spills(kernel: object) -> tuple[int, int]:
    """Bytes that the assembler puts into memory for want of registers, and registers of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        said = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    (registers, stack, local) = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", said).groups()
    return int(stack) + int(local), int(registers)
