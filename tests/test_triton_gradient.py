"""Value and gradient by Triton: right in its interpreter and on CUDA, compiled for Hopper without spills."""

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

CHECKS = Path(__file__).with_name("checks_triton_gradient.py")


def _check(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", CHECKS, *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "checked" in done.stdout


@pytest.mark.parametrize("activation", ["siren", "finer"])
def test_the_interpreter_finds_the_references_outputs_and_gradients(activation):
    _check(activation, "cpu", TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("activation", ["siren", "finer"])
def test_cuda_finds_the_references_outputs_and_gradients(activation):
    _check(activation, "cuda")


def test_only_cuda_at_medium_precision_takes_it(monkeypatch):
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
