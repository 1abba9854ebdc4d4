"""Value and gradient by Triton against the reference in double precision; run by test_triton_derivatives.py.

python checks_triton_gradient.py siren|finer cpu|cuda      # cpu: with TRITON_INTERPRET=1
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from triton_oracle import ALLOWED, DEVICE, IS_SHORT, compare, done, relative, twins

from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops.triton_gradient import value_and_gradient
from aire_nerfstudio.ops.value_gradient import reference

# Odd widths, two to four layers, coordinates 1 to 4, more rows than a program's share, fewer than one.
SHAPES = [((70, 33), 3, 200), ((20, 66, 10), 4, 129), ((31, 12, 5, 9), 2, 65), ((1, 1), 1, 65), ((8, 64), 3, 7)]


def both(network: SineMLP, exact: SineMLP, x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Ours and the reference's."""
    return value_and_gradient(x, *network.for_ops()[:4]), reference(x.double(), *exact.for_ops()[:4])


def outputs_and_gradients() -> None:
    """Of both outputs, of one alone, of small and of no gradients; the same bits again; without gradients too."""
    for widths, d, rows in SHAPES[:3] if IS_SHORT else SHAPES:
        torch.manual_seed(rows)
        network, exact = twins(widths, d)
        parameters, exact_parameters = list(network.parameters()), list(exact.parameters())
        x = 2 * torch.rand(rows, d, device=DEVICE) - 1
        ours, wanted = both(network, exact, x)
        compare(ours, wanted, 3e-3)
        with torch.no_grad():
            for a, b in zip(value_and_gradient(x, *network.for_ops()[:4]), ours, strict=True):
                assert torch.equal(a, b)
        factors = torch.randn(rows, device=DEVICE), torch.randn(d, rows, device=DEVICE).t() / 30
        for gains in ((1e-9, 1e-9), *(((1, 0), (0, 1), (0, 0)) if rows < 100 else ())):
            losses = [
                sum(
                    gain * (output * factor).sum() for gain, output, factor in zip(gains, outputs, factors, strict=True)
                )
                for outputs in (ours, wanted)
            ]
            found = torch.autograd.grad(losses[0], parameters, retain_graph=True)
            compare(found, torch.autograd.grad(losses[1], exact_parameters, retain_graph=True), ALLOWED)
            again = torch.autograd.grad(losses[0], parameters[2:3], retain_graph=True)
            assert torch.equal(again[0], found[2])


def no_points() -> None:
    """Empty outputs, gradients of 0."""
    network, _ = twins((20, 30), 3)
    value, gradient = value_and_gradient(torch.rand(0, 3, device=DEVICE), *network.for_ops()[:4])
    assert value.shape == (0,)
    assert gradient.shape == (0, 3)
    for found in torch.autograd.grad(value.sum() + gradient.sum(), list(network.parameters())):
        assert not found.any()


def far_from_ones() -> None:
    """Layers between which gradients are beyond float16's largest number or below its smallest, and layers of zeros."""
    torch.manual_seed(3)
    x = 2 * torch.rand(70, 2, device=DEVICE) - 1
    for omega, spread, gain in (
        (300.0, 0.3, 200.0),
        (0.1, 1.0, 1e-8),
        (10.0, 0.03, 0.0),
        (10.0, 0.0, 1.0),
        (10.0, 0.03, 1e4),
    ):
        network, _ = twins((24, 24, 24), 2, omega)
        with torch.no_grad():
            for layer in network.affines()[1:-1]:
                layer.weight.normal_(0, spread)
            network.affines()[-1].weight.mul_(gain)
        exact = copy.deepcopy(network).double()
        (value, gradient), wanted = both(network, exact, x)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()
        found = torch.autograd.grad(value.sum() + gradient.square().sum(), list(network.parameters()))
        assert all(torch.isfinite(g).all() for g in found)
        if omega < 100:  # else float16's phases say nothing any more
            compare((value, gradient), wanted, 2e-3)
            expected = torch.autograd.grad(wanted[0].sum() + wanted[1].square().sum(), list(exact.parameters()))
            # Sums over points of either sign.
            compare(found, expected, 2 * ALLOWED)


def rows_beside_a_large_one() -> None:
    """What all rows but one leave in the weights, when the loss's gradient of that one is 10,000 times as large."""
    torch.manual_seed(4)
    network, exact = twins((24, 24, 24), 3, 100.0)
    x = 2 * torch.rand(65, 3, device=DEVICE) - 1
    factors = torch.randn(65, 3, device=DEVICE)
    factors[7] *= 1e4
    others = factors.clone()
    others[7] = 0
    (_, ours), (_, wanted) = both(network, exact, x)
    middle = list(network.parameters())[2:4]
    found = torch.autograd.grad((ours * factors).sum(), middle, retain_graph=True)
    large = torch.autograd.grad((wanted * (factors - others)).sum(), list(exact.parameters())[2:4], retain_graph=True)
    expected = torch.autograd.grad((wanted * others).sum(), list(exact.parameters())[2:4])
    for a, b, c in zip(found, large, expected, strict=True):
        # Float16's rounding of the large one's part is not theirs to lose digits by.
        assert float((a.double() - b - c).norm()) < ALLOWED * float(c.norm()) + 2e-3 * float(b.norm())


def an_infinite_point() -> None:
    """Spoils its own row alone."""
    network, _ = twins((20, 30), 3)
    x = 2 * torch.rand(70, 3, device=DEVICE) - 1
    x[5] = float("inf")
    with torch.no_grad():
        value, gradient = value_and_gradient(x, *network.for_ops()[:4])
    is_sound = torch.isfinite(value) & torch.isfinite(gradient).all(-1)
    assert is_sound.nonzero().flatten().tolist() == [i for i in range(70) if i != 5]


def derivatives_of_gradients() -> None:
    """With ``create_graph``."""
    network, exact = twins((12, 9), 2, 5.0)
    x = torch.rand(80, 2, device=DEVICE)
    seconds = []
    for net, (value, gradient) in zip((network, exact), both(network, exact, x), strict=True):
        parameters = list(net.parameters())
        loss = value.square().sum() + gradient.square().sum()
        (first,) = torch.autograd.grad(loss, parameters[:1], create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), parameters, allow_unused=True))
    for a, b in zip(*seconds, strict=True):
        # The outputs that the loss squares are float16's.
        assert (a is None and b is None) or relative(a, b) < ALLOWED


outputs_and_gradients()
no_points()
far_from_ones()
derivatives_of_gradients()
rows_beside_a_large_one()
an_infinite_point()
done()
