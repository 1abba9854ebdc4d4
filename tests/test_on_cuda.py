"""What runs on CUDA, on a device: where there is none, on an emulated one (``emulated_cuda``)."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import emulated_cuda
import pytest
import torch

TESTS = Path(__file__).resolve().parent
IS_REAL = torch.cuda.is_available()
MISSING = None if IS_REAL else emulated_cuda.why_not()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"no emulated device: {MISSING}")
EMULATED = pytest.mark.skipif(IS_REAL, reason="there is a device, and these tests run on it by themselves")


@pytest.fixture(scope="session")
def device(tmp_path_factory):
    """The environment of a process that has a device, emulated where there is none."""
    folder = tmp_path_factory.mktemp("emulated_cuda")
    environment = dict(os.environ) if IS_REAL else emulated_cuda.environment(folder)
    # What is installed is what runs on a device; a clone's folder would be taken for it.
    paths = [str(TESTS), *([] if IS_REAL else [str(TESTS.parent)]), environment.get("PYTHONPATH", "")]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}


def _run(device, command, folder=None, limit=400):
    done = subprocess.run(command, env=device, capture_output=True, text=True, timeout=limit, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def _python(device, code, *arguments):
    return _run(device, [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)])


LAWS = """
    import os, pytest, torch
    from emulated_device import STATE

    assert torch.cuda.is_available() and torch.zeros(3, device="cuda").device == torch.device("cuda:0")

    # What it computes is what a processor computes, gradients and in-place changes of views among it.
    def compute(place):
        torch.manual_seed(0)
        x = torch.arange(24.0).reshape(4, 6).to(place).requires_grad_()
        y = torch.cat([x.sin(), x.T.contiguous().T * 2.5, x[:, [1, 1]]], 1)
        y = torch.nn.functional.conv2d(y[None, None, :, 2:], torch.ones(3, 1, 2, 2).to(place))
        y = y.softmax(-1).cumsum(2) + (x[1:, 1].detach() > 7).float()[:, None]
        y.square().sum().backward()
        z = torch.zeros(5, 3).to(place)
        z[1:3, 1] = x.grad[:2, 0]
        z.view(-1)[::2].mul_(3).clamp_(min=-1)
        torch.addmm(z[:, 0], z, z.T, out=(out := torch.empty(0).to(place)))
        return [y.detach(), x.grad, z, z.nonzero(), out, z[z != 0], z.argsort(stable=True), torch.where(z > 0, z, 7.5)]

    for here, there in zip(compute("cpu"), compute("cuda"), strict=True):
        assert there.is_cuda and there.dtype == here.dtype and torch.equal(there.cpu(), here)

    # Devices are not mixed.
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3, device="cuda") + torch.ones(3)
    assert float(torch.ones(3, device="cuda").sum() + torch.tensor(1.0)) == 4
    with pytest.raises(TypeError, match="cuda"):
        torch.ones(3, device="cuda").numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device="cuda", generator=torch.Generator())

    # The generator's state is all there is to what is drawn.
    torch.manual_seed(3)
    torch.rand(5, device="cuda")
    state = torch.cuda.get_rng_state()
    drawn = torch.randn(7, device="cuda")
    assert not torch.equal(torch.randn(7, device="cuda"), drawn)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.randn(7, device="cuda"), drawn)

    # A replay sees what is in memory then.
    place, graph = torch.ones(4, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = (2 * place + 1).cumsum(0)
    place.fill_(3)
    graph.replay()
    assert result.tolist() == [7, 14, 21, 28]
    pinned = torch.ones(4).pin_memory()
    assert pinned.is_pinned() and not torch.ones(4).is_pinned()
    before = len(STATE.waits)
    torch.zeros(4, device="cuda").copy_(pinned, non_blocking=True)
    assert len(STATE.waits) == before
    host = torch.tensor([0, 1])
    stream = torch.cuda.current_stream()
    for wrong in (
        lambda: float(place[0]), lambda: place.nonzero(), lambda: place.cpu(), lambda: place[place > 0],
        lambda: place[host], lambda: stream.synchronize(), lambda: place.copy_(torch.ones(4)),
    ):
        with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            wrong()

    # Waits and memory are counted.
    before = len(STATE.waits)
    place.add_(1).sum()
    assert len(STATE.waits) == before
    place.tolist()
    assert len(STATE.waits) > before
    held = torch.cuda.memory_allocated()
    large = torch.zeros(1 << 20, device="cuda")
    assert torch.cuda.memory_allocated() - held == 4 << 20
    del large
    assert torch.cuda.memory_allocated() == held
    print("lawful", flush=True)
    os._exit(0)
"""


@EMULATED
def test_the_emulated_device_is_like_one(device):
    assert "lawful" in _python(device, LAWS)


@EMULATED
@pytest.mark.parametrize(
    ("files", "chosen", "least"),
    [
        (["test_graphed.py", "test_triton_adam.py"], "not (rigl or weight_decay or target_psnr)", 30),
        (
            ["test_ray_ops.py", "test_padded_samples.py", "test_rays_manager.py"],
            "(cuda or gpu or drawn or large or any_size) and not sources",
            90,
        ),
        (["test_triton_network.py", "test_radiance.py"], "cuda_finds and siren or on_cuda or in_a_graph", 3),
        (["test_triton_derivatives.py"], "cuda_finds and siren and not curvature", 2),
    ],
    ids=["graphs", "rays", "triton", "derivatives"],
)
def test_what_is_skipped_without_a_device_passes_on_it(device, files, chosen, least):
    # Left at once: autograd's thread for the device may still be there when libraries are unloaded.
    tests = "import os, pytest, sys; code = pytest.main(sys.argv[1:]); sys.stdout.flush(); os._exit(code)"
    command = [sys.executable, "-c", tests, "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-rs", "-k", chosen]
    said = _run(device, [*command, *(str(TESTS / name) for name in files)])
    passed, skipped = (re.search(rf"(\d+) {word}", said) for word in ("passed", "skipped"))
    assert passed is not None
    assert int(passed[1]) >= least, said[-2000:]
    assert skipped is None, said[-2000:]


TRAININGS = """
    import os, statistics, sys
    from pathlib import Path

    import torch
    from tiny import SCHEDULE, STEPS, checkpoints, differences, load, tiny_config, train

    from aire_nerfstudio import record
    from aire_nerfstudio.models.trainer import AdaptiveTrainer

    task, is_graph, folder = sys.argv[1], sys.argv[2] == "graph", Path(sys.argv[3])
    emulated = sys.modules.get("emulated_device")

    def configured(name, **trainer):
        config = tiny_config(task, folder / name, {"cuda_graph": is_graph}, **trainer)
        config.machine.device_type = "cuda"
        return config

    whole = configured("whole")
    trainer = train(whole)
    devices = {p.device.type for p in trainer.pipeline.model.parameters()}
    assert devices == {"cuda"}, devices

    # Resumed from each of its checkpoints, a run ends as the uninterrupted one.
    end = load(checkpoints(whole)[-1])
    for at in (1, 3):
        step = int(checkpoints(whole)[at].stem.removeprefix("step-"))
        again = configured(f"from {at}", load_dir=whole.get_checkpoint_dir(), load_step=step)
        train(again)
        found = differences(load(checkpoints(again)[-1]), end)
        # Sums of a GPU may come in any order.
        assert not found or emulated is None, (at, found[:5])
    if emulated is None:
        print("trained")
        sys.exit()

    # The host runs ahead of the device: it waits where the faults of many steps are looked for, and for little else.
    record.RunRecord.is_due = lambda self, step: False
    train_iteration, waits = AdaptiveTrainer.train_iteration, []

    def counted(self, at):
        before = len(emulated.STATE.waits)
        result = train_iteration(self, at)
        waits.append(emulated.STATE.waits[before:])
        return result

    AdaptiveTrainer.train_iteration = counted
    train(configured("counted"))
    assert len(waits) == STEPS
    quiet = sum(not each for each in waits)
    print("steps without a wait:", quiet, "of", STEPS)
    # All but evaluations, checkpoints, changes of the architecture, captures and looks for faults, in so short a run.
    if task == "nerf" and not is_graph:
        assert statistics.median(map(len, waits)) <= 5, waits
    else:
        assert quiet > 0.4 * STEPS, waits
        in_decay = [not each for each in waits[SCHEDULE["decay_start"] + 1 : SCHEDULE["prune_at"]]]
        print("of the decay's steps", sum(in_decay), "of", len(in_decay))
        assert sum(in_decay) > 0.4 * len(in_decay), waits
    print("trained", flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize(
    ("task", "how"),
    [("nerf", "plain"), ("nerf", "graph"), ("image", "graph"), ("sdf", "graph"), ("flow", "graph")],
)
def test_training_there_resumes_and_does_not_wait(device, tmp_path, task, how):
    assert "trained" in _python(device, TRAININGS, task, how, tmp_path)
