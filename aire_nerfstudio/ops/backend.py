"""Compiled ops: built when first used, loaded once, never a reason for a run to stop.

The sources in ``csrc/`` are free of torch headers, so that a build takes seconds. What is built depends on sources,
flags and compiler; it is kept in ``$AIRE_OPS_CACHE`` (default: ``aire_nerfstudio/ops`` in the user's cache folder). Two
processes that build at once wait for each other; a file appears only when whole. ``$AIRE_OPS_FLAGS`` are given to the
compiler besides.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-fno-math-errno", "-fPIC", "-shared")
# What the processor can do, as torch names it, and the flags that use it.
CAPABILITIES = {
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
    "DEFAULT": (),
}


@dataclass
class Library:
    """One compiled library and what became of it in this process.

    Attributes:
        name: of the source in ``csrc/``, without suffix.
        handle: the loaded library, None before it is asked for and where it cannot be had.
        reason: why it cannot be had, in a line.
        path: where it lies.
        kind: of processor it is for.
    """

    name: str
    handle: ctypes.CDLL | None = None
    reason: str | None = None
    path: Path | None = None
    kind: str = "none"
    is_tried: bool = field(default=False)

    def load(self) -> ctypes.CDLL | None:
        """The library, built if need be; None where that fails, which is said once."""
        if not self.is_tried:
            self.is_tried = True
            try:
                self.kind = capability()
                self.path = build(self.name, self.kind)
                self.handle = ctypes.CDLL(str(self.path))
            except (OSError, RuntimeError) as error:  # no home folder is a RuntimeError
                self.reason = str(error)
                warnings.warn(
                    f"compiled ops are not used, PyTorch's are: {self.reason} (python -m aire_nerfstudio.ops)",
                    stacklevel=2,
                )
        return self.handle

    def loaded(self) -> ctypes.CDLL:
        """The library, after :meth:`load` has said that it is there."""
        assert self.handle is not None
        return self.handle


class BuildError(RuntimeError):
    """A build that failed; the message is the compiler's first error."""


def is_off() -> bool:
    """Whether the environment asks for the reference (``AIRE_OPS=off``)."""
    return os.environ.get("AIRE_OPS", "").lower() in ("off", "0", "reference")


def capability() -> str:
    """``AVX512``, ``AVX2`` or ``DEFAULT``: what torch found, or ``AIRE_OPS_CAPABILITY`` if that is less."""
    found = torch.backends.cpu.get_cpu_capability()
    order = list(CAPABILITIES)
    best = next((name for name in order if found.startswith(name)), "DEFAULT")
    asked = os.environ.get("AIRE_OPS_CAPABILITY", best).upper()
    if asked not in order:
        raise BuildError(f"AIRE_OPS_CAPABILITY is {asked}; choose one of {', '.join(order)}")
    return order[max(order.index(best), order.index(asked))]


def cache_folder() -> Path:
    """Where builds are kept."""
    given, cache = os.environ.get("AIRE_OPS_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given)
    return (Path(cache) if cache else Path.home() / ".cache") / "aire_nerfstudio" / "ops"


def compiler() -> list[str]:
    """The C++ compiler and what is to be said to it first: ``$CXX`` (``ccache g++``, say), or g++ or clang++.

    Raises:
        BuildError: there is none.
    """
    given = shlex.split(os.environ.get("CXX", ""))
    if given:
        found = shutil.which(given[0])
        if found is None:
            raise BuildError(f"no C++ compiler: CXX is {given[0]}, which is not on the PATH; install it or unset CXX")
        return [found, *given[1:]]
    for name in ("g++", "clang++", "c++"):
        found = shutil.which(name)
        if found:
            return [found]
    raise BuildError("no C++ compiler: neither g++ nor clang++ is on the PATH; install one")


def build(name: str, kind: str) -> Path:
    """The shared library of ``csrc/{name}.cpp`` for a kind of processor, built unless it is there.

    Raises:
        BuildError: no compiler, or it refuses.
        OSError: the cache folder cannot be written.
    """
    extra = os.environ.get("AIRE_OPS_FLAGS", "").split()
    cxx, flags = compiler(), (*FLAGS, *CAPABILITIES[kind], *_openmp(), *extra)
    version = subprocess.run([*cxx, "--version"], capture_output=True, text=True, check=False).stdout
    text = [version, *cxx, *flags, *(path.read_text() for path in sorted(SOURCES.glob("*.[hc]*")))]
    key = hashlib.sha256("\0".join(text).encode()).hexdigest()[:16]
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}-{kind.lower()}-{key}.so"
    if target.is_file():
        return target
    with _locked(target.with_suffix(".lock")):
        if not target.is_file():
            print(f"[aire] compiling {name} for {kind} (once, some seconds)", file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = _compile(cxx, flags, name, Path(scratch))
                made.replace(target)
    return target


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process that holds it, however that ends."""
    with path.open("w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(cxx: list[str], flags: tuple[str, ...], name: str, folder: Path) -> Path:
    def for_ninja(text: str) -> str:
        return text.replace("$", "$$")

    def as_path(path: Path) -> str:
        return for_ninja(str(path)).replace(" ", "$ ").replace(":", "$:")

    command = for_ninja(shlex.join([*cxx, *flags]))
    (folder / "build.ninja").write_text(
        f"rule compile\n  command = {command} $in -o $out\n"
        f"build {name}.so: compile {as_path(SOURCES / (name + '.cpp'))}\n"
    )
    beside = Path(sys.executable).with_name("ninja")  # an environment that was not activated
    ninja = shutil.which("ninja") or (str(beside) if beside.is_file() else None)
    if ninja is None:
        raise BuildError("ninja is not there; pip install ninja")
    # The compiler's errors are looked for by their English name.
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run([ninja, "-C", str(folder)], capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        lines = [line for line in done.stdout.splitlines() if "error" in line] or done.stdout.splitlines()[-1:]
        raise BuildError(f"{Path(cxx[0]).name} could not compile {name}.cpp: {lines[0] if lines else done.stderr}")
    return folder / f"{name}.so"


def _openmp() -> tuple[str, ...]:
    """Link torch's own OpenMP: a second one would have threads of its own, which wait where ours work."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        return (f"-Wl,-rpath,{path.parent}", f"-L{path.parent}", f"-l:{path.name}")
    return ()


SINE_NETWORK = Library("sine_network")
VALUE_GRADIENT = Library("value_gradient")
MEAN_CURVATURE = Library("mean_curvature")
LIBRARIES = (SINE_NETWORK, VALUE_GRADIENT, MEAN_CURVATURE)
