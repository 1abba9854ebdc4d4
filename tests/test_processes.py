"""Commands that start others: they end together, and two do not write into one folder."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.processes import alone_in, terminated_as_interrupted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_kill_sends_is_an_interrupt(number):
    cleaned = []

    def killed():
        try:
            os.kill(os.getpid(), number)
            time.sleep(1)
        finally:
            cleaned.append(1)

    with terminated_as_interrupted(), pytest.raises(KeyboardInterrupt):
        killed()
    assert cleaned == [1]
    assert signal.getsignal(number) is signal.SIG_DFL


def test_signals_that_are_ignored_stay_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminated_as_interrupted():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_child_ends_with_its_parent_even_by_sigkill():
    child = (
        "import time; from aire_nerfstudio.processes import end_with_parent; end_with_parent();"
        " print(1, flush=True); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE,"
        " start_new_session=True); child.stdout.readline(); print(child.pid, flush=True); child.wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", parent, child], stdout=subprocess.PIPE, text=True)
    started = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.wait()
    started.wait(10)


def test_a_folder_is_one_commands_at_a_time(tmp_path):
    second = alone_in(tmp_path, "--output-dir")
    with alone_in(tmp_path, "--output-dir"), pytest.raises(InputError, match="is in use by another command"):
        second.__enter__()
    with alone_in(tmp_path, "--output-dir"):
        pass
    assert not list(tmp_path.iterdir())


def test_output_that_nobody_reads_on_ends_a_command_quietly():
    code = (
        "import sys\n"
        "from aire_nerfstudio.commands import _ends_quietly\n"
        "@_ends_quietly\n"
        "def command():\n"
        "    for i in range(100_000): print(i)\n"
        "command()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141
