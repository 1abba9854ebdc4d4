"""The processes that train together on one machine: started, watched, and ended together."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import torch
import torch.distributed as dist
from nerfstudio.utils.rich_utils import CONSOLE
from torch import multiprocessing

from aire_nerfstudio.errors import INTERRUPTED, first_line
from aire_nerfstudio.models.heartbeat import INTERVAL, SILENCE, Heartbeat
from aire_nerfstudio.report.facts import latest_checkpoint

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig

# A process that is gone is seen at once; one that waits may wait for a person who paused the training.
PATIENCE = timedelta(days=1)
# Seconds until a machine that has not begun is named.
NAMED_AFTER = 60.0
# Seconds without a sign of life, at the least, until a machine may be taken for lost.
LEAST_SILENCE = 3 * INTERVAL
# Seconds that the others have to end by themselves once one has.
GRACE = 10.0


def launch(config: TrainerConfig) -> int | str:
    """Train in ``machine.num_devices`` processes here, of ``num_machines`` times as many in all.

    Returns:
        Exit status: 0, 130 where it was interrupted, or what went wrong, in one line for each cause.
    """
    machine = config.machine
    wrong = _wrong(machine)
    if wrong is not None:
        return f"error: {wrong}"
    with tempfile.TemporaryDirectory(prefix="aire-") as folder, _environment(machine):
        # CUDA does not bear a fork; without it a fork spares each process the imports.
        context = multiprocessing.start_processes(
            _train, (config, folder), machine.num_devices, join=False,
            start_method="spawn" if machine.device_type == "cuda" else "fork",
        )  # fmt: skip
        assert context is not None
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        heartbeat = None
        try:
            # After the start: a forked process would hold the store's sockets open.
            heartbeat = _heartbeat(config) if machine.num_machines > 1 else None
            silent = _watch(context, heartbeat, machine)
            if silent is None:
                return 0
            _end(context)
            who = f"machine {silent} of {machine.num_machines} gives no sign of life"
            return f"error: {who}, and the processes here were ended; {_saved(config)}"
        except multiprocessing.ProcessExitedException as fault:
            causes = dict.fromkeys(path.read_text("utf8") for path in sorted(Path(folder).glob("fault-*")))
            if causes:
                return "\n".join(causes)
            codes = [process.exitcode for process in context.processes]
            cut_off = {int(path.name[8:]): path.read_text("utf8") for path in Path(folder).glob("cut-off-*")}
            return f"error: {_of_a_killed(fault, codes, cut_off, config)}"
        except dist.DistNetworkError as error:
            _end(context)
            return f"error: --machine.dist-url {machine.dist_url} cannot be used here ({first_line(error)})"
        except SystemExit:
            _end(context)
            return f"error: this job was ended (SIGTERM), and its processes with it; {_saved(config)}"
        except KeyboardInterrupt:
            _end(context)
            if not _is_finished(config):  # else its viewer went on, and this is how it is left
                print(f"error: interrupted; {_saved(config)}", file=sys.stderr)
                return INTERRUPTED
        finally:
            if heartbeat is not None:
                heartbeat.finish()
    return 0


def _wrong(machine: Any) -> str | None:
    """What of the settings cannot be; None: nothing."""
    there = torch.cuda.device_count()
    if machine.device_type == "cuda" and there < machine.num_devices:
        return f"--machine.num-devices is {machine.num_devices} and this machine has {there} GPUs"
    if not 0 <= machine.machine_rank < machine.num_machines:
        return f"--machine.machine-rank is {machine.machine_rank}; it must lie in [0, {machine.num_machines})"
    if machine.num_machines > 1 and not _is_place(machine.dist_url):
        return (
            f"--machine.dist-url is {machine.dist_url}; several machines need tcp://HOST:PORT, the same on all, HOST "
            "being the first and PORT free there"
        )
    silence = os.environ.get("AIRE_SILENCE", str(SILENCE))
    if not re.fullmatch(r"\d+(\.\d*)?", silence) or float(silence) < LEAST_SILENCE:
        return f"AIRE_SILENCE is {silence}; it must be seconds, {LEAST_SILENCE:g} or more"
    return None


def _is_place(url: str) -> bool:
    try:
        place = urlsplit(url)
        return place.scheme == "tcp" and bool(place.hostname) and bool(place.port)
    except ValueError:
        return False


def _heartbeat(config: TrainerConfig) -> Heartbeat:
    machine = config.machine
    # Kept here, the store tells at once if it cannot be; elsewhere, it may be long in coming.
    kept = _store(config, True) if machine.machine_rank == 0 else None
    return Heartbeat(
        lambda: _store(config, False) if kept is None else kept,
        machine.machine_rank,
        machine.num_machines,
        float(os.environ.get("AIRE_SILENCE", SILENCE)),
    )


def _watch(context: multiprocessing.ProcessContext, heartbeat: Heartbeat | None, machine: Any) -> int | None:
    """Wait until the processes here have ended well, or a machine falls silent: its number."""
    began, is_said = time.monotonic(), False
    while not context.join(timeout=1.0, grace_period=GRACE):
        if heartbeat is None:
            continue
        if not is_said and time.monotonic() - began > NAMED_AFTER:
            is_said = True
            for number in heartbeat.missing():
                CONSOLE.print(f"waiting for machine {number} (of 0 to {machine.num_machines - 1}) to begin")
        silent = heartbeat.lost()
        if silent is not None:
            return silent
    return None


def _store(config: TrainerConfig, is_kept_here: bool) -> dist.TCPStore:
    """Where processes of several machines meet; it is kept by the first machine's launcher, which outlives them."""
    place = urlsplit(config.machine.dist_url)
    return dist.TCPStore(
        place.hostname or "", place.port or 0, is_master=is_kept_here, wait_for_workers=False, timeout=PATIENCE
    )


