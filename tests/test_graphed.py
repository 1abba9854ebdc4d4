"""Losses as CUDA graphs: captured once for each set of tensors and shapes, and equal to what they were made of."""

import copy

import pytest
import torch

from aire_nerfstudio.adaptation import surgery
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.losses import FlowWeights, flow_loss
from aire_nerfstudio.method_configs.image import aire_image_siren
from aire_nerfstudio.models.image import image_error
from aire_nerfstudio.models.trainer import AdaptiveTrainer
from aire_nerfstudio.ops import graphed
from aire_nerfstudio.ops.graphed import GraphedLoss

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def captures(monkeypatch):
    """Shapes of the tensors of each capture."""
    made = []

    class Watched(graphed._Graph):
        def __init__(self, network, loss, tensors):
            made.append(tuple(tuple(t.shape) for t in tensors))
            super().__init__(network, loss, tensors)

    monkeypatch.setattr(graphed, "_Graph", Watched)
    return made


def _batch(n, device="cuda"):
    return torch.rand(n, 2, device=device), torch.rand(n, 3, device=device)


@NEEDS_CUDA
def test_a_graph_is_captured_for_each_shape_and_again_after_surgery(captures):
    network, loss = SineMLP(2, (8, 8), 3).cuda(), GraphedLoss(image_error)
    for count in (32, 32, 20, 32, 20):
        batch = _batch(count)
        assert torch.allclose(loss(network, *batch)["error"], image_error(network, *batch)["error"])
    assert captures == [((32, 2), (32, 3)), ((20, 2), (20, 3))]
    # Nothing may hold on to the parameters: what is exchanged must be nobody's.
    surgery.prune(network.neuron_groups("image")[0], torch.tensor([1, 5], device="cuda"), [])
    loss(network, *_batch(32))
    loss(network, *_batch(32))
    assert captures[2:] == [((32, 2), (32, 3))]
    torch.set_float32_matmul_precision("high")
    loss(network, *_batch(32))
    torch.set_float32_matmul_precision("highest")
    loss(network, *_batch(32))
    assert len(captures) == 4
    with torch.no_grad():
        loss(network, *_batch(7))
    assert len(captures) == 4


@NEEDS_CUDA
def test_gradients_are_those_of_the_last_call_and_only_of_it():
    network, loss = SineMLP(2, (8, 8), 3).cuda(), GraphedLoss(_two_terms)
    batches = [_batch(64), _batch(64)]
    for batch in batches:
        for factor in (1.0, -3.0):
            found = []
            for function in (_two_terms, loss):
                terms = function(network, *batch)
                total = factor * terms["error"] + 2 * terms["size"]
                found.append(torch.autograd.grad(total, list(network.parameters()), allow_unused=True))
            for expected, got in zip(*found, strict=True):
                assert torch.allclose(got, expected, rtol=1e-5, atol=1e-7)
    # What a step's losses were stays, whatever comes after.
    first = loss(network, *batches[0])
    kept = first["error"].detach().clone()
    second = loss(network, *batches[1])
    assert torch.equal(first["error"], kept)
    assert not torch.equal(second["error"], kept)
    with pytest.raises(RuntimeError, match="gives gradients once"):
        first["error"].backward()
    kept = torch.autograd.grad(second["error"], list(network.parameters()), retain_graph=True, allow_unused=True)
    copies = [g.clone() for g in kept if g is not None]
    with pytest.raises(RuntimeError, match="gives gradients once"):
        second["size"].backward()
    loss(network, *batches[0])["error"].backward()
    assert all(torch.equal(a, b) for a, b in zip((g for g in kept if g is not None), copies, strict=True))
    before = [p.grad.clone() for p in network.parameters()]
    network.zero_grad(set_to_none=False)
    loss(network, *batches[0])["error"].backward()
    assert all(torch.allclose(a, p.grad) for a, p in zip(before, network.parameters(), strict=True))


@NEEDS_CUDA
def test_frozen_parameters_get_no_gradient():
    network, loss = SineMLP(2, (8, 8), 3).cuda(), GraphedLoss(image_error)
    frozen = network.affines()[0].weight
    frozen.requires_grad_(False)
    loss(network, *_batch(64))["error"].backward()
    assert frozen.grad is None
    assert all(p.grad is not None for p in network.parameters() if p is not frozen)
    network.requires_grad_(False)
    batch = _batch(64)
    assert torch.equal(loss(network, *batch)["error"], image_error(network, *batch)["error"])


def _two_terms(network, x, target):
    return {"error": (network(x) - target).square().mean(), "size": network.affines()[-1].weight.square().sum()}


def test_elsewhere_the_loss_is_called_as_it_is(captures):
    network, loss = SineMLP(2, (8,), 3), GraphedLoss(image_error)
    x, target = torch.rand(10, 2), torch.rand(10, 3)
    loss(network, x, target)["error"].backward()
    assert captures == []
    assert all(p.grad is not None for p in network.parameters())


def test_graphs_refuse_gradients_that_are_added_up():
    """A replay writes them anew: what was there before would be lost."""
    specification = copy.deepcopy(aire_image_siren).config
    specification.pipeline.model.cuda_graph = True
    specification.gradient_accumulation_steps = {"fields": 2}
    with pytest.raises(SystemExit, match="gradient-accumulation-steps"):
        AdaptiveTrainer(specification)


@NEEDS_CUDA
@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_training_through_graphs_and_a_surgery_is_training_without(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        ends = []
        for loss in (image_error, GraphedLoss(image_error)):
            torch.manual_seed(0)
            network = SineMLP(2, (40, 24), 3).cuda()
            optimizer = torch.optim.Adam(network.parameters(), 1e-3)
            for step in range(16):
                generator = torch.Generator("cuda").manual_seed(step)
                count = 1024 if step % 5 else 1100
                x = 2 * torch.rand(count, 2, device="cuda", generator=generator) - 1
                optimizer.zero_grad()
                loss(network, x, torch.rand(count, 3, device="cuda", generator=generator))["error"].backward()
                optimizer.step()
                if step == 8:
                    surgery.prune(network.neuron_groups("image")[0], torch.arange(9, device="cuda"), [optimizer])
            ends.append([p.detach().clone() for p in network.parameters()])
        for a, b in zip(*ends, strict=True):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)
    finally:
        torch.set_float32_matmul_precision(before)


@NEEDS_CUDA
def test_a_flow_through_a_graph():
    network = SineMLP(4, (32, 32), 1).cuda()
    points, normals = 2 * torch.rand(600, 4, device="cuda") - 1, torch.rand(200, 3, device="cuda")
    distances = torch.rand(200, device="cuda")

    def loss(network, *batch):
        return flow_loss(network, *batch, 1e-3, FlowWeights())

    found = []
    for function in (loss, graphed.GraphedLoss(loss)):
        network.zero_grad()
        torch.stack(list(function(network, points, normals, distances).values())).sum().backward()
        found.append([p.grad.clone() for p in network.parameters()])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))
