"""Value and gradient, and mean curvature, by Triton: right in its interpreter and on CUDA."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops import triton_passes
from aire_nerfstudio.ops.value_gradient import value_and_gradient

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

OPS = ["gradient", "curvature", "scales"]


def _check(op, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", Path(__file__).with_name(f"checks_triton_{op}.py"), *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "checked" in done.stdout


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("activation", ["siren", "finer"])
def test_the_interpreter_finds_the_references_outputs_and_gradients(op, activation):
    _check(op, activation, "cpu", TRITON_INTERPRET="1")


@pytest.mark.parametrize("op", ["gradient", "curvature"])
def test_the_interpreter_finds_them_by_pointers(op):
    _check(op, "siren", "cpu", "pointers", TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("activation", ["siren", "finer"])
def test_cuda_finds_the_references_outputs_and_gradients(op, activation):
    _check(op, activation, "cuda")


def test_only_cuda_at_medium_precision_takes_them(monkeypatch):
    network = SineMLP(3, (16, 16), 1)
    x = torch.rand(2048, 3)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert not triton_passes.is_possible(x, *network.for_ops()[:3])
    # Where the plain network's kernels can be had, these can too, of networks that they know.
    monkeypatch.setattr(triton_passes.triton_network, "is_possible", lambda *_: True)
    assert triton_passes.is_possible(x, *network.for_ops()[:3])
    for other in (SineMLP(3, (16,), 1), SineMLP(3, (16, 16), 2), SineMLP(3, (16, 16), 1, "spder")):
        assert not triton_passes.is_possible(x, *other.for_ops()[:3])
    assert not triton_passes.is_possible(torch.rand(2048, 5), *SineMLP(5, (16, 16), 1).for_ops()[:3])
    assert not triton_passes.is_possible(x.clone().requires_grad_(), *network.for_ops()[:3])
    assert not triton_passes.is_possible(x[None], *network.for_ops()[:3])
    assert [t.shape for t in value_and_gradient(x[:0], *network.for_ops()[:4])] == [(0,), (0, 3)]
