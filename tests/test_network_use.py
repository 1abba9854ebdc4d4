"""Sine networks in others' hands: arguments that do not fit, layers with hooks, torch.func."""

import pytest
import torch
from torch.func import jacfwd, jacrev, vmap
from torch.nn.utils import prune

from aire_nerfstudio.fields import differential
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops import mean_curvature, value_gradient
from aire_nerfstudio.ops.activations import activate, derivatives, spder
from aire_nerfstudio.ops.sine_network import mean_square_step, sine_network


@pytest.mark.parametrize("rows", [50, 200])
def test_what_shapes_do_not_say_is_checked_before_anything_is_read(rows):
    weights, biases, activation, omegas, _ = SineMLP(3, [40, 40, 40], 1).for_ops()
    x, target = torch.rand(rows, 3), torch.rand(rows, 1)
    for op in (
        sine_network,
        value_gradient.value_and_gradient,
        mean_curvature.gradient_and_motion,
        lambda x, *network: mean_square_step(x, target, *network),
    ):
        for wrong in ([30.0], [*omegas, 30.0], []):
            with pytest.raises(ValueError, match=f"3 sine layers need as many omegas; got {len(wrong)}"):
                op(x, weights, biases, activation, wrong)
        with pytest.raises(ValueError, match="4 weights needs a bias; got 3"):
            op(x, weights, [*biases[:-1], None], activation, omegas)
        with pytest.raises(ValueError, match="omegas must be numbers"):
            op(x, weights, biases, activation, [torch.tensor(30.0, requires_grad=True)] * 3)
        for no_omega in (0.0, -10.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="omegas must be positive"):
                op(x, weights, biases, activation, [30.0, no_omega, 30.0])
        with pytest.raises(ValueError, match="'relu' is unknown"):
            op(x, weights, biases, "relu", omegas)


def test_layers_with_hooks_are_called_or_refused():
    torch.manual_seed(0)
    network, x = SineMLP(3, [37, 33], 1), torch.randn(100, 3)
    prune.l1_unstructured(network.layers[1], "weight", 0.5)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    network(x).sum().backward()
    optimizer.step()  # the pruned weight is computed again when the layer is called
    torch.testing.assert_close(network.first_output(x), network(x).squeeze(-1))
    for derivative in (
        differential.value_and_gradient, differential.gradient_and_motion, differential.value_gradient_hessian
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"hooks.*prune\.remove"):
            derivative(network, x)
    prune.remove(network.layers[1], "weight")
    torch.testing.assert_close(differential.value_and_gradient(network, x)[0], network(x).squeeze(-1))


@pytest.mark.parametrize("activation", ["siren", "finer", "spder"])
def test_torch_func_goes_through_all_activations(activation):
    torch.manual_seed(0)
    network, x = SineMLP(2, [17, 13], 3, activation).double(), torch.rand(70, 2).double()
    torch.testing.assert_close(vmap(network)(x), network(x))
    jacobian = vmap(jacrev(network))(x)
    torch.testing.assert_close(jacobian, vmap(jacfwd(network))(x))
    points = x.clone().requires_grad_()
    torch.testing.assert_close(jacobian.sum(1), torch.autograd.grad(network(points).sum(), points)[0])
    if activation == "spder":
        z = torch.randn(40, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda z: spder(z, 3.0), z, check_forward_ad=True)
        with pytest.raises(ValueError, match="not bounded near 0"):
            derivatives(z, "spder", 3.0, 2)
    # Compiled as a whole; at 0, where a root's derivative has no bound, too.
    x[0] = 0
    compiled = torch.compile(lambda z: activate(z, activation, 3.0), fullgraph=True, backend="aot_eager")
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    for z, function in ((ours, compiled), (theirs, lambda z: activate(z, activation, 3.0))):
        function(z).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    with pytest.raises(ValueError, match="'sine' is unknown"):
        derivatives(x, "sine", 3.0, 1)
