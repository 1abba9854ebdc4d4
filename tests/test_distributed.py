"""Several processes on gloo: to the bit alike, and what one process would have learned from the whole batch."""

import os
import re
import signal
import socket
import time

import psutil
import pytest
import torch
import torch.distributed as dist
from commands import fork, run_command, start_command
from hypothesis import given
from hypothesis import strategies as st
from tiny import STEPS, checkpoints, differences, load, tiny_config, train
from torch.distributed import TCPStore
from torch.multiprocessing import ProcessExitedException

from aire_nerfstudio import distributed
from aire_nerfstudio.adaptation.aire import AireStrategy
from aire_nerfstudio.adaptation.control import Request
from aire_nerfstudio.models.adaptive import AdaptiveModel
from aire_nerfstudio.models.heartbeat import INTERVAL, Heartbeat
from aire_nerfstudio.models.launch import _of_a_killed
from aire_nerfstudio.models.training_state import training_state


def in_processes(world, function, *arguments, folder):
    """What ``function(*arguments)`` gives in each of ``world`` processes of one group, the first one's first."""
    folder.mkdir(parents=True, exist_ok=True)
    processes = [fork(_join, rank, world, str(folder), function, arguments) for rank in range(world)]
    for process in processes:
        process.join(200)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    said = "\n".join(path.read_text("utf8")[-2000:] for path in sorted(folder.glob("*.log")))
    assert codes == [0] * world, said
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)], said


def _join(rank, world, folder, function, arguments):
    log = os.open(f"{folder}/{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    torch.save(function(*arguments), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


# --- the pieces -------------------------------------------------------------------------------------------------------


@given(rows=st.integers(0, 50), world=st.integers(1, 9))
def test_shares_are_alike_in_size_apart_and_in_order(rows, world):
    whole = torch.arange(rows)
    parts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "count", lambda: world)
        for rank in range(world):
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            parts.append(distributed.share(whole))
    if rows < world:
        assert all(torch.equal(part, whole) for part in parts)
    else:
        together = torch.cat(parts)
        assert torch.equal(together, whole[: len(together)])
        assert rows - len(together) < world
        assert len({len(part) for part in parts}) == 1


@given(rows=st.integers(0, 20), world=st.integers(1, 5))
def test_random_rows_are_those_of_one_process(rows, world):
    torch.manual_seed(3)
    whole = torch.rand(rows * world, 2)
    state = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "count", lambda: world)
        for rank in range(world):
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            torch.manual_seed(3)
            part = distributed.shared_rand(rows, 2, device=torch.device("cpu"))
            assert torch.equal(part, whole[rank * rows : (rank + 1) * rows])
            assert torch.equal(torch.get_rng_state(), state)


def _collectives():
    rank = dist.get_rank()
    numbers = [torch.full((3, 2), float(rank)), torch.tensor(10.0 * rank)]
    distributed.average(numbers)
    parameters = [torch.zeros(4, requires_grad=True), torch.zeros(2, 3, requires_grad=True)]
    parameters[0].grad = torch.full((4,), float(rank + 1))
    if rank == 1:
        parameters[1].grad = torch.full((2, 3), 6.0)
    extra = torch.tensor(float(rank == 0))
    distributed.average_gradients(parameters, [extra])
    state = distributed.from_first(lambda: {"rank": rank, "tensor": torch.arange(5) * (rank + 1)}, "cpu")
    taken = [torch.full((2,), float(rank)), torch.tensor([rank])]
    alike = [distributed.is_alike([torch.ones(3), torch.tensor([1, 2])])]
    alike.append(distributed.is_alike([torch.tensor([1.0, 2.0, 3.0 + 1e-6 * (rank == 2)])]))
    alike.append(distributed.is_alike([torch.tensor([1.0, 2.0] if rank else [2.0, 1.0])]))
    distributed.take_from_first(taken)
    return {
        **{"means": numbers, "gradients": [p.grad for p in parameters], "extra": extra, "state": state},
        **{"alike": alike, "taken": taken, "rank": distributed.rank(), "count": distributed.count()},
    }


