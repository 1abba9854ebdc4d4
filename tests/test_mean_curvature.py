"""Gradient and mean-curvature motion in one compiled call against PyTorch in double precision, and against geometry."""

import pytest
import torch

from aire_nerfstudio.fields.differential import (
    gradient_and_motion,
    motion,
    value_gradient_hessian,
)
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.losses import FlowWeights, flow_loss
from aire_nerfstudio.ops import backend
from aire_nerfstudio.ops.mean_curvature import _MeanCurvature, reference


@pytest.fixture(autouse=True)
def _compiled(monkeypatch):
    monkeypatch.delenv("AIRE_OPS", raising=False)
    if backend.MEAN_CURVATURE.load() is None:
        pytest.skip(f"compiled ops cannot be had: {backend.MEAN_CURVATURE.reason}")


def _is_compiled(tensor):
    return isinstance(tensor.grad_fn, _MeanCurvature._backward_cls)


def _relative(got, expected):
    return float((got.detach().double() - expected.detach()).norm() / expected.detach().norm().clamp_min(1e-12))


def _twins(widths, d, activation, omega=20.0):
    network = SineMLP(d, widths, 1, activation, omega, omega)
    exact = SineMLP(d, widths, 1, activation, omega, omega)
    exact.load_state_dict(network.state_dict())
    return network, exact.double()


@pytest.mark.parametrize("activation", ["siren", "finer"])
@pytest.mark.parametrize(("widths", "d"), [((7,), 3), ((33, 64, 5), 3), ((40, 65), 4), ((97, 16, 64), 4)])
@pytest.mark.parametrize("rows", [64, 97, 300])
def test_outputs_and_gradients_are_those_of_pytorch_in_double(activation, widths, d, rows):
    torch.manual_seed(rows)
    network, exact = _twins(widths, d, activation)
    x = 2 * torch.rand(rows, d) - 1
    gg, gm = torch.randn(rows, d), torch.randn(rows) / 100
    gradient, moved = gradient_and_motion(network, x)
    assert _is_compiled(moved)
    # The oracle of the values is another way: the whole Hessian carried.
    _, true_gradient, hessian = value_gradient_hessian(exact, x.double(), (0, 1, 2))
    assert _relative(gradient, true_gradient) < 1e-5
    assert _relative(moved, motion(true_gradient[:, :3], hessian)) < 1e-4
    total = (true_gradient * gg.double()).sum() + (motion(true_gradient[:, :3], hessian) * gm.double()).sum()
    expected = torch.autograd.grad(total, list(exact.parameters())[:-1])
    found = torch.autograd.grad((gradient * gg).sum() + (moved * gm).sum(), list(network.parameters()))
    assert not found[-1].any()  # a constant moves nothing
    plain_gradient, plain_moved = reference(x, *network.for_ops()[:4])
    plain = torch.autograd.grad((plain_gradient * gg).sum() + (plain_moved * gm).sum(), list(network.parameters())[:-1])
    for a, b, c in zip(found, expected, plain, strict=False):
        assert _relative(a, b) < 5 * _relative(c, b) + 1e-4


