"""Losses as CUDA graphs: captured once for each set of tensors and shapes, and equal to what they were made of."""

import copy

import pytest
import torch

from aire_nerfstudio.adaptation import surgery
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.losses import FlowWeights, flow_loss
from aire_nerfstudio.method_configs.image import aire_image_siren
from aire_nerfstudio.models import graphed
from aire_nerfstudio.models.graphed import GraphedLoss
from aire_nerfstudio.models.image import image_error
from aire_nerfstudio.models.trainer import AdaptiveTrainer

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class _OnCuda(torch.Tensor):
    """A tensor that says it is on CUDA, so that the choice of what is captured runs here."""

    @property
    def device(self):
        return torch.device("cuda")


@pytest.fixture
def captures(monkeypatch):
    """Captures are recorded instead, and replays are the module's own call."""
    made = []

    def record(module, samples, **options):
        made.append(tuple(tuple(sample.shape) for sample in samples))
        module(*samples)
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    return made


def _batch(n):
    return torch.rand(n, 2).as_subclass(_OnCuda), torch.rand(n, 3).as_subclass(_OnCuda)


def test_a_graph_is_captured_for_each_shape_and_again_after_surgery(captures):
    network, loss = SineMLP(2, (8, 8), 3), GraphedLoss(image_error)
    for count in (32, 32, 20, 32, 20):
        batch = _batch(count)
        assert torch.equal(loss(network, *batch)["error"], image_error(network, *batch)["error"])
    assert captures == [((32, 2), (32, 3)), ((20, 2), (20, 3))]
    surgery.prune(network.neuron_groups("image")[0], torch.tensor([1, 5]), [])
    loss(network, *_batch(32))
    loss(network, *_batch(32))
    assert captures[2:] == [((32, 2), (32, 3))]
    with torch.no_grad():
        loss(network, *_batch(7))
    assert len(captures) == 3


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
            network = SineMLP(2, (64, 48), 3).cuda()
            optimizer = torch.optim.Adam(network.parameters(), 1e-3)
            for step in range(40):
                generator = torch.Generator("cuda").manual_seed(step)
                count = 2048 if step % 5 else 1500
                x = 2 * torch.rand(count, 2, device="cuda", generator=generator) - 1
                optimizer.zero_grad()
                loss(network, x, torch.rand(count, 3, device="cuda", generator=generator))["error"].backward()
                optimizer.step()
                if step == 20:
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