def test_collectives(tmp_path):
    results, _ = in_processes(3, _collectives, folder=tmp_path)
    for rank, result in enumerate(results):
        assert (result["rank"], result["count"]) == (rank, 3)
        assert torch.equal(result["means"][0], torch.ones(3, 2))
        assert result["means"][1] == 10
        assert torch.equal(result["gradients"][0], torch.full((4,), 2.0))
        assert torch.equal(result["gradients"][1], torch.full((2, 3), 2.0))
        assert result["extra"] == pytest.approx(1 / 3)
        assert result["state"]["rank"] == 0
        assert torch.equal(result["state"]["tensor"], torch.arange(5))
        assert result["alike"] == [True, False, False]
        assert differences(result["taken"], [torch.zeros(2), torch.tensor([0])]) == []


# --- trainings --------------------------------------------------------------------------------------------------------


def _trained(task, folder, hook=None, variant="aire"):
    """The whole state of this process after a training through all stages."""
    torch.set_num_threads(1)
    if hook is not None:
        hook()
    trainer = train(tiny_config(task, folder, model={"variant": variant}))
    return training_state(trainer, trainer.step)


def _parameters(state):
    return {k: v for k, v in state["pipeline"].items() if k.startswith("_model.field.") and "grid" not in k}


@pytest.mark.parametrize(("task", "world"), [("image", 4), ("nerf", 2), ("sdf", 2), ("flow", 4)])
def test_processes_are_alike_to_the_bit_and_like_one_with_the_whole_batch(task, world, demo, tmp_path):
    alone = _trained(task, tmp_path / "alone")
    states, _ = in_processes(world, _trained, task, str(tmp_path / "runs"), folder=tmp_path / "group")
    for other in states[1:]:
        assert differences(states[0], other) == []
    events = [(e["event"], e["step"]) for e in states[0]["pipeline"]["_model._extra_state"]["history"]]
    assert events == [("densify", 11), ("decay", 17), ("prune", 34)]
    mine, whole = _parameters(states[0]), _parameters(alone)
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in whole.items()}
    largest = max(float((mine[k] - whole[k]).abs().max()) for k in mine)
    assert largest < 1e-5, largest
    # The first process alone wrote, and what it wrote is what all hold.
    config = tiny_config(task, tmp_path / "runs")
    assert [p.name for p in checkpoints(config)] == [f"step-{s:09d}.ckpt" for s in (*range(8, STEPS, 8), STEPS - 1)]
    assert differences(load(checkpoints(config)[-1])["pipeline"], states[-1]["pipeline"]) == []


def _press_in_the_first():
    after_step = AdaptiveModel.after_step

    def pressing(self, step):
        if dist.get_rank() == 0 and step == 13:
            self.by_hand.ask_for(Request("densify", 3, None))
        after_step(self, step)

    AdaptiveModel.after_step = pressing


def test_what_the_first_is_asked_for_by_hand_happens_in_all(tmp_path):
    states, _ = in_processes(2, _trained, "image", str(tmp_path / "runs"), _press_in_the_first, folder=tmp_path / "g")
    assert differences(*states) == []
    history = states[1]["pipeline"]["_model._extra_state"]["history"]
    assert [(e["event"], e["by_hand"]) for e in history][:2] == [("densify", False), ("densify", True)]
    assert history[1]["after"] == [14 + 4 + 3, 12]


def _spoil_the_second():
    adaptation_loss = AdaptiveModel.adaptation_loss

    def spoiled(self, error=None):
        loss = adaptation_loss(self, error)
        is_time = dist.get_rank() == 1 and self.adaptation.position[0] == 30 and not self.adaptation.log.has_returned
        return loss + float("nan") if is_time else loss

    AdaptiveModel.adaptation_loss = spoiled


