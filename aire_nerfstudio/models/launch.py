"""The processes that train together on one machine: started, watched, and ended together."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Container, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from nerfstudio.utils.rich_utils import CONSOLE
from torch import multiprocessing

from aire_nerfstudio.errors import first_line
from aire_nerfstudio.models.heartbeat import Heartbeat
from aire_nerfstudio.report.facts import latest_checkpoint

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig

# A process that is gone is seen at once; one that waits may wait for a person who paused the training.
PATIENCE = timedelta(days=1)
# Seconds that the others have to end by themselves once one has.
GRACE = 10.0


def launch(config: TrainerConfig) -> int | str:
    """Train in ``machine.num_devices`` processes here, of ``num_machines`` times as many in all.

    Returns:
        Exit status: 0, or what went wrong, in one line for each cause.
    """
    machine = config.machine
    there = torch.cuda.device_count()
    if machine.device_type == "cuda" and there < machine.num_devices:
        return f"error: --machine.num-devices is {machine.num_devices} and this machine has {there} GPUs"
    if not 0 <= machine.machine_rank < machine.num_machines:
        return f"error: --machine.machine-rank is {machine.machine_rank}; it must lie in [0, {machine.num_machines})"
    if machine.num_machines > 1 and machine.dist_url == "auto":
        return "error: several machines need --machine.dist-url tcp://HOST:PORT, the same on all, HOST being the first"
    with tempfile.TemporaryDirectory(prefix="aire-") as folder, _environment(machine):
        url = f"file://{folder}/rendezvous" if machine.dist_url == "auto" else machine.dist_url
        # CUDA does not bear a fork; without it a fork spares each process the imports.
        context = multiprocessing.start_processes(
            _train, (config, url, folder), machine.num_devices, join=False,
            start_method="spawn" if machine.device_type == "cuda" else "fork",
        )  # fmt: skip
        assert context is not None
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        heartbeat = None
        if machine.num_machines > 1 and url.startswith("tcp:"):
            heartbeat = Heartbeat(url, machine.machine_rank, machine.num_machines)
        try:
            while not context.join(timeout=1.0, grace_period=GRACE):
                silent = None if heartbeat is None else heartbeat.lost()
                if silent is not None:
                    _end(context)
                    return (
                        f"error: machine {silent} of {machine.num_machines} gives no sign of life, and the processes "
                        f"here were ended; {_saved(config)}"
                    )
        except multiprocessing.ProcessExitedException as fault:
            causes = dict.fromkeys(path.read_text("utf8") for path in sorted(Path(folder).glob("fault-*")))
            if causes:
                return "\n".join(causes)
            codes = [process.exitcode for process in context.processes]
            cut_off = {index for index in range(len(codes)) if Path(folder, f"cut-off-{index}").exists()}
            return f"error: {_of_a_killed(fault, codes, cut_off, config)}"
        except (KeyboardInterrupt, SystemExit):
            # Ctrl-C is how a finished run is left whose viewer goes on.
            _end(context)
        if heartbeat is not None:
            heartbeat.finish()
    return 0


def _end(context: multiprocessing.ProcessContext) -> None:
    for process in context.processes:
        process.terminate()


def _saved(config: TrainerConfig) -> str:
    """How to go on, in words."""
    try:
        return f"go on with --load-dir {latest_checkpoint(config.get_base_dir()).parent}"
    except Exception:
        return "no checkpoint was written yet"


def _of_a_killed(
    fault: multiprocessing.ProcessExitedException,
    codes: Sequence[int | None],
    cut_off: Container[int],
    config: TrainerConfig,
) -> str:
    """Which process was lost, how, and how to go on.

    Args:
        fault: of the first that was seen to end.
        codes: exit statuses of all here.
        cut_off: those here that ended because the connection to another broke.
        config: the run's.
    """
    machine = config.machine
    lost: int | None = fault.error_index
    if lost in cut_off:  # what it was cut off from, if that is here; the launcher itself ends the others with SIGTERM
        ended = (i for i, code in enumerate(codes) if code not in (0, None, -signal.SIGTERM) and i not in cut_off)
        lost = next(ended, None)
    if lost is None:
        return f"the connection to a process on another machine broke, and those here were ended; {_saved(config)}"
    code = codes[lost] or 1
    how = f"exit status {code}" if code > 0 else signal.Signals(-code).name
    number, count = machine.machine_rank * machine.num_devices + lost, machine.num_devices * machine.num_machines
    return f"process {number} of {count} was ended ({how}), and the others with it; {_saved(config)}"


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


def _train(local_rank: int, config: TrainerConfig, url: str, folder: str) -> None:
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
        dist.init_process_group(
            "nccl" if machine.device_type == "cuda" else "gloo", init_method=url, rank=rank,
            world_size=machine.num_devices * machine.num_machines, timeout=PATIENCE,
        )  # fmt: skip
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
            Path(folder, f"cut-off-{local_rank}").touch()
        else:
            traceback.print_exc()
            Path(folder, f"fault-{rank}").write_text(f"error: process {rank}: {first_line(error)}", "utf8")
        _leave()
    dist.destroy_process_group()


def _leave() -> None:
    """End this process at once: taking the group down would wait for the others, which wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
