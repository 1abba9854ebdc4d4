"""Counts, initialisation and derivatives of the sine networks."""

import math

import pytest
import torch

from aire_nerfstudio.fields.sine_layers import ACTIVATIONS, activate, finer, spder
from aire_nerfstudio.fields.sine_mlp import SineMLP, widths_in

# Every count of the method's table: (widths, in, out, parameters).
COUNTS = [
    ([512, 512, 512], 2, 3, 528_387),
    ([256, 512, 512], 2, 3, 396_547),
    ([512, 256, 256], 2, 3, 199_427),
    ([256, 256, 256], 3, 1, 132_865),
    ([128, 128, 256], 3, 1, 50_305),
    ([64, 64, 256], 3, 1, 21_313),
    ([256] * 4, 3, 1, 198_657),
    ([64, 64, 64, 256], 3, 1, 25_473),
    ([256, 256, 256], 4, 1, 133_121),
    ([192, 192, 256], 4, 1, 87_681),
    ([182, 182, 182], 3, 183, 100_829),
    ([91, 91, 182], 3, 183, 58_969),
    ([182, 182, 182], 185, 3, 101_013),
]


@pytest.mark.parametrize(("widths", "n_in", "n_out", "expected"), COUNTS)
def test_parameter_counts_are_the_published_ones(widths, n_in, n_out, expected):
    assert SineMLP(n_in, widths, n_out).num_parameters == expected


def count(widths, n_in, n_out):
    return SineMLP(n_in, widths, n_out).num_parameters


@pytest.mark.parametrize(
    ("large", "small", "n_in", "n_out", "percent"),
    [
        ([512] * 3, [256, 512, 512], 2, 3, 24.95),
        ([256] * 3, [128, 128, 256], 3, 1, 62.14),
        ([256] * 3, [64, 64, 256], 3, 1, 83.96),
        ([256] * 3, [192, 192, 256], 4, 1, 34.13),
    ],
)
def test_size_reductions(large, small, n_in, n_out, percent):
    assert 100 * (1 - count(small, n_in, n_out) / count(large, n_in, n_out)) == pytest.approx(percent, abs=0.005)


def test_nerf_reduction():
    colour = count([182] * 3, 185, 3)
    large = count([182] * 3, 3, 183) + colour
    pruned = count([91, 91, 182], 3, 183) + colour
    assert (large, pruned) == (201_842, 159_982)
    assert 100 * (1 - pruned / large) == pytest.approx(20.74, abs=0.005)


@pytest.mark.parametrize(("p", "percent"), [(0.2, 28), (0.4, 52), (0.6, 72), (0.8, 88)])
def test_reduction_by_pruned_share(p, percent):
    kept = 512 - round(p * 512)
    reduction = 100 * (1 - count([kept, kept, 512], 2, 3) / count([512] * 3, 2, 3))
    assert round(reduction) == percent


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("omega", [1.0, 30.0])
def test_derivative_against_finite_differences(activation, omega):
    z = torch.linspace(-1.3, 1.3, 41, dtype=torch.float64)
    z = z[z.abs() > 1e-3].requires_grad_()
    (grad,) = torch.autograd.grad(activate(z, activation, omega).sum(), z)
    h = 1e-6
    with torch.no_grad():
        numeric = (activate(z + h, activation, omega) - activate(z - h, activation, omega)) / (2 * h)
    torch.testing.assert_close(grad, numeric, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("activation", ["siren", "finer", "spder"])
def test_second_derivatives(activation):
    z = torch.tensor([-0.9, -0.31, 0.2, 0.77], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda t: activate(t, activation, 3.0), (z,))


def test_spder_at_zero_is_finite():
    z = torch.zeros(3, requires_grad=True)
    (grad,) = torch.autograd.grad(spder(z, 30.0).sum(), z, create_graph=True)
    assert grad.tolist() == [0, 0, 0]
    grad.sum().backward()
    assert torch.isfinite(z.grad).all()


def test_finer_detached_factor_is_the_published_backward():
    z = torch.tensor([0.3], requires_grad=True)
    (detached,) = torch.autograd.grad(finer(z, 30.0, detach_scale=True), z)
    (exact,) = torch.autograd.grad(finer(z, 30.0), z)
    expected = 30 * 1.3 * math.cos(30 * 1.3 * 0.3)
    assert detached.item() == pytest.approx(expected, rel=1e-4)
    assert exact.item() == pytest.approx(expected * 1.6 / 1.3, rel=1e-4)
    assert (round(detached.item(), 1), round(exact.item(), 1)) == (25.3, 31.1)


def test_initialisation_bounds():
    net = SineMLP(3, [400, 500], 7, first_omega=30, hidden_omega=20, first_bias_scale=0.25)
    first, hidden, last = net.layers
    for weight, bound in (
        (first.weight, 1 / 3),
        (hidden.weight, math.sqrt(6 / 400) / 20),
        (last.weight, math.sqrt(6 / 500) / 20),
        (first.bias, 0.25),
        (hidden.bias, 1 / math.sqrt(400)),
    ):
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.9 * bound


def test_forward_against_a_plain_formula():
    net = SineMLP(2, [5, 4], 3, first_omega=7.0, hidden_omega=3.0)
    x = torch.rand(2, 6, 2)
    a, b, c = net.layers
    h = torch.sin(7.0 * (x @ a.weight.T + a.bias))
    h = torch.sin(3.0 * (h @ b.weight.T + b.bias))
    torch.testing.assert_close(net(x), h @ c.weight.T + c.bias)
    assert net(x[:0]).shape == (0, 6, 3)


def test_widths_from_a_state_dict():
    net = SineMLP(2, [5, 4, 9], 3)
    assert widths_in({f"field.{k}": v for k, v in net.state_dict().items()}, "field.") == [5, 4, 9]
    with pytest.raises(KeyError):
        widths_in({}, "field.")


@pytest.mark.parametrize("widths", [[], [0], [3, -1]])
def test_bad_widths_are_refused(widths):
    with pytest.raises(ValueError, match="widths"):
        SineMLP(2, widths, 1)


def test_unknown_activation_is_refused(unchecked_shapes):
    with pytest.raises(ValueError, match=r"relu.*siren, finer, spder"):
        SineMLP(2, [3], 1, activation="relu")
