"""A SIREN's step block by block of rows, in Triton: right in its interpreter, on CUDA, in graphs; when it is taken."""

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aire_nerfstudio.adaptation import surgery
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops import fastest, triton_mean_square, triton_step
from aire_nerfstudio.ops.graphed import GraphedStep

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
HERE = Path(__file__).resolve().parent
WAYS = range(1, 1 + len(triton_step.TILES))


def _run(*command, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("way", WAYS)
def test_the_interpreter_finds_the_references_error_and_gradients(way):
    assert "checked" in _run(HERE / "checks_triton_step.py", "cpu", str(way), TRITON_INTERPRET="1")


@NEEDS_CUDA
@pytest.mark.parametrize("way", WAYS)
def test_cuda_finds_the_references_error_and_gradients(way):
    assert "checked" in _run(HERE / "checks_triton_step.py", "cuda", str(way))


COMPILE = """
import torch
from triton_compiling import SMALL, compiled, spills
from aire_nerfstudio.ops import triton_step

def step(width, layers, inputs, out):
    sizes = [inputs, *[width] * layers, out]
    weights = [torch.rand(b, a) for a, b in zip(sizes[:-1], sizes[1:])]
    biases = [torch.rand(n) for n in sizes[1:]]
    x, target = torch.rand(5000, inputs), torch.rand(5000, out)
    for tile in triton_step.tiles_for(triton_step.width_of(weights)):
        made = triton_step.Step(x, target, [*weights, *biases], (30.0,) * layers, tile)
        made.gradients_of(weights, biases, torch.ones(()))

for shape in ((256, 3, 2, 3), (60, 2, 4, 1)):
    for (name, _), kernel in compiled(lambda: step(*shape)).items():
        spilled, registers = spills(kernel)
        # A few numbers that are used once each.
        assert spilled <= 128, (name, shape, spilled)
        assert name not in {"step", "outer_product"} or "wgmma" in kernel.asm["ptx"], (name, shape)
        print(name, shape, registers, spilled, kernel.metadata.shared)
for kernel in compiled(lambda: step(256, 3, 2, 3), 86, {"step"}).values():
    assert kernel.metadata.shared <= SMALL, kernel.metadata.shared
"""


def test_it_compiles_for_hopper_with_tensor_cores_and_for_small_gpus(tmp_path):
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    said = _run("-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path), PYTHONPATH=paths)
    assert {"prepare", "bound", "step", "outer_product", "total", "step_sums"} <= {
        s.split()[0] for s in said.split("\n") if s
    }


def test_it_is_for_sirens_of_common_form():
    def may(network, rows=4096, inputs=2):
        return triton_step.is_possible(torch.empty(rows, inputs), network.for_ops()[0], 0)

    assert may(SineMLP(2, (16, 16), 3))
    assert may(SineMLP(4, (512, 3, 5, 7), 4), inputs=4)
    assert not may(SineMLP(2, (16, 16), 3), rows=4095)
    assert not may(SineMLP(2, (16,), 3))
    assert not may(SineMLP(2, (8,) * 5, 3))
    assert not may(SineMLP(2, (513, 8), 3))
    assert not may(SineMLP(5, (16, 16), 3), inputs=5)
    assert not may(SineMLP(2, (16, 16), 5))
    assert not triton_step.is_possible(torch.empty(4096, 2), SineMLP(2, (16, 16), 3, "finer").for_ops()[0], 1)
    for widest, padded in ((1, 64), (64, 64), (65, 128), (256, 256), (257, 512)):
        assert triton_step.width_of(SineMLP(2, (3, widest), 3).for_ops()[0]) == padded
    assert [tile["COLUMNS"] for tile in triton_step.tiles_for(64)] == [64, 64]


@pytest.fixture
def times(monkeypatch):
    """Milliseconds that ways are measured to take, by their number; those that were measured."""
    given, asked = {}, []
    monkeypatch.setattr(fastest, "_found", {})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def milliseconds(way):
        asked.append(way)
        return given[way]

    monkeypatch.setattr(fastest, "milliseconds", milliseconds)
    return given, asked


def test_the_fastest_is_measured_once(times):
    given, asked = times
    given |= {"first": 1.0, "second": 0.7, "third": 0.8, "broken": float("inf")}
    assert fastest.fastest("a", ["first", "second", "third"]) == 1
    assert fastest.fastest("a", ["first", "second", "third"]) == 1
    assert asked == ["first", "second", "third"]
    assert fastest.fastest("b", ["second", "first"]) == 0
    assert fastest.fastest("c", ["third", "broken", "second"]) == 2
    assert fastest.fastest("d", ["first"]) == 0
    # What differs by less than noise stays as it is.
    given["second"] = 0.96
    assert fastest.fastest("e", ["first", "second"]) == 0


def test_nothing_is_measured_in_a_capture_or_where_bits_are_to_stay(times, monkeypatch):
    given, asked = times
    given |= {"first": 1.0, "second": 0.5}
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert fastest.fastest("a", ["first", "second"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        assert fastest.fastest("a", ["first", "second"]) == 0
    assert not asked
    assert fastest.fastest("a", ["first", "second"]) == 1


@NEEDS_CUDA
def test_a_way_is_timed_and_one_that_is_too_large_is_not_taken():
    x = torch.rand(1 << 16, device="cuda")
    assert 0 < fastest.milliseconds(lambda: x.sin()) < 1e3

    def too_large():
        raise torch.cuda.OutOfMemoryError("too large")

    assert fastest.milliseconds(too_large) == float("inf")
    with pytest.raises(ZeroDivisionError):
        fastest.milliseconds(lambda: 1 // 0)
    assert float(torch.ones(3, device="cuda").sum()) == 3


@NEEDS_CUDA
@pytest.mark.parametrize("way", WAYS)
def test_in_a_graph_it_steps_as_without_and_through_a_surgery(way, monkeypatch):
    monkeypatch.setattr(triton_step, "FEWEST_ROWS", 1)
    monkeypatch.setattr(triton_mean_square, "fastest", lambda key, ways: way)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    torch.manual_seed(0)
    first = SineMLP(2, (12, 10), 3).cuda()
    second = copy.deepcopy(first)
    ours, theirs = (torch.optim.Adam(n.parameters(), 1e-3, fused=True) for n in (first, second))
    x, target = 2 * torch.rand(1100, 2, device="cuda") - 1, torch.rand(1100, 3, device="cuda")

    def plainly(network, optimizer):
        optimizer.zero_grad()
        error = network.mean_square_step(x, target)
        assert type(error.grad_fn).__name__.startswith("_BlockByBlock")
        error.backward()
        optimizer.step()
        return float(error)

    plainly(first, ours)
    plainly(second, theirs)
    step = GraphedStep(first, lambda network, _, x, t: ({"error": network.mean_square_step(x, t)}, {}), ours)
    for number in range(4):
        if number == 2:
            for network, optimizer in ((first, ours), (second, theirs)):
                surgery.prune(network.neuron_groups()[0], [1, 5], [optimizer])
        assert float(step(x, target).total) == pytest.approx(plainly(second, theirs), rel=1e-5)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
