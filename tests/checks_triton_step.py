"""A step of a SIREN taken block by block of rows, beside autograd in double precision: ``DEVICE WAY``."""

import copy
import os
import sys

import torch
import torch.utils.checkpoint

from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops import triton_mean_square as op
from aire_nerfstudio.ops import triton_step
from aire_nerfstudio.ops.sine_network import reference

DEVICE, WAY = sys.argv[1], int(sys.argv[2])
# Of gradients: float16's rounding of each layer's values makes so much of the phases of the next.
ALLOWED = 5e-3
# Odd widths, two to four layers, all numbers of coordinates and outputs, a row, full blocks and not.
SHAPES = [
    *[((70, 33), 2, 3, 150), ((33, 40), 1, 4, 1), ((130, 64, 31), 3, 1, 64), ((60, 64, 50, 40), 4, 2, 40)],
    *[((64, 64, 64), 2, 3, 129), ((200, 256, 180), 2, 3, 70), ((260, 40), 3, 4, 9)],
]


def relative(got, expected):
    """Distance over the expected one's size."""
    return float((got.detach().double() - expected.detach()).norm() / expected.detach().norm().clamp_min(1e-300))


def gradients(network, x, target, gain=1.0, **options):
    """The error, and its gradients."""
    error = op.triton_mean_square(x, target, *network.for_ops())
    assert type(error.grad_fn).__name__.startswith("_BlockByBlock"), error.grad_fn
    return error, torch.autograd.grad(gain * error, list(network.parameters()), **options)


def exactly(network, x, target, gain=1.0):
    """The same, in double precision."""
    exact = copy.deepcopy(network).double()
    error = (reference(x.double(), *exact.for_ops()) - target.double()).square().mean()
    return error, torch.autograd.grad(gain * error, list(exact.parameters()))


def check(network, x, target, gain=1.0, allowed=ALLOWED):
    """Error and gradients are right."""
    (error, found), (wanted, expected) = gradients(network, x, target, gain), exactly(network, x, target, gain)
    assert relative(error, wanted) < 2e-3, relative(error, wanted)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == torch.float32
        assert a.is_contiguous()
        assert relative(a, b) < allowed, (network.widths, a.shape, relative(a, b))
    return found


def extremes():
    """What gradients between layers, float16, might not hold, and what is asked for seldom."""
    # Outputs and targets of any size: gradients in between are float16.
    network = SineMLP(2, (64, 64, 40), 3, "siren", 30.0, 30.0).to(DEVICE)
    x = 2 * torch.rand(70, 2, device=DEVICE) - 1
    small, target = copy.deepcopy(network), torch.rand(70, 3, device=DEVICE)
    for factor in (1e-8, 1e4):
        with torch.no_grad():
            for ours, theirs in zip(small.affines()[-1].parameters(), network.affines()[-1].parameters(), strict=True):
                ours.copy_(theirs * factor)
        check(small, x, target * factor)
    check(network, x, target * 1e6)
    # Near the target, as after a long training, with one point far from it.
    with torch.no_grad():
        near = reference(x, *network.for_ops()) + 1e-2 * torch.randn_like(target)
        near[7] = 30
    check(network, x, near, allowed=2e-2)
    # Steep: what a layer can make of a gradient is bounded by its weights.
    steep = SineMLP(2, (64, 64, 64), 4, "siren", 30.0, 300.0).to(DEVICE)
    with torch.no_grad():
        for layer in steep.affines()[1:]:
            layer.weight.normal_(0, 0.3)
    found = gradients(steep, x, torch.rand(70, 4, device=DEVICE))[1]
    assert all(torch.isfinite(g).all() and g.any() for g in found)
    # Targets that lie in memory otherwise: what is measured is what will be computed.
    losses = []
    choose, op.fastest = op.fastest, lambda key, ways: (losses.extend(float(w()[0].sum()) for w in ways), WAY)[1]
    for given in (torch.rand(70, 1, device=DEVICE).expand(70, 3), torch.rand(70, 4, device=DEVICE)[:, :3]):
        check(small, x, given)
        right = float((reference(x, *small.for_ops()) - given).square().mean())
        assert all(abs(loss - right) < 1e-3 * right for loss in losses), (losses, right)
        losses.clear()
    op.fastest = choose
    # Checkpoints unpack what was saved once.
    again = torch.utils.checkpoint.checkpoint(
        lambda: op.triton_mean_square(x, target, *small.for_ops()), use_reentrant=False
    )
    expected = gradients(small, x, target)[1]
    for a, b in zip(torch.autograd.grad(again, list(small.parameters())), expected, strict=True):
        assert torch.equal(a, b)
    # Only what is wanted; derivatives of derivatives are the reference's.
    network.affines()[1].weight.requires_grad_(False)
    error = op.triton_mean_square(x, target, *network.for_ops())
    error.backward()
    assert network.affines()[1].weight.grad is None
    assert network.affines()[0].weight.grad is not None
    first = gradients(small, x, target, create_graph=True)[1]
    assert torch.autograd.grad(first[0].square().sum(), small.affines()[0].weight)[0].any()
    # A target of NaN is seen.
    target[3, 1] = float("nan")
    error, found = gradients(small, x, target)
    assert not torch.isfinite(error)
    assert not torch.isfinite(found[0]).all()


def main() -> None:
    """Check everything."""
    triton_step.FEWEST_ROWS = 1
    op.fastest = lambda key, ways: WAY
    for widths, d, out, rows in SHAPES:
        torch.manual_seed(rows)
        network = SineMLP(d, widths, out, "siren", 10.0, 10.0).to(DEVICE)
        x, target = 2 * torch.rand(rows, d, device=DEVICE) - 1, torch.rand(rows, out, device=DEVICE)
        found = check(network, x, target, 3.0)
        if widths != SHAPES[0][0]:
            continue
        again = gradients(network, x, target, 3.0)[1]
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        # Memory that is not zero to begin with changes nothing.
        kept = [torch.full((1 << 20,), float("nan"), device=DEVICE) for _ in range(4)]
        del kept
        again = gradients(network, x, target, 3.0)[1]
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    if WAY == 1:
        extremes()
    print("checked", flush=True)
    # With an emulated device, autograd's thread for it may still be there when libraries are unloaded.
    os._exit(0)


main()