def _end(context: multiprocessing.ProcessContext) -> None:
    """End the processes here, in the end those, too, that do not listen."""
    for process in context.processes:
        process.terminate()
    until = time.monotonic() + GRACE
    for process in context.processes:
        process.join(max(0.0, until - time.monotonic()))
        process.kill()


def _saved(config: TrainerConfig) -> str:
    """How to go on, in words; the folder may lie on the machine that is lost, and looking there take for ever."""
    found = ["look for its last checkpoint"]

    def look() -> None:
        try:
            found.append(f"go on with --load-dir {latest_checkpoint(config.get_base_dir()).parent}")
        except Exception:
            if config.load_dir is not None:
                found.append(f"go on with --load-dir {config.load_dir}, as this job did")
            elif config.machine.machine_rank > 0:
                found.append("the first machine's folder says whether there is a checkpoint to go on with")
            else:
                found.append("no checkpoint was written yet")

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(GRACE)
    return found[-1]


def _is_finished(config: TrainerConfig) -> bool:
    try:
        return int(latest_checkpoint(config.get_base_dir()).stem[5:]) >= config.max_num_iterations - 1
    except Exception:
        return False


def _of_a_killed(
    fault: multiprocessing.ProcessExitedException,
    codes: Sequence[int | None],
    cut_off: Mapping[int, str],
    config: TrainerConfig,
) -> str:
    """Which process was lost, how, and how to go on.

    Args:
        fault: of the first that was seen to end.
        codes: exit statuses of all here.
        cut_off: those here that ended because the connection to another broke, and what they say of it.
        config: the run's.
    """
    machine = config.machine
    lost: int | None = fault.error_index
    if lost in cut_off:  # what it was cut off from, if that is here; the launcher itself ends the others with SIGTERM
        ended = (i for i, code in enumerate(codes) if code not in (0, None, -signal.SIGTERM) and i not in cut_off)
        lost = next(ended, None)
    if lost is None:
        whose = "to a process on another machine" if machine.num_machines > 1 else "between the processes"
        why = next(iter(cut_off.values()), "")
        return f"the connection {whose} broke ({why}), and those here were ended; {_saved(config)}"
    code = codes[lost] or 1
    how = f"exit status {code}" if code > 0 else _signal_name(-code)
    number, count = machine.machine_rank * machine.num_devices + lost, machine.num_devices * machine.num_machines
    return f"process {number} of {count} was ended ({how}), and the others with it; {_saved(config)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time ones
        return f"signal {number}"


@contextlib.contextmanager
def _environment(machine: Any) -> Iterator[None]:
    """Variables that the processes read when they start: not more threads than processors, and no name look-ups."""
    given = dict(os.environ)
    if machine.device_type == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // machine.num_devices)))
    if machine.num_machines == 1 and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(given)


def _train(local_rank: int, config: TrainerConfig, folder: str) -> None:
    """One of the processes."""
    machine = config.machine
    rank = machine.machine_rank * machine.num_devices + local_rank
    if machine.device_type == "cpu":
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].split(",")[0]))
    else:
        torch.cuda.set_device(local_rank)
    CONSOLE.quiet = rank > 0 or bool(getattr(config, "quiet", False))
    # The launcher ends those that wait for one that is gone.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        _meet(config, rank, folder)
    except Exception as error:  # before anyone could be cut off from another
        Path(folder, f"fault-{rank}").write_text(f"error: process {rank} found no others: {first_line(error)}", "utf8")
        _leave()
    try:
        # The same for all: each draws the whole batch and takes its share.
        random.seed(machine.seed)
        np.random.seed(machine.seed)  # noqa: NPY002 - nerfstudio's generator
        torch.manual_seed(machine.seed)
        trainer = config.setup(local_rank=local_rank, world_size=dist.get_world_size())
        trainer.setup()
        trainer.train()
    except SystemExit as end:
        if end.code not in (None, 0):
            Path(folder, f"fault-{rank}").write_text(str(end.code), "utf8")
            _leave()
    except Exception as error:
        # Of a process that is gone, the others say only that the connection was closed.
        if isinstance(error, dist.DistBackendError | dist.DistNetworkError) or "gloo" in str(error).lower():
            Path(folder, f"cut-off-{local_rank}").write_text(first_line(error), "utf8")
        else:
            traceback.print_exc()
            Path(folder, f"fault-{rank}").write_text(f"error: process {rank}: {first_line(error)}", "utf8")
        _leave()
    dist.destroy_process_group()


def _meet(config: TrainerConfig, rank: int, folder: str) -> None:
    """Join the process group."""
    machine = config.machine
    world = machine.num_devices * machine.num_machines
    backend = "nccl" if machine.device_type == "cuda" else "gloo"
    if machine.num_machines > 1:
        store = _store(config, is_kept_here=False)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    else:
        url = f"file://{folder}/rendezvous" if machine.dist_url == "auto" else machine.dist_url
        dist.init_process_group(backend, init_method=url, rank=rank, world_size=world, timeout=PATIENCE)


def _leave() -> None:
    """End this process at once: taking the group down would wait for the others, which wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
