"""The compiled sine network against its reference: values, all gradients, odd sizes, and when it must not be used."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aire_nerfstudio.adaptation import surgery
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops import backend, cuda, processors
from aire_nerfstudio.ops.build import BuildError
from aire_nerfstudio.ops.sine_network import _SineNetwork, reference

CASES = [("siren", False), ("finer", False), ("finer", True), ("spder", False)]


@pytest.fixture(autouse=True)
def _compiled(monkeypatch):
    monkeypatch.delenv("AIRE_OPS", raising=False)
    if backend.SINE_NETWORK.load() is None:
        pytest.skip(f"compiled ops cannot be had: {backend.SINE_NETWORK.reason}")


def _network(widths, d, out, activation="siren", detach=False, omega=30.0):
    return SineMLP(d, widths, out, activation, omega, omega, None, detach)


def _relative(got, expected):
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm() / expected.norm().clamp_min(1e-12))


def _in_double(network):
    twin = _network(
        network.widths, network.in_features, network.out_features, network.activation, network.detach_finer_scale,
        network.hidden_omega,
    )  # fmt: skip
    twin.load_state_dict(network.state_dict())
    return twin.double()


@pytest.mark.parametrize(("activation", "detach"), CASES)
@pytest.mark.parametrize(
    ("widths", "d", "out"),
    [((7,), 2, 3), ((33, 64, 5), 3, 1), ((65, 31), 4, 8), ((20, 17), 9, 9), ((91, 40), 185, 3), ((12, 12), 3, 183)],
)
@pytest.mark.parametrize("rows", [64, 97, 1001])
def test_values_and_gradients_are_the_references(activation, detach, widths, d, out, rows):
    torch.manual_seed(rows)
    network = _network(widths, d, out, activation, detach)
    exact = _in_double(network)
    x, grad = 2 * torch.rand(rows, d) - 1, torch.randn(rows, out)
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    eager = x.clone().requires_grad_()
    y, wanted = network(ours), exact(theirs)
    assert isinstance(y.grad_fn, _SineNetwork._backward_cls)
    plain = reference(eager, *network.for_ops())
    assert _relative(y, wanted) < 3 * _relative(plain, wanted) + 1e-6
    found = torch.autograd.grad((y * grad).sum(), [ours, *network.parameters()])
    expected = torch.autograd.grad((wanted * grad.double()).sum(), [theirs, *exact.parameters()])
    others = torch.autograd.grad((plain * grad).sum(), [eager, *network.parameters()])
    for a, b, c in zip(found, expected, others, strict=True):
        assert a.shape == b.shape
        assert _relative(a, b) < 3 * _relative(c, b) + 5e-6


@pytest.mark.parametrize(("activation", "detach"), CASES)
def test_the_one_pass_step_is_the_mean_square(activation, detach):
    torch.manual_seed(1)
    network = _network((40, 33), 2, 3, activation, detach)
    x, target = 2 * torch.rand(777, 2) - 1, torch.rand(777, 3)
    loss = network.mean_square_step(x, target)
    found = torch.autograd.grad(3 * loss, list(network.parameters()))
    plain = (reference(x, *network.for_ops()) - target).square().mean()
    expected = torch.autograd.grad(3 * plain, list(network.parameters()))
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    for a, b in zip(found, expected, strict=True):
        assert _relative(a, b) < 2e-5


def test_the_one_pass_step_twice_differentiated():
    torch.manual_seed(2)
    network = _network((12, 9), 2, 1, omega=5.0)
    x, target = torch.rand(70, 2), torch.rand(70, 1)

    def second(loss):
        first = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
        return torch.autograd.grad(first[0].square().sum(), list(network.parameters())[:-1])

    plain = (reference(x, *network.for_ops()) - target).square().mean()
    for a, b in zip(second(network.mean_square_step(x, target)), second(plain), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_sums_do_not_depend_on_timing(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        network = _network((64, 64), 2, 3)
        x, target = torch.rand(5000, 2), torch.rand(5000, 3)
        runs = [torch.autograd.grad(network.mean_square_step(x, target), list(network.parameters())) for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_shapes_that_are_no_matrix_and_none_at_all():
    network = _network((8,), 2, 3)
    x = torch.rand(5, 20, 2)
    assert torch.allclose(network(x), reference(x, *network.for_ops()), atol=1e-6)
    assert network(torch.rand(0, 2)).shape == (0, 3)
    assert network(torch.rand(3, 2)).shape == (3, 3)
    transposed = torch.rand(2, 100).T
    assert torch.allclose(network(transposed), reference(transposed, *network.for_ops()), atol=1e-6)
    with pytest.raises(ValueError, match="target"):
        network.mean_square_step(torch.rand(100, 2), torch.rand(100, 4))


def test_second_derivatives_are_right_and_not_silently_wrong():
    torch.manual_seed(3)
    network = _network((24, 24), 3, 1, omega=5.0)
    exact = _in_double(network)
    x = torch.rand(80, 3)

    def loss(net, points):
        points = points.clone().requires_grad_()
        (slope,) = torch.autograd.grad(net(points).sum(), points, create_graph=True)
        return (slope.norm(dim=-1) - 1).square().mean()

    found = torch.autograd.grad(loss(network, x), list(network.parameters())[:-1])
    expected = torch.autograd.grad(loss(exact, x.double()), list(exact.parameters())[:-1])
    for a, b in zip(found, expected, strict=True):
        assert _relative(a, b) < 1e-4


def test_angles_beyond_the_reduction_and_what_is_not_finite():
    network = _network((8,), 1, 1, omega=1.0)
    with torch.no_grad():
        # Powers of two, so that both ways of computing the angle give the same number.
        network.affines()[0].weight.fill_(2.0**20)
        network.affines()[0].bias.zero_()
    x = (torch.arange(-64, 64) / 64)[:, None]
    assert torch.allclose(network(x), reference(x, *network.for_ops()), atol=1e-5)
    x[50] = float("nan")
    x[60] = float("inf")
    assert torch.equal(network(x).isnan(), reference(x, *network.for_ops()).isnan())
    assert network(x)[51:60].isfinite().all()


def test_where_it_cannot_be_used_the_reference_is():
    network, x = _network((8,), 2, 1), torch.rand(100, 2)

    def is_compiled(y):
        return isinstance(y.grad_fn, _SineNetwork._backward_cls)

    assert is_compiled(network(x))
    assert not is_compiled(network(x[:10]))
    assert not is_compiled(_in_double(network)(x.double()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_compiled(network(x))
    per_sample = torch.func.vmap(torch.func.grad(lambda p: network(p[None]).sum()))(x)
    points = x.clone().requires_grad_()
    assert torch.allclose(per_sample, torch.autograd.grad(network(points).sum(), points)[0], atol=1e-4)


def test_growth_and_removal_between_two_steps_with_the_old_loss_alive():
    network = _network((16, 16), 2, 3)
    optimizer = torch.optim.Adam(network.parameters())
    x, target = torch.rand(200, 2), torch.rand(200, 3)
    kept = []
    for change in (None, "grow", "prune"):
        group = network.neuron_groups()[0]
        if change == "grow":
            surgery.grow(group, torch.rand(5, 2), torch.rand(5), torch.zeros(16, 5), [optimizer])
        elif change == "prune":
            surgery.prune(group, torch.arange(3), [optimizer])
        optimizer.zero_grad()
        for loss in ((network(x) - target).square().mean(), network.mean_square_step(x, target)):
            loss.backward()
            kept.append(loss)
        optimizer.step()
    assert network.widths == [18, 16]


def test_what_does_not_fit_together_is_an_error_and_not_garbage():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        _network((64, 64), 3, 1)(torch.rand(1000, 2))
    network = _network((16,), 2, 3)
    x, target = torch.rand(100, 2), torch.rand(100, 3)
    right = float(network.mean_square_step(x, target).detach())
    assert float(network.mean_square_step(x, target.double()).detach()) == pytest.approx(right, rel=1e-5)
    assert float(network.mean_square_step(x, target.half()).detach()) == pytest.approx(right, rel=1e-2)


def test_long_sums_keep_their_digits():
    torch.manual_seed(0)
    network = _network((16, 16), 3, 1)
    exact = _in_double(network)
    x = 2 * torch.rand(400_000, 3) - 1
    found = torch.autograd.grad(network(x).mean(), list(network.parameters()))
    expected = torch.autograd.grad(exact(x.double()).mean(), list(exact.parameters()))
    for a, b in zip(found, expected, strict=True):
        assert _relative(a, b) < 2e-4


def test_hooks_are_called_and_forward_mode_works():
    network = _network((16, 16), 2, 3)
    x = torch.rand(100, 2)
    expected = reference(x, *network.for_ops())
    seen = []
    handle = network.affines()[0].register_forward_hook(lambda *_: seen.append(1))
    assert torch.allclose(network(x), expected, atol=1e-5)
    assert float(network.mean_square_step(x, expected.detach()).detach()) < 1e-9
    assert len(seen) == 2
    handle.remove()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(network(dual)).tangent is not None


def test_who_gets_the_gradients_may_change_them():
    network = _network((8,), 2, 1)
    loss = network.mean_square_step(torch.rand(100, 2), torch.rand(100, 1))
    first = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
    kept = [g.clone() for g in first]
    for g in first:
        g.zero_()
    for a, b in zip(torch.autograd.grad(loss, list(network.parameters())), kept, strict=True):
        assert torch.equal(a, b)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=4), st.integers(1, 12), st.integers(1, 12), st.integers(64, 900)
)
def test_any_shape(widths, d, out, rows):
    torch.manual_seed(0)
    network = _network(tuple(widths), d, out, omega=4.0)
    exact = _in_double(network)
    x = 2 * torch.rand(rows, d) - 1
    results = []
    for net, points, evaluate in (
        (network, x, network),
        (network, x, lambda p: reference(p, *network.for_ops())),
        (exact, x.double(), exact),
    ):
        points = points.clone().requires_grad_()
        y = evaluate(points)
        results.append([y, *torch.autograd.grad(y.sum(), [points, *net.parameters()])])
    for ours, plain, true in zip(*results, strict=True):
        # Sums that cancel lose digits in float32 whoever adds them up.
        assert _relative(ours, true) < 5 * _relative(plain, true) + 2e-5


def _python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


CHECK = """
    import torch
    from aire_nerfstudio.fields.sine_mlp import SineMLP
    from aire_nerfstudio.ops.sine_network import reference
    torch.manual_seed(0)
    for activation in ("siren", "finer", "spder"):
        network = SineMLP(2, [37, 20], 3, activation)
        x = (2 * torch.rand(301, 2) - 1).requires_grad_()
        y, plain = network(x), reference(x, *network.for_ops())
        assert "SineNetwork" in type(y.grad_fn).__name__, y.grad_fn
        assert torch.allclose(y, plain, atol=1e-5)
        inputs = [x, *network.parameters()]
        for a, b in zip(torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(plain.sum(), inputs)):
            assert torch.allclose(a, b, atol=1e-3 * float(b.abs().max())), activation