@pytest.mark.parametrize("width", [20, 100])
def test_backward_twice_and_evaluations_give_the_same(width):
    """Of a narrow network nothing is kept between the two passes."""
    network, _ = _twins((width, 30), 4, "finer")
    points = torch.rand(200, 4)
    outputs = gradient_and_motion(network, points)
    loss, parameters = sum(o.square().sum() for o in outputs), list(network.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, parameters), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        for a, b in zip(outputs, gradient_and_motion(network, points), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("direction", [(0, 0, 1), (0, 0, -1), (0, 1, 0), (-1, 0, 0)])
def test_normals_along_an_axis(direction):
    """Of which the frame across them is made with care."""
    network, exact = _twins((20, 30), 4, "siren", 4.0)
    for net in (network, exact):
        with torch.no_grad():
            weight = net.affines()[0].weight
            weight[:, :3] = weight[:, 3:].abs() * torch.tensor(direction)
    x = (2 * torch.rand(100, 4) - 1) / 10
    gradient, moved = gradient_and_motion(network, x)
    _, true_gradient, hessian = value_gradient_hessian(exact, x.double(), (0, 1, 2))
    wanted = motion(true_gradient[:, :3], hessian)
    assert (moved - wanted).abs().max() < 1e-4 * hessian.norm(dim=(1, 2)).max()
    for g in torch.autograd.grad((gradient[:, 0] + moved).mean(), list(network.parameters())):
        assert g.isfinite().all()


def test_the_loss_of_a_flow_trains_as_in_double():
    torch.manual_seed(0)
    network, exact = _twins((48, 40), 4, "siren", 10.0)
    points = 2 * torch.rand(400, 4) - 1
    normals, distances = torch.nn.functional.normalize(torch.randn(100, 3), dim=-1), torch.rand(100)

    def gradients(net, kind):
        terms = flow_loss(net, points.to(kind), normals.to(kind), distances.to(kind), 1e-2, FlowWeights())
        return torch.autograd.grad(sum(terms.values()), list(net.parameters()))

    for a, b in zip(gradients(network, torch.float32), gradients(exact, torch.float64), strict=True):
        assert _relative(a, b) < 1e-4


@pytest.mark.parametrize("activation", ["siren", "finer"])
def test_the_references_second_derivatives_are_those_of_the_hessian(activation, monkeypatch):
    monkeypatch.setenv("AIRE_OPS", "off")
    _, network = _twins((9, 12), 4, activation, 4.0)
    x = (2 * torch.rand(70, 4) - 1).double().requires_grad_()
    parameters = list(network.parameters())[:-1]

    def second(gradient, moved):
        inputs = [x, *parameters]
        first = torch.autograd.grad((gradient.sum(-1) * moved).sum(), inputs, create_graph=True)
        return [*first, *torch.autograd.grad(sum(f.square().sum() for f in first), inputs)]

    found = second(*gradient_and_motion(network, x))
    _, gradient, hessian = value_gradient_hessian(network, x, (0, 1, 2))
    for a, b in zip(found, second(gradient, motion(gradient[:, :3], hessian)), strict=True):
        assert _relative(a, b) < 1e-8


def test_where_the_gradient_vanishes_nothing_blows_up():
    network, _ = _twins((20, 20), 3, "siren")
    with torch.no_grad():
        network.affines()[-1].weight.zero_()
    gradient, moved = gradient_and_motion(network, torch.rand(64, 3))
    assert not gradient.any()
    assert not moved.any()
    for g in torch.autograd.grad(gradient.sum() + moved.sum(), list(network.parameters())):
        assert g.isfinite().all()


def test_where_it_cannot_be_used_the_reference_is():
    network, exact = _twins((12,), 3, "siren")
    assert _is_compiled(gradient_and_motion(network, torch.rand(64, 3))[1])
    assert not _is_compiled(gradient_and_motion(network, torch.rand(63, 3))[1])
    assert not _is_compiled(gradient_and_motion(exact, torch.rand(64, 3).double())[1])
    assert not _is_compiled(gradient_and_motion(network, torch.rand(64, 3, requires_grad=True))[1])


def test_second_derivatives_are_the_references(monkeypatch):
    x, found = torch.rand(64, 3), []
    network, _ = _twins((12,), 3, "siren", omega=3.0)
    weight, last = network.affines()[0].weight, network.affines()[-1].bias
    for switch in ("on", "off"):
        monkeypatch.setenv("AIRE_OPS", switch)
        moved = gradient_and_motion(network, x)[1]
        first, unused = torch.autograd.grad(
            moved.square().mean(), (weight, last), create_graph=True, allow_unused=switch == "off"
        )
        assert unused is None or not unused.any()
        found.append((first, torch.autograd.grad(first.square().sum(), weight)[0]))
    for one, other in zip(*found, strict=True):
        assert _relative(one, other) < 1e-4


def test_points_of_another_dimension_are_an_error_and_not_garbage():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        gradient_and_motion(SineMLP(4, [64, 64], 1), torch.rand(1000, 3))
