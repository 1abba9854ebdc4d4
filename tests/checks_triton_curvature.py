"""Gradient and mean-curvature motion by Triton against the reference in double precision.

python checks_triton_curvature.py siren|finer cpu|cuda      # cpu: with TRITON_INTERPRET=1
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from triton_oracle import ALLOWED, DEVICE, IS_SHORT, compare, done, relative, twins

from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops.mean_curvature import reference
from aire_nerfstudio.ops.triton_curvature import gradient_and_motion

# Odd widths, two to four layers, more rows than a program's share, fewer than one.
SHAPES = [((70, 33), 3, 150), ((20, 66, 10), 4, 65), ((12, 9, 5, 16), 4, 33), ((8, 64), 3, 7)]


def well_bent(network: SineMLP, d: int, rows: int) -> Tensor:
    """Points ``[rows, d]`` whose gradients are not small beside the others': elsewhere the normal's rounding is all."""
    x = 2 * torch.rand(20 * rows, d, device=DEVICE) - 1
    gradient, _ = reference(x, *network.for_ops()[:4])
    return x[gradient[:, :3].norm(dim=-1).argsort(descending=True)[: 10 * rows : 10]]


def outputs_and_gradients() -> None:
    """Of both outputs, of one alone, of small and of no gradients; the same bits again; without gradients too."""
    for widths, d, rows in SHAPES[:2] if IS_SHORT else SHAPES:
        torch.manual_seed(rows)
        network, exact = twins(widths, d)
        parameters, exact_parameters = list(network.parameters()), list(exact.parameters())
        x = well_bent(network, d, rows)
        ours, wanted = gradient_and_motion(x, *network.for_ops()[:4]), reference(x.double(), *exact.for_ops()[:4])
        compare(ours, wanted, 5e-3)
        with torch.no_grad():
            alone = gradient_and_motion(x, *network.for_ops()[:4])
        assert torch.equal(alone[0], ours[0])
        assert relative(alone[1], ours[1]) < 1e-3
        factors = 30 * torch.randn(d, rows, device=DEVICE).t(), torch.randn(rows, device=DEVICE)
        for gains in ((1e-9, 1e-9), *(((1, 0), (0, 1), (0, 0)) if rows < 50 else ())):
            losses = [
                sum(
                    gain * (output * factor).sum() for gain, output, factor in zip(gains, outputs, factors, strict=True)
                )
                for outputs in (ours, wanted)
            ]
            found = torch.autograd.grad(losses[0], parameters, retain_graph=True)
            expected = torch.autograd.grad(losses[1], exact_parameters, retain_graph=True, allow_unused=True)
            compare(found, expected, 2 * ALLOWED)
            again = torch.autograd.grad(losses[0], parameters[2:3], retain_graph=True)
            assert torch.equal(again[0], found[2])


def no_points_and_second_derivatives() -> None:
    """Empty outputs, gradients of 0; with ``create_graph`` gradients are the reference's."""
    network, _ = twins((20, 30), 3)
    gradient, motion = gradient_and_motion(torch.rand(0, 3, device=DEVICE), *network.for_ops()[:4])
    assert gradient.shape == (0, 3)
    assert motion.shape == (0,)
    for found in torch.autograd.grad(motion.sum() + gradient.sum(), list(network.parameters())):
        assert not found.any()
    asked = list(network.parameters())[:-1]
    x = well_bent(network, 3, 9)
    motions = [function(x, *network.for_ops()[:4])[1] for function in (gradient_and_motion, reference)]
    first, wanted = (torch.autograd.grad(motion.sum(), asked, create_graph=True) for motion in motions)
    compare(first, wanted, 1e-5)
    second, wanted = (torch.autograd.grad(grads[0].square().sum(), asked[0])[0] for grads in (first, wanted))
    assert relative(second, wanted) < 1e-5


def far_from_ones() -> None:
    """Networks between whose layers numbers are beyond float16's ends, and one without a normal anywhere."""
    torch.manual_seed(3)
    for omega, gain in ((100.0, 1e3), (10.0, 1e-6), (10.0, 1e4), (10.0, 0.0)):
        network, _ = twins((24, 24, 24), 3, omega)
        with torch.no_grad():
            network.affines()[-1].weight.mul_(gain)
        exact = copy.deepcopy(network).double()
        x = well_bent(network, 3, 65)
        outputs = gradient_and_motion(x, *network.for_ops()[:4])
        found = torch.autograd.grad(outputs[0].sum() + outputs[1].sum(), list(network.parameters()))
        assert all(torch.isfinite(t).all() for t in (*outputs, *found))
        if gain and omega < 100:
            wanted = reference(x.double(), *exact.for_ops()[:4])
            compare(outputs, wanted, 5e-3)
            loss = wanted[0].sum() + wanted[1].sum()
            compare(found, torch.autograd.grad(loss, list(exact.parameters()), allow_unused=True), 2 * ALLOWED)


outputs_and_gradients()
no_points_and_second_derivatives()
far_from_ones()
done()