def test_a_fault_in_one_process_is_met_by_all(tmp_path):
    states, _ = in_processes(2, _trained, "sdf", str(tmp_path / "runs"), _spoil_the_second, folder=tmp_path / "g")
    assert differences(*states) == []
    history = states[0]["pipeline"]["_model._extra_state"]["history"]
    assert [e["event"] for e in history] == ["return", "densify", "decay", "prune"]
    assert all(torch.isfinite(v).all() for v in _parameters(states[0]).values())


def _mistake_the_second():
    scores = AireStrategy._scores

    def otherwise(self, *arguments):
        found = scores(self, *arguments)
        return [-score for score in found] if dist.get_rank() == 1 else found

    AireStrategy._scores = otherwise


@pytest.mark.parametrize("variant", ["aire", "aire_rounds"])
def test_what_the_first_decides_counts(variant, tmp_path):
    """Devices that round otherwise might choose other neurons; here the second is made to choose the strongest."""
    states, said = in_processes(
        2, _trained, "image", str(tmp_path / "r"), _mistake_the_second, variant, folder=tmp_path / "g"
    )
    assert differences(*states) == []
    assert "weights differ" not in said
    history = states[0]["pipeline"]["_model._extra_state"]["history"]
    assert [e["event"] for e in history].count("prune") == (1 if variant == "aire" else 4)


def _disturb_the_second():
    after_step = AdaptiveModel.after_step

    def disturbed(self, step):
        after_step(self, step)
        if dist.get_rank() == 1 and step == 3:
            next(self.field.parameters()).data += 1e-7

    AdaptiveModel.after_step = disturbed


def test_weights_that_drift_apart_are_seen_and_mended(tmp_path):
    states, said = in_processes(2, _trained, "image", str(tmp_path / "r"), _disturb_the_second, folder=tmp_path / "g")
    assert differences(*states) == []
    # Once, and by the first.
    assert len(re.findall(r"the processes' weights differ", said)) == 1


# --- through ns-train -------------------------------------------------------------------------------------------------

WORDS = [
    *("aire-image-siren", "--vis", "tensorboard", "--report", "False", "--timestamp", "run", "--quiet", "True"),
    *("--steps-per-save", "20", "--save-only-latest-checkpoint", "False", "--pipeline.model.widths", "14", "12"),
    *("--pipeline.datamanager.train-num-rays-per-batch", "240", "--machine.device-type", "cpu"),
    *("--pipeline.model.adaptation.unit", "percent", "--pipeline.model.adaptation.densify-at", "20"),
    *("--pipeline.model.adaptation.decay-start", "40", "--pipeline.model.adaptation.prune-at", "70"),
]


def _run(tmp_path, name):
    return tmp_path / "outputs" / name / "aire-image-siren" / "run" / "nerfstudio_models"


def _wait_for(checkpoint, log, *jobs):
    """Until the jobs, which must be running until then, have written it."""
    until = time.monotonic() + 120
    while not checkpoint.exists():
        assert all(job.poll() is None for job in jobs), log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.01)


