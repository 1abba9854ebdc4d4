"""Builds a library from ``csrc/`` with ninja, once for each source, command and compiler.

The sources are free of torch headers, so that a build takes seconds. What is built is kept in ``$AIRE_OPS_CACHE``
(default: ``aire_nerfstudio/ops`` in the user's cache folder). Two processes that build at once wait for each other; a
file appears only when whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SOURCES = Path(__file__).parent / "csrc"


class BuildError(RuntimeError):
    """A build that failed; the message is the compiler's first error."""


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
    try:
        given = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise BuildError(
            f"CXX is {os.environ['CXX']!r}: {error}; give a compiler, and what is to be said to it"
        ) from error
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


def build(source: str, kind: str, command: Sequence[str]) -> Path:
    """The shared library that ``command`` makes of ``csrc/{source}``, built unless it is there.

    Args:
        source: a file's name.
        kind: of device it is for; part of the library's name.
        command: compiler and flags, to which source and ``-o`` are added.

    Raises:
        BuildError: the compiler refuses, or there is no ninja.
        OSError: the cache folder cannot be written.
    """
    version = subprocess.run(
        [command[0], "--version"], capture_output=True, text=True, errors="replace", check=False
    ).stdout
    text = [platform.machine(), version, *command, *(path.read_text() for path in sorted(SOURCES.glob("*.[hc]*")))]
    key = hashlib.sha256("\0".join(text).encode()).hexdigest()[:16]
    name = Path(source).stem
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}-{kind.lower()}-{key}.so"
    if target.is_file():
        return target
    with _locked(target.with_suffix(".lock")):
        if not target.is_file():
            print(f"[aire] compiling {name} for {kind} (once, some seconds)", file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = _compile(command, source, Path(scratch))
                with made.open("rb") as file:
                    os.fsync(file.fileno())
                made.replace(target)
    return target


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process that holds it, however that ends."""
    with path.open("w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(command: Sequence[str], source: str, folder: Path) -> Path:
    def for_ninja(text: str) -> str:
        return text.replace("$", "$$")

    def as_path(path: Path) -> str:
        return for_ninja(str(path)).replace(" ", "$ ").replace(":", "$:")

    (folder / "build.ninja").write_text(
        f"rule compile\n  command = {for_ninja(shlex.join(command))} $in -o $out\n"
        f"build made.so: compile {as_path(SOURCES / source)}\n"
    )
    beside = Path(sys.executable).with_name("ninja")  # an environment that was not activated
    ninja = shutil.which("ninja") or (str(beside) if beside.is_file() else None)
    if ninja is None:
        raise BuildError("ninja is not there; pip install ninja")
    # The compiler's errors are looked for by their English name.
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        [ninja, "-C", str(folder)], capture_output=True, text=True, errors="replace", check=False, env=environment
    )
    if done.returncode != 0:
        lines = [line for line in done.stdout.splitlines() if "error" in line] or done.stdout.splitlines()[-1:]
        raise BuildError(f"{Path(command[0]).name} could not compile {source}: {lines[0] if lines else done.stderr}")
    return folder / "made.so"
