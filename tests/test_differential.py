"""Derivatives in closed form against autograd, in double precision, and against geometry."""

import pytest
import torch

from aire_nerfstudio.fields.differential import (
    curvature_sum,
    derivatives,
    gradient_and_motion,
    motion,
    value_and_gradient,
    value_gradient_hessian,
)
from aire_nerfstudio.fields.sine_mlp import SineMLP


def _network(activation, d=3, widths=(7, 5, 6), out=1):
    torch.manual_seed(2)
    return SineMLP(d, widths, out, activation, 3.0, 2.5, detach_finer_scale=True).double()


def _autograd(network, x):
    """Gradient and Hessian by autograd alone, FINER exact."""
    network.detach_finer_scale = False
    x = x.clone().requires_grad_()
    f = network(x).squeeze(-1)
    (gradient,) = torch.autograd.grad(f.sum(), x, create_graph=True)
    rows = [torch.autograd.grad(g.sum(), x, create_graph=True)[0] for g in gradient.unbind(-1)]
    return f, gradient, torch.stack(rows, 1)


@pytest.mark.parametrize("widths", [(7, 5, 6), (4,), (1, 1)])
@pytest.mark.parametrize("activation", ["siren", "finer", "spder"])
def test_gradients_and_those_of_a_loss_on_them_are_autograds(activation, widths):
    network = _network(activation, widths=widths)
    x = torch.rand(11, 3, dtype=torch.double) * 2 - 1
    f, gradient = value_and_gradient(network, x)
    mine = torch.autograd.grad(
        (gradient.norm(dim=-1) - 1).square().mean() + f.square().mean(), list(network.parameters())
    )
    f_true, gradient_true, _ = _autograd(network, x)
    loss = (gradient_true.norm(dim=-1) - 1).square().mean() + f_true.square().mean()
    true = torch.autograd.grad(loss, list(network.parameters()))
    assert torch.allclose(f, f_true, atol=1e-12)
    assert torch.allclose(gradient, gradient_true, atol=1e-11)
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(mine, true, strict=True))


@pytest.mark.parametrize("axes", [None, (0, 1, 2), (1,)])
@pytest.mark.parametrize("activation", ["siren", "finer"])
def test_hessians_and_those_of_a_loss_on_them_are_autograds(activation, axes):
    network = _network(activation, d=4)
    x = torch.rand(9, 4, dtype=torch.double) * 2 - 1
    f, gradient, hessian = value_gradient_hessian(network, x, axes)
    mine = torch.autograd.grad(
        hessian.square().sum() + gradient.square().sum(), list(network.parameters()), allow_unused=True
    )
    f_true, gradient_true, hessian_true = _autograd(network, x)
    chosen = list(range(4)) if axes is None else list(axes)
    hessian_true = hessian_true[:, chosen][:, :, chosen]
    true = torch.autograd.grad(
        hessian_true.square().sum() + gradient_true.square().sum(), list(network.parameters()), allow_unused=True
    )
    assert torch.allclose(f, f_true, atol=1e-12)
    assert torch.allclose(gradient, gradient_true, atol=1e-11)
    assert torch.allclose(hessian, hessian_true, atol=1e-9)
    for a, b in zip(mine, true, strict=True):
        assert (a is None) == (b is None) or float((a if b is None else b).abs().max()) == 0
        if a is not None and b is not None:
            assert torch.allclose(a, b, atol=1e-7)


@pytest.mark.parametrize("d", [3, 4])
@pytest.mark.parametrize("widths", [(7, 5, 6), (4,)])
@pytest.mark.parametrize("activation", ["siren", "finer"])
def test_the_motion_of_level_sets_and_losses_on_it_are_autograds(activation, widths, d):
    network = _network(activation, d=d, widths=widths)
    x = torch.rand(12, d, dtype=torch.double) * 2 - 1
    gradient, found = gradient_and_motion(network, x)
    loss = found.square().sum() + gradient.square().sum()
    mine = torch.autograd.grad(loss, list(network.parameters())[:-1])
    _, gradient_true, hessian = _autograd(network, x)
    true_motion = motion(gradient_true[:, :3], hessian[:, :3, :3])
    loss = true_motion.square().sum() + gradient_true.square().sum()
    true = torch.autograd.grad(loss, list(network.parameters())[:-1])
    assert torch.allclose(gradient, gradient_true, atol=1e-11)
    assert torch.allclose(found, true_motion, atol=1e-10)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(mine, true, strict=True))


def test_curvature_of_spheres_and_tori():
    x = torch.randn(50, 3, dtype=torch.double)

    def exact(field, x):
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(field(x).sum(), x, create_graph=True)
        rows = [torch.autograd.grad(g.sum(), x, retain_graph=True)[0] for g in gradient.unbind(-1)]
        return gradient.detach(), torch.stack(rows, 1)

    radius = x.norm(dim=-1)
    assert torch.allclose(curvature_sum(*exact(lambda p: p.norm(dim=-1), x)), 2 / radius)
    # Not a distance, the same level sets.
    assert torch.allclose(curvature_sum(*exact(lambda p: p.square().sum(-1), x)), 2 / radius)

    def torus(p):
        return torch.hypot(torch.hypot(p[:, 0], p[:, 1]) - 1, p[:, 2]) - 0.3

    angle = torch.linspace(0, 6, 20, dtype=torch.double)
    ring = 1 + 0.3 * torch.cos(angle)
    points = torch.stack([ring, torch.zeros_like(ring), 0.3 * torch.sin(angle)], -1)
    assert torch.allclose(curvature_sum(*exact(torus, points)), 1 / 0.3 + torch.cos(angle) / ring)


def test_what_has_no_such_derivative_is_refused():
    x = torch.zeros(2, 3, dtype=torch.double)
    with pytest.raises(ValueError, match="2 outputs"):
        value_and_gradient(_network("siren", out=2), x)
    with pytest.raises(ValueError, match="2 outputs"):
        value_gradient_hessian(_network("siren", out=2), x)
    for function in (value_gradient_hessian, gradient_and_motion):
        with pytest.raises(ValueError, match="not bounded near 0"):
            function(_network("spder"), x)
    with pytest.raises(ValueError, match="2 inputs"):
        gradient_and_motion(SineMLP(2, (8,), 1), x[:, :2].float())


def test_spder_is_finite_at_zero():
    value, slope, _ = derivatives(torch.zeros(3), "spder", 30.0, 1)
    assert torch.equal(value, torch.zeros(3))
    assert torch.equal(slope, torch.zeros(3))
