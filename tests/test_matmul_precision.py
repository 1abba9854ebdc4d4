"""Products through bfloat16 units: as exact as promised, in all three libraries, and only where they are asked for."""

import pytest
import torch

from aire_nerfstudio.fields import differential
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops import backend, mean_curvature, processors, sine_network, value_gradient

# Relative errors of values, gradients of a loss on values, and of one on second derivatives, against float64. What is
# rounded is 2^-16 of a product at most, 2^-8 with one term; layers and derivatives multiply it.
KINDS = {
    "AMX_BF16X3": ("high", 1e-5, 4e-5, 3e-4),
    "AMX_BF16": ("medium", 5e-3, 2e-2, 1e-1),
    "AVX512_BF16": ("medium", 5e-3, 2e-2, 1e-1),
}
SHAPES = [
    ((7,), 2, 3, 64),
    ((33, 64, 5), 3, 1, 97),
    ((65, 31), 4, 8, 1001),
    ((91, 40), 185, 3, 385),
    ((17, 12), 3, 183, 65),
]


@pytest.fixture(params=list(KINDS))
def kind(request, monkeypatch):
    """One kind, whatever the processor would choose; the setting is put back."""
    monkeypatch.delenv("AIRE_OPS", raising=False)
    monkeypatch.delenv("AIRE_OPS_CAPABILITY", raising=False)
    name = request.param
    need = "_is_amx_tile_supported" if "AMX" in name else "_is_avx512_bf16_supported"
    if (
        processors.capability() != "AVX512"
        or not processors._has(need)
        or ("AMX" in name and not processors._has("_init_amx"))
    ):
        pytest.skip(f"this processor cannot run {name}")
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(backend, "kind_for", lambda precision: name if precision != "highest" else "AVX512")
    for library in backend.LIBRARIES:
        monkeypatch.setattr(library, "_chosen", {})
    torch.set_float32_matmul_precision(KINDS[name][0])
    yield name
    torch.set_float32_matmul_precision(before)


def _relative(got, expected):
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm() / expected.norm().clamp_min(1e-12))


def _twin(network):
    twin = SineMLP(
        network.in_features, network.widths, network.out_features, network.activation, network.first_omega,
        network.hidden_omega, None, network.detach_finer_scale,
    )  # fmt: skip
    twin.load_state_dict(network.state_dict())
    return twin.double()


@pytest.mark.parametrize(
    ("activation", "detach"), [("siren", False), ("finer", False), ("finer", True), ("spder", False)]
)
@pytest.mark.parametrize(("widths", "d", "out", "rows"), SHAPES)
def test_networks_of_any_width(kind, activation, detach, widths, d, out, rows):
    assert backend.SINE_NETWORK.build().kind == kind, backend.SINE_NETWORK.build().reason
    torch.manual_seed(rows)
    network = SineMLP(d, widths, out, activation, 10.0, 10.0, None, detach)
    exact = _twin(network)
    _, of_values, of_gradients, _ = KINDS[kind]
    x, target = 2 * torch.rand(rows, d) - 1, torch.rand(rows, out)
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    y, wanted = network(ours), exact(theirs)
    assert isinstance(y.grad_fn, sine_network._SineNetwork._backward_cls)
    assert _relative(y, wanted) < of_values
    found = torch.autograd.grad((y - target).square().mean(), [ours, *network.parameters()])
    expected = torch.autograd.grad((wanted - target).square().mean(), [theirs, *exact.parameters()])
    for a, b in zip(found, expected, strict=True):
        assert _relative(a, b) < of_gradients
    one_pass = torch.autograd.grad(network.mean_square_step(x, target), list(network.parameters()))
    for a, b in zip(one_pass, expected[1:], strict=True):
        assert _relative(a, b) < of_gradients


def test_only_products_are_rounded(kind):
    """Two sine layers of which the second has few inputs: all products are float32, and so are the results."""
    torch.manual_seed(0)
    network = SineMLP(2, (8, 40), 3)
    x = 2 * torch.rand(200, 2) - 1
    assert _relative(network(x), _twin(network)(x.double())) < 1e-6