def test_a_killed_process_ends_the_job_which_resumes(tmp_path):
    """The rule is 30 seconds; a process is missed within one."""
    words = [*WORDS, "--max-num-iterations", "400", "--machine.num-devices", "2"]
    whole = run_command("ns-train", *words, "--experiment-name", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr[-2000:]
    log = tmp_path / "log"
    job = start_command("ns-train", *words, "--experiment-name", "killed", cwd=tmp_path, out=log)
    wanted = _run(tmp_path, "killed") / "step-000000200.ckpt"
    _wait_for(wanted, log, job)
    children = sorted(psutil.Process(job.pid).children(), key=lambda process: process.pid)
    assert len(children) == 2
    killed = time.monotonic()
    os.kill(children[1].pid, signal.SIGKILL)
    try:
        assert job.wait(30) == 1, log.read_text()
    finally:
        job.end()
    assert time.monotonic() - killed < 30
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    lines = [line for line in log.read_text().splitlines() if line.startswith("error:")]
    assert lines == [
        "error: process 1 of 2 was ended (SIGKILL), and the others with it; go on with --load-dir "
        f"{_run(tmp_path, 'killed').relative_to(tmp_path)}"
    ]
    resumed = run_command(
        "ns-train", *words, "--experiment-name", "resumed", "--load-dir", _run(tmp_path, "killed"), cwd=tmp_path
    )
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    states = [load(_run(tmp_path, name) / "step-000000399.ckpt") for name in ("whole", "resumed")]
    assert differences(*states) == []


def _machines(count, each, folder, *, words):
    """``ns-train`` started once for each of ``count`` machines, all of them this one, with ``each`` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    together = ("--machine.num-devices", str(each), "--machine.num-machines", str(count), "--machine.dist-url", url)
    return [
        start_command(
            *("ns-train", *words, *together, "--machine.machine-rank", str(number)),
            cwd=folder,
            out=folder / f"{number}.log",
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("seen", "codes", "cut_off", "said"),
    [
        (1, [-15, -9], [], "process 5 of 8 was ended (SIGKILL), and the others with it"),
        (0, [1, -9], [0], "process 5 of 8 was ended (SIGKILL), and the others with it"),
        (0, [1, 1, 7], [0, 1], "process 6 of 8 was ended (exit status 7), and the others with it"),
        (0, [-40, -15], [], "process 4 of 8 was ended (signal 40), and the others with it"),
        (1, [-15, -15], [], "process 5 of 8 was ended (SIGTERM), and the others with it"),
        (
            0,
            [1, 1],
            [0, 1],
            "the connection to a process on another machine broke (reset by peer), and those here were ended",
        ),
        (
            0,
            [1, -15],
            [0],
            "the connection to a process on another machine broke (reset by peer), and those here were ended",
        ),
    ],
)
def test_the_cause_is_told_from_what_it_brought_about(seen, codes, cut_off, said, tmp_path):
    """A process that is cut off may be seen to end before the one that it was cut off from."""
    config = tiny_config("image", tmp_path)
    config.machine.num_machines, config.machine.num_devices, config.machine.machine_rank = 2, 4, 1
    fault = ProcessExitedException("", error_index=seen, error_pid=1, exit_code=codes[seen])
    found = _of_a_killed(fault, codes, dict.fromkeys(cut_off, "reset by peer"), config)
    assert found == f"{said}; the first machine's folder says whether there is a checkpoint to go on with"


def test_two_machines_train_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    words = [*WORDS, "--max-num-iterations", "60"]
    jobs = _machines(2, 2, tmp_path, words=[*words, "--experiment-name", "two"])
    try:
        for number, job in enumerate(jobs):
            assert job.wait(200) == 0, (tmp_path / f"{number}.log").read_text()
    finally:
        for job in jobs:
            job.end()
    one = run_command("ns-train", *words, "--experiment-name", "one", "--machine.num-devices", "4", cwd=tmp_path)
    assert one.returncode == 0, one.stderr[-2000:]
    for number in range(2):
        said = (tmp_path / f"{number}.log").read_text()
        assert "frame #" not in said
        assert "Traceback" not in said
    states = [load(_run(tmp_path, name) / "step-000000059.ckpt") for name in ("one", "two")]
    assert differences(*states) == []


def test_a_place_that_is_taken_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        place = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        words = ["--machine.num-machines", "2", "--machine.dist-url", place]
        done = run_command("ns-train", *WORDS, *words, cwd=tmp_path)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, done.stderr
    assert re.match(rf"error: --machine.dist-url {place} cannot be used here \(.*EADDRINUSE", lines[0])
    assert not (tmp_path / "outputs").exists()


def test_a_machine_that_is_lost_ends_the_other(tmp_path, monkeypatch):
    """The first goes; the second, whose processes wait for it, ends by itself and says why."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    jobs = _machines(2, 1, tmp_path, words=[*WORDS, "--max-num-iterations", "100000", "--experiment-name", "lost"])
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    try:
        _wait_for(_run(tmp_path, "lost") / "step-000000020.ckpt", logs[1], *jobs)
        os.killpg(jobs[0].pid, signal.SIGKILL)
        assert jobs[1].wait(30) == 1, logs[1].read_text()
    finally:
        for job in jobs:
            job.end()
    lines = [line for line in logs[1].read_text().splitlines() if line.startswith("error:")]
    assert len(lines) == 1, logs[1].read_text()
    models = _run(tmp_path, "lost").relative_to(tmp_path)
    assert re.fullmatch(
        r"error: the connection to a process on another machine broke \(.+\), and those here were ended; go on with "
        rf"--load-dir {re.escape(str(models))}",
        lines[0],
    )
    assert "Traceback" not in logs[1].read_text()


def test_a_machine_that_falls_silent_ends_the_other(tmp_path, monkeypatch):
    """Stopped, not ended: no connection breaks, as when power or network goes. Here it is the one with the store."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("AIRE_SILENCE", "8")
    jobs = _machines(2, 1, tmp_path, words=[*WORDS, "--max-num-iterations", "100000", "--experiment-name", "silent"])
    log = tmp_path / "1.log"
    try:
        _wait_for(_run(tmp_path, "silent") / "step-000000020.ckpt", log, *jobs)
        time.sleep(2 * INTERVAL)  # the launchers have heard of each other
        os.killpg(jobs[0].pid, signal.SIGSTOP)
        assert jobs[1].wait(60) == 1, log.read_text()
    finally:
        for job in jobs:
            job.end()
    lines = [line for line in log.read_text().splitlines() if line.startswith("error:")]
    assert lines == [
        "error: machine 0 of 2 gives no sign of life, and the processes here were ended; go on with "
        f"--load-dir {_run(tmp_path, 'silent').relative_to(tmp_path)}"
    ]


def _heartbeats(count, silence):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    made = []
    for number in range(count):
        own = store if number == 0 else TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)
        made.append(Heartbeat(lambda own=own: own, number, count, silence, 0.02))
    return made


def _missed(heartbeats, seconds):
    """Who is lost, as the others see it over some time."""
    until, found = time.monotonic() + seconds, [set() for _ in heartbeats]
    while time.monotonic() < until:
        for seen, heartbeat in zip(found, heartbeats, strict=True):
            seen.add(heartbeat.lost())
        time.sleep(0.01)
    return [seen - {None} for seen in found]


def test_machines_that_live_or_have_ended_are_not_missed():
    first, second, third = _heartbeats(3, silence=1.0)
    assert _missed([first, second], 0.5) == [set(), set()]
    assert first.missing() == second.missing() == []
    third.finish()
    assert _missed([first, second], 2.0) == [set(), set()]
    second.finish()
    first.finish()
    assert first.lost() is second.lost() is None


def test_a_silent_machine_is_missed_by_all_others():
    heartbeats = _heartbeats(3, silence=0.5)
    assert _missed(heartbeats, 0.3) == [set(), set(), set()]
    heartbeats[2]._interval = 1e6  # it says nothing any more
    assert _missed(heartbeats[:2], 3.0) == [{2}, {2}]


def test_the_first_machine_is_missed_when_no_answer_comes():
    class Silent:
        """A store whose machine has lost its power."""

        def __getattr__(self, name):
            time.sleep(1e6)

    first, second = _heartbeats(2, silence=0.5)
    assert _missed([second], 0.3) == [set()]
    second._store = Silent()
    assert _missed([second], 2.0) == [{0}]
    first.finish()


def test_a_machine_that_stood_still_itself_blames_nobody():
    first, second = _heartbeats(2, silence=0.5)
    assert _missed([first, second], 0.3) == [set(), set()]
    for heartbeat in (first, second):  # as after Ctrl-Z and fg: old counts, and the first question after a long time
        heartbeat._asked -= 100
        heartbeat._answered -= 100
        heartbeat._heard = {number: at - 100 for number, at in heartbeat._heard.items()}
    assert _missed([first, second], 0.4) == [set(), set()]
    first._interval = 1e6
    assert _missed([second], 2.0) == [{0}]


def test_waiting_for_the_first_machine_can_be_given_up(tmp_path):
    """It may never come: Ctrl-C ends what waits, though the store that is waited for is not Python's."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        place = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
        words = ["--machine.num-machines", "2", "--machine.machine-rank", "1", "--machine.dist-url", place]
        job = start_command("ns-train", *WORDS, *words, cwd=tmp_path, out=tmp_path / "log")
        try:
            until = time.monotonic() + 60
            while not psutil.Process(job.pid).children():
                assert time.monotonic() < until
                time.sleep(0.1)
            time.sleep(3)
            assert job.poll() is None, (tmp_path / "log").read_text()
            os.kill(job.pid, signal.SIGINT)
            job.wait(30)
        finally:
            job.end()
    assert "Traceback" not in (tmp_path / "log").read_text()


def _stopped(tmp_path, name, stop):
    """Status and output of two processes that were stopped after a checkpoint, and where to go on from."""
    log = tmp_path / "log"
    words = [*WORDS, "--max-num-iterations", "100000", "--experiment-name", name, "--machine.num-devices", "2"]
    job = start_command("ns-train", *words, cwd=tmp_path, out=log)
    try:
        _wait_for(_run(tmp_path, name) / "step-000000020.ckpt", log, job)
        stop(job.pid)
        status = job.wait(60)
    finally:
        job.end()
    return status, log.read_text(), _run(tmp_path, name).relative_to(tmp_path)


def _errors(said):
    return [line for line in said.splitlines() if line.startswith("error:")]


def test_a_job_that_is_interrupted_says_how_to_go_on(tmp_path):
    # A terminal's Ctrl-C goes to all of them.
    status, said, folder = _stopped(tmp_path, "cut", lambda pid: os.killpg(pid, signal.SIGINT))
    assert status == 130, said
    assert _errors(said) == [f"error: interrupted; go on with --load-dir {folder}"]
    assert "Traceback" not in said


def test_a_job_that_is_told_to_end_says_how_to_go_on(tmp_path):
    status, said, folder = _stopped(tmp_path, "told", lambda pid: os.kill(pid, signal.SIGTERM))
    assert status == 1, said
    assert _errors(said) == [
        f"error: this job was ended (SIGTERM), and its processes with it; go on with --load-dir {folder}"
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--pipeline.model.ema-decay", "2"], "ema_decay is 2.0; it must lie in [0, 1)"),
        (["--machine.device-type", "cuda"], "--machine.num-devices is 2 and this machine has 0 GPUs"),
        (["--machine.num-machines", "2"], "--machine.dist-url is auto; several machines need tcp://HOST:PORT"),
        (["--machine.num-machines", "2", "--machine.dist-url", "tcp://x"], "need tcp://HOST:PORT"),
        (["--machine.num-machines", "2", "--machine.dist-url", "tcp://x:abc"], "need tcp://HOST:PORT"),
        (["--machine.num-machines", "2", "--machine.dist-url", "http://x:80"], "need tcp://HOST:PORT"),
        (["--machine.num-machines", "2", "--machine.machine-rank", "2"], "it must lie in [0, 2)"),
    ],
)
def test_bad_input_is_said_once(options, said, tmp_path):
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there are GPUs")
    done = run_command("ns-train", *WORDS, "--machine.num-devices", "2", *options, cwd=tmp_path)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, done.stderr
    assert said in lines[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()