"""


@pytest.mark.parametrize("kind", ["AVX2", "DEFAULT"])
def test_lesser_processors_get_the_same(kind):
    if kind == "AVX2" and processors.capability() == "DEFAULT":
        pytest.skip("this processor has no AVX2")
    done = _python(CHECK, AIRE_OPS_CAPABILITY=kind)
    assert done.returncode == 0, done.stderr


def test_importing_builds_nothing_and_a_failed_build_is_said_once(tmp_path):
    code = """
        import warnings, torch
        from pathlib import Path
        import aire_nerfstudio.fields.sine_mlp as fields
        import aire_nerfstudio.method_configs.image
        assert not list(Path(%r).iterdir())
        network = fields.SineMLP(2, [8], 1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                y = network(torch.rand(100, 2))
        assert "SineNetwork" not in type(y.grad_fn).__name__
        said = [str(w.message) for w in caught if "compiled ops" in str(w.message)]
        assert len(said) == 1 and "no C++ compiler" in said[0], said
    """ % str(tmp_path)  # noqa: UP031
    done = _python(code, AIRE_OPS_CACHE=str(tmp_path), CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr


def test_a_compiler_may_have_arguments_and_the_folder_a_space(tmp_path):
    code = "from aire_nerfstudio.ops.backend import SINE_NETWORK as s; assert s.load() is not None, s.reason"
    done = _python(code, AIRE_OPS_CACHE=str(tmp_path / "a folder: $ours"), CXX="g++ -O1")
    assert done.returncode == 0, done.stderr


def test_two_processes_build_one_library(tmp_path):
    code = "from aire_nerfstudio.ops.backend import SINE_NETWORK as s; assert s.load() is not None, s.reason"
    environment = {**os.environ, "AIRE_OPS_CACHE": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(list(tmp_path.glob("*.so"))) == 1
    assert sum("compiling" in text for text in said) == 1


def test_the_switch_turns_it_off(monkeypatch):
    monkeypatch.setenv("AIRE_OPS", "off")
    assert not isinstance(_network((8,), 2, 1)(torch.rand(100, 2)).grad_fn, _SineNetwork._backward_cls)


def test_the_status_page(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "aire_nerfstudio.ops"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "sine_network" in done.stdout
    assert "built for" in done.stdout


@pytest.mark.parametrize("library", ["processor", "cuda"])
def test_a_build_that_is_interrupted_was_not_tried_and_one_at_a_time_builds(library, monkeypatch):
    """A viewer's render may end in the middle of a line."""

    class Interrupted(Exception):
        pass

    module = backend if library == "processor" else cuda
    made = module.Library("nothing") if library == "processor" else module.CudaLibrary("nothing")
    calls = []

    def building(*_):
        calls.append(threading.get_ident())
        if len(calls) == 1:
            raise Interrupted
        time.sleep(0.2)
        raise BuildError("there is no such source")

    monkeypatch.setattr(module, "build", building)
    monkeypatch.setattr(cuda, "nvcc", lambda: "nvcc")
    monkeypatch.setattr(module, "_say", lambda *_: None, raising=False)
    monkeypatch.setattr(backend.Library, "_say", lambda *_: None)
    load = made.build if library == "processor" else lambda: made.build((9, 0))
    with pytest.raises(Interrupted):
        load()
    with ThreadPoolExecutor(2) as pool:
        both = [future.result() for future in [pool.submit(load), pool.submit(load)]]
    assert len(calls) == 2
    assert both[0] is both[1]
    assert both[0].reason == "there is no such source"
