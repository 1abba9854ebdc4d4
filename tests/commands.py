"""The installed commands as a user types them.

Each runs in a process of its own. Importing nerfstudio and torch takes it longer than most of what it is to do, so
those processes are forked from one that has imported them (Python's forkserver). Where there is CUDA, which does not
bear a fork, and with ``AIRE_TEST_COMMANDS=fresh`` they are started afresh.
"""

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import torch

BIN = Path(sys.executable).parent
IS_FORKED = os.environ.get("AIRE_TEST_COMMANDS") != "fresh" and not torch.cuda.is_available()

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["nerfstudio.scripts.train", "nerfstudio.scripts.eval", "aire_nerfstudio.commands"])


def environment():
    """That of this process, with the commands on its path and nerfstudio's deprecation warnings silenced."""
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONWARNINGS": "ignore"}


def run_command(*command, cwd):
    """A finished command: name, then arguments of any type; its outcome is the caller's to check."""
    with TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = start_command(*command, cwd=cwd, out=out, err=err)
        try:
            process.wait(300)
        finally:
            process.end()
        return SimpleNamespace(returncode=process.poll(), stdout=_text(out), stderr=_text(err))


def start_command(*command, cwd, out, err=None):
    """A running command, leader of a process group; its output goes to files (``err``: None for the same as ``out``).

    Returns:
        It: ``pid``, ``poll()`` (exit status or None), ``wait(seconds)``, ``end()`` (kills it and what it started).
    """
    name, *arguments = map(str, command)
    return (_Forked if IS_FORKED else _Fresh)(name, arguments, Path(cwd), Path(out), Path(err or out))


def fork(function, *arguments):
    """A started process that runs a function of a test module, with torch and nerfstudio imported."""
    process = _forks.Process(target=_mortal, args=(function, *arguments))
    process.start()
    return process


def _mortal(function, *arguments):
    """Run it, and end with the tests: a training that nobody waits for would go on for hours."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    with _measured():
        function(*arguments)


@contextlib.contextmanager
def _measured():
    """Where ``scripts/coverage.sh`` runs the tests, what this process executes counts, too."""
    settings = os.environ.get("AIRE_COVERAGE")
    if not settings:
        yield
        return
    coverage = importlib.import_module("coverage").Coverage(config_file=settings, data_suffix=True)
    coverage.start()
    try:
        yield
    finally:
        coverage.stop()
        coverage.save()


def _text(path):
    return path.read_bytes().decode("utf8", "replace")


class _Command:
    def wait(self, seconds):
        until = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > until:
                raise TimeoutError(f"still running after {seconds} s")
            time.sleep(0.02)
        return self.poll()

    def end(self):
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait(30)


class _Fresh(_Command):
    def __init__(self, name, arguments, cwd, out, err):
        with out.open("wb") as o, err.open("ab" if err == out else "wb") as e:
            self._process = subprocess.Popen(
                [str(BIN / name), *arguments], cwd=cwd, env=environment(), stdin=subprocess.DEVNULL,
                stdout=o, stderr=e, start_new_session=True,
            )  # fmt: skip
        self.pid, self.poll = self._process.pid, self._process.poll


class _Forked(_Command):
    def __init__(self, name, arguments, cwd, out, err):
        self._process = fork(_become, name, arguments, cwd, out, err, environment())
        self.pid = self._process.pid

    def poll(self):
        return self._process.exitcode


def _become(name, arguments, cwd, out, err, variables):
    """What a new process would find: a group, a folder, an environment, files and arguments of its own."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background would have it ignored
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, place in ((0, os.devnull), (1, out), (2, err)):
        handle = os.open(place, os.O_RDONLY if number == 0 else append, 0o644)
        os.dup2(handle, number)
        os.close(handle)
    sys.argv = [str(BIN / name), *arguments]
    (entry,) = entry_points(group="console_scripts", name=name)
    sys.exit(entry.load()())
