"""What PyTorch promises of an operation, held by the compiled ones: graphs of graphs, tracing, odd tensors, hooks."""

import ctypes
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops import backend, build, mean_curvature, processors, sine_network, value_gradient
from aire_nerfstudio.ops import compositing as composite
from aire_nerfstudio.ops.arguments import can_compile
from aire_nerfstudio.ops.occupancy import update_density_grid
from aire_nerfstudio.ops.ray_marching import Samples

ROWS = 77
OMEGAS = [2.0, 1.5]


@pytest.fixture(autouse=True, scope="module")
def _is_compiled():
    if backend.SINE_NETWORK.load() is None:
        pytest.skip(f"no compiled ops: {backend.SINE_NETWORK.reason}")


def _network(d, out, widths=(16, 16), seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = [d, *widths, out]
    weights = [torch.randn(n, k, generator=generator) / k**0.5 for k, n in pairwise(sizes)]
    return [w.requires_grad_() for w in weights], [(0.1 * w[:, 0]).detach().requires_grad_() for w in weights]


def _points(d, seed=1):
    return torch.rand(ROWS, d, generator=torch.Generator().manual_seed(seed))


def _close(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-9


def _twice(loss, parameters):
    """Gradients, and the gradient of their squares."""
    first = torch.autograd.grad(loss, parameters, create_graph=True)
    return first, torch.autograd.grad(sum(g.square().sum() for g in first), parameters)


@pytest.mark.parametrize("times", ["once", "twice"])
def test_points_that_depend_on_the_network_itself(times):
    weights, biases = _network(3, 3)

    def gradients(function):
        moved = _points(3) + function(_points(3), weights, biases, "siren", OMEGAS)
        loss = function(moved, weights, biases, "siren", OMEGAS).square().mean()
        return _twice(loss, weights)[times == "twice"]

    _close(gradients(sine_network.sine_network), gradients(sine_network.reference))


@pytest.mark.parametrize("op", ["network", "error", "gradient", "curvature"])
def test_one_weight_in_two_layers(op):
    weights, biases = _network(3, 1, (16, 16, 16))
    weights[2] = weights[1]
    x, omegas = _points(3), [2.0, 1.5, 1.5]

    def loss(is_compiled):
        if op == "error":
            if is_compiled:
                return sine_network.mean_square_step(x, x[:, :1], weights, biases, "siren", omegas)
            return (sine_network.reference(x, weights, biases, "siren", omegas) - x[:, :1]).square().mean()
        function = {
            "network": (sine_network.reference, sine_network.sine_network),
            "gradient": (value_gradient.reference, value_gradient.value_and_gradient),
            "curvature": (mean_curvature.reference, mean_curvature.gradient_and_motion),
        }[op][is_compiled]
        outputs = function(x, weights, biases, "siren", omegas)
        return sum(y.square().mean() for y in (outputs if isinstance(outputs, tuple) else [outputs]))

    asked = [weights[0], weights[1], weights[3], biases[0]]
    for found, wanted in zip(_twice(loss(True), asked), _twice(loss(False), asked), strict=True):
        _close(found, wanted)


def test_colours_that_depend_on_densities():
    starts = torch.linspace(0, 1, 40)
    samples = Samples(starts, starts + 0.02, torch.arange(40) // 10)

    def loss(function, asks):
        sigmas = torch.linspace(0.5, 3, 40).requires_grad_(asks != "colours")
        rgbs = sigmas.sin()[:, None].expand(-1, 3) if asks == "both" else torch.rand(40, 3).requires_grad_()
        _, colour, accumulation, _ = function(sigmas, rgbs, samples, 4)
        asked = rgbs if asks == "colours" else sigmas
        return torch.autograd.grad((colour.square().sum() + accumulation.sum()), asked, create_graph=True)

    for asks in ("both", "colours"):
        torch.manual_seed(0)
        found = loss(composite.composite_rays_train, asks)
        torch.manual_seed(0)
        _close(found, loss(composite.reference, asks))


def test_only_the_last_bias_is_asked_for():
    weights, biases = _network(3, 1)
    last = biases[-1]
    for tensor in (*weights, *biases[:-1]):
        tensor.requires_grad_(False)
    value, gradient = value_gradient.value_and_gradient(_points(3), weights, biases, "siren", OMEGAS)
    loss = value.square().mean() + gradient.square().mean()
    found = torch.autograd.grad(loss, last, create_graph=True)[0]
    assert torch.allclose(found, 2 * value.mean())


def test_a_network_that_asks_for_nothing_is_only_evaluated(monkeypatch):
    weights, biases = ([t.detach() for t in part] for part in _network(2, 3))
    monkeypatch.setattr(sine_network._MeanSquareStep, "apply", None)
    error = sine_network.mean_square_step(_points(2), _points(3), weights, biases, "siren", OMEGAS)
    assert not error.requires_grad


@pytest.mark.parametrize("kind", ["negative", "sparse", "zero gradient", "expanded"])
def test_tensors_that_are_a_promise(kind):
    weights, biases = _network(3, 2)
    x = _points(3)
    if kind == "negative":
        x = torch.complex(x, -x).conj().imag
        assert x.is_neg()
    if kind == "expanded":
        x = x[:1].expand(ROWS, 3)
    if kind == "sparse":
        weights[1] = weights[1].detach().to_sparse_csr()
    found = sine_network.sine_network(x, weights, biases, "siren", OMEGAS)
    wanted = sine_network.reference(x.clone(), weights, biases, "siren", OMEGAS)
    assert torch.allclose(found, wanted, atol=1e-6)
    if kind == "zero gradient":
        grad = torch._efficientzerotensor(found.shape)
        assert not any(g.any() for g in torch.autograd.grad(found, weights, grad))


def test_modes_and_traces_see_the_operations():
    network = SineMLP(3, [16, 16], 2).eval()
    x = _points(3)
    wanted = network(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert network(mode.from_tensor(x)).shape == (ROWS, 2)
    with FlopCounterMode(display=False) as counter:
        network(x)
    assert counter.get_total_flops() == 2 * ROWS * (3 * 16 + 16 * 16 + 16 * 2)
    assert torch.allclose(make_fx(network)(x)(x), wanted, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        traced = torch.jit.trace(network, torch.rand(99, 3))
    assert torch.allclose(traced(x), wanted, atol=1e-6)
    assert can_compile(backend.SINE_NETWORK, x, *network.for_ops()[:2])


@pytest.mark.parametrize("op", ["network", "gradient", "curvature"])
def test_neurons_that_change_before_backward_are_refused(op):
    weights, biases = _network(3, 1, (200, 200))
    function = {
        "network": sine_network.sine_network, "gradient": value_gradient.value_and_gradient,
        "curvature": mean_curvature.gradient_and_motion,
    }[op]  # fmt: skip
    outputs = function(_points(3), weights, biases, "siren", OMEGAS)
    loss = sum(y.sum() for y in (outputs if isinstance(outputs, tuple) else [outputs]))
    weights[1].data, weights[2].data = torch.rand(3000, 200), torch.rand(1, 3000)
    biases[1].data = torch.rand(3000)
    with pytest.raises(RuntimeError, match=r"\[200, 200\] in the forward pass and is \[3000, 200\] now"):
        loss.backward()


def test_networks_without_a_sine_layer():
    weights, biases = _network(3, 1, ())
    x = _points(3)
    assert torch.equal(sine_network.sine_network(x, weights, biases, "siren", []), x @ weights[0].T + biases[0])
    for function in (value_gradient.value_and_gradient, mean_curvature.gradient_and_motion):
        with pytest.raises(ValueError, match="need a sine layer"):
            function(x, weights, biases, "siren", [])
    with pytest.raises(ValueError, match="got no weights"):
        sine_network.sine_network(x, [], [], "siren", [])


def test_backward_hooks_of_layers_are_called():
    network, seen = SineMLP(3, [16, 16], 2), []
    handle = network.layers[1].register_full_backward_hook(lambda *_: seen.append(1))
    network(_points(3)).sum().backward()
    assert seen == [1]
    handle.remove()
    assert not network.has_hooks()


def test_more_threads_than_tiles_change_nothing():
    weights, biases = _network(3, 1, (64, 64))
    x, before = _points(3), torch.get_num_threads()

    def run():
        outputs = [
            sine_network.sine_network(x, weights, biases, "siren", OMEGAS),
            *value_gradient.value_and_gradient(x, weights, biases, "siren", OMEGAS),
            *mean_curvature.gradient_and_motion(x, weights, biases, "siren", OMEGAS),
        ]
        return [*outputs, *torch.autograd.grad(sum(y.square().sum() for y in outputs), (*weights, *biases))]

    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(16)
        assert all(torch.equal(a, b) for a, b in zip(run(), one, strict=True))
    finally:
        torch.set_num_threads(before)


def test_nothing_is_kept_where_no_backward_pass_will_come():
    weights, biases = _network(3, 1)
    x = _points(3)
    with torch.no_grad():
        found = value_gradient.value_and_gradient(x, weights, biases, "siren", OMEGAS)
    kept = value_gradient.value_and_gradient(x, weights, biases, "siren", OMEGAS)
    assert all(torch.equal(a, b) for a, b in zip(found, kept, strict=True))
    assert not found[0].requires_grad


def test_where_there_is_no_normal_its_derivative_is_left_out():
    weights, biases = _network(3, 1)
    weights[-1] = (1e-10 * weights[-1]).detach().requires_grad_()

    def gradients(function):
        gradient, motion = function(_points(3), weights, biases, "siren", OMEGAS)
        return torch.autograd.grad(1e8 * motion.sum() + 1e8 * gradient.sum(), weights)

    _close(gradients(mean_curvature.gradient_and_motion), gradients(mean_curvature.reference))


def test_densities_that_are_not_numbers_and_places_outside():
    for library in (True, False):
        density = torch.full((4, 4, 4), 1.0, dtype=torch.float32 if library else torch.float64)
        update_density_grid(density, torch.tensor([3, 5]), torch.tensor([float("nan"), 2.0]), 0.5)
        assert density.view(-1)[[3, 5]].tolist() == [0.5, 2.0]
        with pytest.raises(IndexError, match="index must lie in"):
            update_density_grid(density, torch.tensor([64]), torch.tensor([1.0]), 0.5)
        assert density.view(-1)[0] == 0.5


def test_a_library_cut_short_is_built_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRE_OPS_CACHE", str(tmp_path))
    # Not loaded: the system would give back what it has.
    with monkeypatch.context() as patched:
        patched.setattr(backend.ctypes, "CDLL", lambda name: name)
        path = backend.Library("ray_marching", ("-ffp-contract=off",), has_precisions=False).build().path
    path.write_bytes(b"")
    again = backend.Library("ray_marching", ("-ffp-contract=off",), has_precisions=False)
    assert isinstance(again.load(), ctypes.CDLL)
    assert path.stat().st_size > 0


def test_settings_that_cannot_be_meant_are_said(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "g++ 'foo")
    with pytest.raises(build.BuildError, match="No closing quotation"):
        build.compiler()
    monkeypatch.setenv("AIRE_OPS_CACHE", str(tmp_path))
    broken = backend.Library("ray_marching", has_precisions=False)
    with pytest.warns(UserWarning, match="compiled ops are not used"):
        assert broken.load() is None
    for value, is_off in (("false", True), ("OFF ", True), ("no", True), ("on", False), ("", False)):
        monkeypatch.setenv("AIRE_OPS", value)
        assert backend.is_off() is is_off
    monkeypatch.setenv("AIRE_OPS", "maybe")
    backend._is_off.cache_clear()
    with pytest.warns(UserWarning, match="neither on nor off"):
        assert not backend.is_off()


def test_plain_vectors_are_taken_on_request_alone(monkeypatch):
    monkeypatch.delenv("AIRE_OPS_CAPABILITY", raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert not processors.is_worth_it(processors.capability())
    with pytest.warns(UserWarning, match="PyTorch's operations are the faster ones"):
        assert backend.Library("sine_network").load() is None
    monkeypatch.setenv("AIRE_OPS_CAPABILITY", "default")
    assert processors.is_worth_it(processors.capability())


def test_a_module_of_tied_layers_trains_as_in_pytorch():
    """Through the module, with its own parameters shared."""
    network = SineMLP(3, [16, 16, 16], 1)
    network.layers[2].weight = network.layers[1].weight
    assert isinstance(network.layers[1].weight, nn.Parameter)
    x = _points(3)
    loss = network(x).square().mean()
    first = torch.autograd.grad(loss, network.layers[1].weight, create_graph=True)[0]
    plain = torch.autograd.grad(network(x).square().mean(), network.layers[1].weight)[0]
    assert torch.allclose(first, plain, atol=1e-7)