@pytest.mark.parametrize(
    ("activation", "widths", "d"), [("siren", (40, 33, 20), 3), ("finer", (17, 64), 4), ("siren", (128, 33), 4)]
)
def test_derivatives(kind, activation, widths, d):
    torch.manual_seed(1)
    network = SineMLP(d, widths, 1, activation, 8.0, 8.0)
    exact = _twin(network)
    _, of_values, of_gradients, of_second = KINDS[kind]
    x = 2 * torch.rand(203, d) - 1
    f, gradient = value_gradient.value_and_gradient(x, *network.for_ops()[:4])
    assert isinstance(f.grad_fn, value_gradient._ValueGradient._backward_cls)
    f64, gradient64 = value_gradient.reference(x.double(), *exact.for_ops()[:4])
    assert _relative(f, f64) < of_values
    assert _relative(gradient, gradient64) < of_gradients
    found = torch.autograd.grad(f.square().mean() + gradient.square().mean(), list(network.parameters()))
    expected = torch.autograd.grad(f64.square().mean() + gradient64.square().mean(), list(exact.parameters()))
    for a, b in zip(found, expected, strict=True):
        assert _relative(a, b) < of_second

    gradient, motion = differential.gradient_and_motion(network, x)
    assert isinstance(motion.grad_fn, mean_curvature._MeanCurvature._backward_cls)
    gradient64, motion64 = mean_curvature.reference(x.double(), *exact.for_ops()[:4])
    assert _relative(gradient, gradient64) < of_gradients
    assert _relative(motion, motion64) < of_second
    # Neither depends on the last bias.
    found = torch.autograd.grad((gradient[:, 0] - motion).mean(), list(network.parameters())[:-1])
    expected = torch.autograd.grad((gradient64[:, 0] - motion64).mean(), list(exact.parameters())[:-1])
    for a, b in zip(found, expected, strict=True):
        assert _relative(a, b) < 2 * of_second


def test_backward_stays_with_the_library_of_its_forward(kind):
    """The layouts differ between libraries: a setting that changes in between must not mix them."""
    torch.manual_seed(2)
    network = SineMLP(2, (200, 180), 3)
    x = 2 * torch.rand(300, 2) - 1
    expected = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    y = network(x)
    torch.set_float32_matmul_precision("highest")
    found = torch.autograd.grad(y.square().sum(), list(network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    y = network(x)
    torch.set_float32_matmul_precision(KINDS[kind][0])
    found = torch.autograd.grad(y.square().sum(), list(network.parameters()))
    assert all(_relative(a, b) < KINDS[kind][2] for a, b in zip(found, expected, strict=True))


def test_what_mean_curvature_kept_stays_with_its_library(kind):
    torch.manual_seed(2)
    network = SineMLP(4, (128, 20), 1, "siren", 8.0, 8.0)
    x, parameters = 2 * torch.rand(200, 4) - 1, list(network.parameters())
    found = []
    for between in (KINDS[kind][0], "highest"):
        torch.set_float32_matmul_precision(KINDS[kind][0])
        gradient, motion = differential.gradient_and_motion(network, x)
        torch.set_float32_matmul_precision(between)
        found.append(torch.autograd.grad(gradient.square().mean() + motion.square().mean(), parameters))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_is_not_finite_stays_so(kind):
    network = SineMLP(2, (40, 40), 1)
    x = torch.zeros(100, 2)
    x[3, 1], x[50, 0] = float("nan"), float("inf")
    bad = ~torch.isfinite(network(x)).squeeze(1)
    assert bad.nonzero().squeeze(1).tolist() == [3, 50]


def test_the_exact_kind_is_the_default_and_the_way_back(monkeypatch):
    monkeypatch.delenv("AIRE_OPS_CAPABILITY", raising=False)
    assert processors.kind_for("highest") == processors.capability()
    monkeypatch.setenv("AIRE_OPS_CAPABILITY", "DEFAULT")
    assert {processors.kind_for(p) for p in ("highest", "high", "medium")} == {"DEFAULT"}


def test_a_kind_that_cannot_be_built_gives_way_to_the_exact_one(monkeypatch):
    library = backend.Library("sine_network")
    monkeypatch.delenv("AIRE_OPS_CAPABILITY", raising=False)
    if library.load() is None:
        pytest.skip(f"compiled ops cannot be had: {library.reason}")
    monkeypatch.setattr(backend, "kind_for", lambda precision: "AMX_BF16X3")
    monkeypatch.setitem(backend.REDUCED, "AMX_BF16X3", ("-mno-such-flag",))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.warns(UserWarning, match="products stay float32"):
            made = library.build()
    finally:
        torch.set_float32_matmul_precision(before)
    assert (made.kind, made.handle is not None) == (processors.capability(), True)


def test_settings_by_backend_do_not_stop_a_network(monkeypatch):
    """torch forbids to ask for the one precision once the newer settings have been used."""

    def refuses():
        raise RuntimeError("PyTorch is checking the matmul precision without a specific backend name")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuses)
    assert processors.matmul_precision() == "highest"
    assert SineMLP(2, (16,), 1)(torch.rand(100, 2)).shape == (100, 1)
