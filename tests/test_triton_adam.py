"""Adam in two launches: torch's steps, counted and corrected alike, and what is not finite is told."""

import copy

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

SHAPES = [(70, 33), (5,), (1500,), (1, 1)]


def _parameters():
    return [torch.nn.Parameter(torch.randn(shape, device="cuda")) for shape in SHAPES]


def _gradients(parameters, scale=1.0):
    return [torch.randn_like(p) * scale for p in parameters]


def _numbers():
    rate, loss = (torch.full((), value, device="cuda") for value in (1e-2, 3.0))
    return rate, loss, torch.zeros((), dtype=torch.bool, device="cuda")


@pytest.mark.parametrize(("decay", "is_maximized"), [(0.0, False), (1e-2, True)])
def test_steps_are_those_of_a_double(decay, is_maximized):
    from aire_nerfstudio.ops.triton_adam import TritonAdam, is_possible

    ours = _parameters()
    exact = [p.detach().cpu().double() for p in ours]
    averages, squares = ([torch.zeros_like(p) for p in exact] for _ in range(2))
    optimizer = torch.optim.Adam(ours, 1e-2, fused=True, weight_decay=decay, maximize=is_maximized)
    step, (rate, loss, finite) = None, _numbers()
    for number in range(1, 8):
        gradients = _gradients(ours, 10.0 ** (1 - number))
        for i, gradient in enumerate(gradients):
            g = gradient.cpu().double()
            g = (-g if is_maximized else g) + decay * exact[i]
            averages[i] = 0.9 * averages[i] + 0.1 * g
            squares[i] = 0.999 * squares[i] + 0.001 * g * g
            size = (squares[i] / (1 - 0.999**number)).sqrt() + 1e-8
            exact[i] = exact[i] - 1e-2 * averages[i] / (1 - 0.9**number) / size
        if step is None:
            # torch's first step makes the moments.
            for p, gradient in zip(ours, gradients, strict=True):
                p.grad = gradient.clone()
            optimizer.step()
            states = [optimizer.state[p] for p in ours]
            assert is_possible(ours, states)
            step = TritonAdam(ours, states, optimizer.param_groups[0])
            before = copy.deepcopy(ours)
            step(rate, loss, finite)
            assert all(torch.equal(a, b) for a, b in zip(ours, before, strict=True))  # not aimed yet
            continue
        step.aim(gradients)
        step(rate, loss, finite)
        assert bool(finite)
    for p, wanted, state in zip(ours, exact, states, strict=True):
        assert float(state["step"]) == 7
        assert (p.detach().cpu().double() - wanted).norm() < 1e-6 * wanted.norm()


def test_what_is_not_finite_is_told():
    from aire_nerfstudio.ops.triton_adam import TritonAdam

    parameters = _parameters()
    before, gradients = copy.deepcopy(parameters), _gradients(parameters)
    step, (rate, loss, finite) = TritonAdam(parameters, None, None), _numbers()
    step.aim(gradients)
    step(rate, loss, finite)
    assert bool(finite)
    for value in (float("nan"), float("inf"), -float("inf")):
        gradients[2][1300] = value
        step(rate, loss, finite)
        assert not bool(finite)
        gradients[2][1300] = 1.0
        step(rate, torch.full((), value, device="cuda"), finite)
        assert not bool(finite)
        step(rate, loss, finite)
        assert bool(finite)
    assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))


def test_tensors_elsewhere_are_left_to_torch():
    from aire_nerfstudio.ops.triton_adam import is_possible

    parameters = _parameters()
    assert is_possible(parameters, None)
    assert not is_possible([], None)
    assert not is_possible([parameters[0].t()], None)
    assert not is_possible([parameters[0].double()], None)
    assert not is_possible([parameters[0], parameters[1].cpu()], None)
