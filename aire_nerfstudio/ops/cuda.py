"""Compiled ops for CUDA: built with nvcc when first used on a device; where there is no nvcc, PyTorch's are used."""

from __future__ import annotations

import ctypes
import os
import shutil
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch

from aire_nerfstudio.ops.backend import Build
from aire_nerfstudio.ops.build import BuildError, build

FLAGS = ("-O3", "-std=c++17", "--extended-lambda", "-Xcompiler", "-fPIC", "-shared")


@dataclass
class CudaLibrary:
    """One library of ``csrc/*.cu`` and what became of it in this process, for each compute capability.

    Attributes:
        name: of the source, without suffix.
        flags: for nvcc, besides those of every library.
    """

    name: str
    flags: tuple[str, ...] = ()
    _builds: dict[str, Build] = field(default_factory=dict)
    _tried: set[str] = field(default_factory=set)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    def load(self, device: torch.device) -> ctypes.CDLL | None:
        """The library for a CUDA device, built if need be; None where that fails, which is said once."""
        with self._lock:
            made = self.build(torch.cuda.get_device_capability(device))
            if made.handle is not None and made.kind not in self._tried:
                status = _trial(made.handle, device)
                if status != 0:
                    made.handle.aire_error.restype = ctypes.c_char_p
                    made.reason = f"a trial launch failed: {made.handle.aire_error(status).decode()}"
                    made.handle = None
                    _say(made.reason)
                self._tried.add(made.kind)
            return made.handle

    def build(self, version: tuple[int, int]) -> Build:
        """What became of the library for a compute capability, ``(9, 0)`` for example."""
        kind = f"SM_{version[0]}{version[1]}"
        # Another thread, a viewer's, waits; and what is interrupted was not tried.
        with self._lock:
            if kind not in self._builds:
                made = Build(kind)
                try:
                    made.path = self.compile(version)
                    made.handle = ctypes.CDLL(str(made.path))
                except (OSError, RuntimeError) as error:  # no home folder is a RuntimeError
                    made.reason = str(error)
                    _say(made.reason)
                self._builds[kind] = made
            return self._builds[kind]

    def compile(self, version: tuple[int, int]) -> Path:
        """The library's file, without loading it: needs nvcc, but no device.

        Raises:
            BuildError: there is no nvcc, or it refuses.
            OSError: the cache folder cannot be written.
        """
        kind = f"sm_{version[0]}{version[1]}"
        return build(f"{self.name}.cu", kind, [nvcc(), *FLAGS, f"-arch={kind}", *self.flags])


def _say(reason: str) -> None:
    warnings.warn(
        f"compiled CUDA ops are not used, PyTorch's are: {reason} (python -m aire_nerfstudio.ops)", stacklevel=4
    )


def _trial(handle: ctypes.CDLL, device: torch.device) -> int:
    """Status of the smallest launch: a toolkit newer than the driver compiles what cannot run."""
    with torch.cuda.device(device):
        numbers = torch.zeros(4, dtype=torch.int32, device=device)
        queue = ctypes.c_int64(torch.cuda.current_stream(device).cuda_stream)
        pointer = numbers.data_ptr()
        return handle.aire_morton(ctypes.c_int64(1), ctypes.c_void_p(pointer), ctypes.c_void_p(pointer + 12), queue)


def nvcc() -> str:
    """CUDA's compiler: that of ``$CUDA_HOME``, on the PATH, or in /usr/local/cuda.

    Raises:
        BuildError: there is none.
    """
    home = os.environ.get("CUDA_HOME")
    places = [str(Path(home) / "bin" / "nvcc")] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    for place in places:
        found = shutil.which(place)
        if found is not None:
            return found
    where = f"CUDA_HOME is {home}, which has no bin/nvcc" if home else "nvcc is not on the PATH"
    raise BuildError(f"no CUDA compiler: {where}; install the CUDA toolkit or set CUDA_HOME")


RAY_MARCHING = CudaLibrary("ray_marching", ("-fmad=false",))
LIBRARIES = (RAY_MARCHING,)
