"""Value and gradient in one compiled call against the closed form and double backward, in double precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aire_nerfstudio.fields.differential import value_and_gradient
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.losses import SurfaceWeights, surface_loss
from aire_nerfstudio.ops import backend
from aire_nerfstudio.ops.value_gradient import _ValueGradient, reference


@pytest.fixture(autouse=True)
def _compiled(monkeypatch):
    monkeypatch.delenv("AIRE_OPS", raising=False)
    if backend.VALUE_GRADIENT.load() is None:
        pytest.skip(f"compiled ops cannot be had: {backend.VALUE_GRADIENT.reason}")


def _is_compiled(value):
    return isinstance(value.grad_fn, _ValueGradient._backward_cls)


def _relative(got, expected):
    return float((got.detach().double() - expected.detach()).norm() / expected.detach().norm().clamp_min(1e-12))


def _twins(widths, d, activation, omega=30.0):
    network = SineMLP(d, widths, 1, activation, omega, omega)
    exact = SineMLP(d, widths, 1, activation, omega, omega)
    exact.load_state_dict(network.state_dict())
    return network, exact.double()


def _by_double_backward(network, x):
    """The oracle: autograd of autograd."""
    points = x.clone().requires_grad_()
    value = network(points).squeeze(-1)
    (gradient,) = torch.autograd.grad(value.sum(), points, create_graph=True)
    return value, gradient


@pytest.mark.parametrize("activation", ["siren", "finer"])
@pytest.mark.parametrize(("widths", "d"), [((7,), 2), ((33, 64, 5), 3), ((40, 41), 4), ((16, 16, 64), 3), ((1, 1), 1)])
@pytest.mark.parametrize("rows", [64, 97, 1001])
def test_outputs_and_gradients_are_those_of_double_backward(activation, widths, d, rows):
    torch.manual_seed(rows)
    network, exact = _twins(widths, d, activation)
    x = 2 * torch.rand(rows, d) - 1
    gf, gg = torch.randn(rows), torch.randn(rows, d) / 30
    value, gradient = value_and_gradient(network, x)
    assert _is_compiled(value)
    true_value, true_gradient = _by_double_backward(exact, x.double())
    assert _relative(value, true_value) < 2e-5
    assert _relative(gradient, true_gradient) < 2e-5
    found = torch.autograd.grad((value * gf).sum() + (gradient * gg).sum(), list(network.parameters()))
    total = (true_value * gf.double()).sum() + (true_gradient * gg.double()).sum()
    expected = torch.autograd.grad(total, list(exact.parameters()))
    plain_value, plain_gradient = reference(x, *network.for_ops()[:4])
    plain = torch.autograd.grad((plain_value * gf).sum() + (plain_gradient * gg).sum(), list(network.parameters()))
    for a, b, c in zip(found, expected, plain, strict=True):
        # Sums that cancel lose digits in float32 whoever adds them up.
        assert _relative(a, b) < 5 * _relative(c, b) + 2e-5


def test_one_of_the_two_alone():
    network, exact = _twins((20, 30), 3, "siren")
    x = 2 * torch.rand(100, 3) - 1
    for which in (0, 1):
        found = torch.autograd.grad(
            value_and_gradient(network, x)[which].square().sum(), list(network.parameters()), allow_unused=True
        )
        expected = torch.autograd.grad(
            _by_double_backward(exact, x.double())[which].square().sum(), list(exact.parameters()), allow_unused=True
        )
        for a, b in zip(found, expected, strict=True):
            if b is None:
                assert a is None or not a.any()
            else:
                assert _relative(a, b) < 1e-4


def test_the_loss_of_a_surface_trains_as_with_the_reference():
    torch.manual_seed(0)
    network, exact = _twins((48, 40), 3, "siren", 20.0)
    x, normals, distances = 2 * torch.rand(300, 3) - 1, torch.randn(100, 3), torch.rand(200)
    normals = torch.nn.functional.normalize(normals, dim=-1)

    def gradients(net, kind):
        value, gradient = value_and_gradient(net, x.to(kind))
        terms = surface_loss(value, gradient, normals.to(kind), distances.to(kind), SurfaceWeights())
        return torch.autograd.grad(sum(terms.values()), list(net.parameters()))

    for a, b in zip(gradients(network, torch.float32), gradients(exact, torch.float64), strict=True):
        assert _relative(a, b) < 1e-4


def test_backward_twice_gives_the_same():
    network, _ = _twins((20, 30), 3, "finer")
    value, gradient = value_and_gradient(network, torch.rand(100, 3))
    loss = value.sum() + gradient.square().sum()
    parameters = list(network.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, parameters), strict=True):
        assert torch.equal(a, b)


def test_derivatives_of_the_gradients_themselves():
    network, exact = _twins((12, 9), 2, "siren", 5.0)
    x = torch.rand(80, 2)

    def second(net, points):
        parameters = list(net.parameters())
        value, gradient = value_and_gradient(net, points)
        first = torch.autograd.grad(value.square().sum() + gradient.square().sum(), parameters[:1], create_graph=True)
        return torch.autograd.grad(first[0].square().sum(), parameters, allow_unused=True)

    for a, b in zip(second(network, x), second(exact, x.double()), strict=True):
        assert (a is None and b is None) or _relative(a, b) < 1e-3


def test_where_it_cannot_be_used_the_reference_is():
    network, exact = _twins((12,), 3, "siren")
    assert _is_compiled(value_and_gradient(network, torch.rand(64, 3))[0])
    assert not _is_compiled(value_and_gradient(network, torch.rand(63, 3))[0])
    assert not _is_compiled(value_and_gradient(exact, torch.rand(64, 3).double())[0])
    assert not _is_compiled(value_and_gradient(SineMLP(3, [12], 1, "spder"), torch.rand(64, 3))[0])
    assert not _is_compiled(value_and_gradient(network, torch.rand(64, 3, requires_grad=True))[0])
    assert [tuple(t.shape) for t in value_and_gradient(network, torch.rand(0, 3))] == [(0,), (0, 3)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=4), st.integers(1, 8), st.integers(64, 700))
def test_any_shape(widths, d, rows):
    torch.manual_seed(0)
    network, exact = _twins(widths, d, "finer", 4.0)
    x = 2 * torch.rand(rows, d) - 1
    ways = [
        (value_and_gradient(network, x), network),
        (reference(x, *network.for_ops()[:4]), network),
        (reference(x.double(), *exact.for_ops()[:4]), exact),
    ]
    results = [
        [*outputs, *torch.autograd.grad(sum(o.square().mean() for o in outputs), list(net.parameters()))]
        for outputs, net in ways
    ]
    for ours, plain, true in zip(*results, strict=True):
        # Sums that cancel lose digits in float32 whoever adds them up.
        assert _relative(ours, true) < 5 * _relative(plain, true) + 1e-4


def test_points_of_another_dimension_are_an_error_and_not_garbage():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        value_and_gradient(SineMLP(4, [64, 64], 1), torch.rand(1000, 3))
