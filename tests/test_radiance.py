"""Density and colour as one network: the two networks' values and gradients, in Triton's interpreter and on CUDA."""

import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from aire_nerfstudio.fields.radiance_field import SineRadianceField
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops import triton_radiance
from aire_nerfstudio.ops.radiance import Network, radiance_network, reference

NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
# Sine layers of density and colour, features, rows: odd widths; directions within a layer's padding and behind it;
# one colour layer; fewer features than directions; fewer rows than a program's share, and more than sums take at once.
SIZES = [((70, 33), (40, 20), 30, 140), ((64, 63, 62), (33,), 70, 17), ((40, 64), (64, 64), 2, 530)]

CHECK = """
    import copy, os, torch, types
    from aire_nerfstudio.fields.sine_mlp import SineMLP
    from aire_nerfstudio.ops import triton_launches
    from aire_nerfstudio.ops.aside import Aside
    from aire_nerfstudio.ops.radiance import Network, reference
    from aire_nerfstudio.ops.triton_radiance import triton_radiance

    def relative(got, expected, least=1e-300):
        return float((got.detach().double() - expected.detach()).norm() / expected.detach().norm().clamp_min(least))

    def of(network):
        return Network.of(network.for_ops())

    triton_launches.COPY_ENGINE_WITHOUT_DEVICE = HAS_COPY_ENGINE
    # What goes aside reads what it is given, which is kept, and nothing else.
    run = Aside.run

    def watched(aside, call, *arguments):
        assert isinstance(call, types.FunctionType) and call.__closure__ is None
        return run(aside, call, *arguments)

    Aside.run = watched
    for density_widths, colour_widths, features, rows in SIZES:
        torch.manual_seed(rows)
        options = ACTIVATION, 10.0, 2.0, None, DETACH
        density = SineMLP(3, density_widths, 1 + features, *options).to(DEVICE)
        colour = SineMLP(3 + features, colour_widths, 3, *options).to(DEVICE)
        x = 2 * torch.rand(rows, 3, device=DEVICE) - 1
        directions = torch.nn.functional.normalize(torch.randn(rows, 3, device=DEVICE), dim=-1)
        exact = copy.deepcopy(density).double(), copy.deepcopy(colour).double()
        ours, theirs = [*density.parameters(), *colour.parameters()], [p for net in exact for p in net.parameters()]

        def one():
            return triton_radiance(x, directions, of(density), of(colour), ACTIVATION, DETACH)

        # Memory that is not zero to begin with, beside directions for example, changes nothing.
        kept = [torch.full((1 << n,), float("nan"), device=DEVICE) for n in range(4, 18) for _ in range(3)]
        del kept
        found = one()
        expected = reference(x.double(), directions.double(), *map(of, exact), ACTIVATION, DETACH)
        for a, b in zip(found, expected, strict=True):
            assert a.shape == b.shape and a.dtype == torch.float32 and relative(a, b) < 3e-3, relative(a, b)
        factors = torch.rand(rows, device=DEVICE) + 0.5, torch.rand(rows, 3, device=DEVICE) + 0.5
        # Of whatever sizes the two gradients are, and one of them alone.
        all_scales = [(1, 1), (1e3, 1e-4), (1e-9, 1e4), (0, 1e-6), (1e-6, 0), (1e12, 0), (1e12, 1e-9)]
        for scales in all_scales if features == 30 else all_scales[:1]:
            def total(outputs):
                terms = zip(outputs, factors, scales, strict=True)
                return sum(scale * (factor * y).sum() for y, factor, scale in terms)

            got = torch.autograd.grad(total(found), ours, retain_graph=True)
            wanted = torch.autograd.grad(total(expected), theirs, retain_graph=True)
            for a, b in zip(got, wanted, strict=True):
                assert a.shape == b.shape and a.dtype == torch.float32
                assert relative(a, b) < 8e-3, (scales, tuple(a.shape), relative(a, b))
        again = torch.autograd.grad(total(found), ours, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
        with torch.no_grad():
            assert all(torch.equal(a, b) for a, b in zip(one(), found, strict=True))
    # Only what is wanted.
    density.layers[0].weight.requires_grad_(False)
    colour.layers[0].bias.requires_grad_(False)
    sum(y.sum() for y in one()).backward()
    assert density.layers[0].weight.grad is None and colour.layers[0].bias.grad is None
    assert density.layers[0].bias.grad.any() and colour.layers[0].weight.grad.any()
    # Derivatives of derivatives are the reference's.
    if ACTIVATION == "siren":
        def second(outputs, bias, weight):
            first = torch.autograd.grad(sum(y.sum() for y in outputs), bias, create_graph=True)[0]
            return torch.autograd.grad(first.square().sum(), weight)[0]

        got = second(one(), density.layers[1].bias, colour.layers[0].weight)
        wanted = second(expected, exact[0].layers[1].bias, exact[1].layers[0].weight)
        assert relative(got, wanted) < 1e-3, relative(got, wanted)
    # A gradient of NaN is seen.
    outputs = one()
    spoilt = [torch.ones_like(y) for y in outputs]
    spoilt[0][3] = float("nan")
    grads = torch.autograd.grad(outputs, [density.layers[1].weight, density.layers[-1].weight], spoilt)
    assert not any(torch.isfinite(g).all() for g in grads)
    # No points.
    x, directions = x[:0], directions[:0]
    outputs = one()
    assert [y.shape for y in outputs] == [(0,), (0, 3)]
    wanted = [p for p in ours if p.requires_grad]
    assert not any(g.any() for g in torch.autograd.grad(sum(y.sum() for y in outputs), wanted))
    print("checked", flush=True)
    # With an emulated device, autograd's thread for it may still be there when libraries are unloaded.
    os._exit(0)
"""


@NEEDS_TRITON
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
@pytest.mark.parametrize(
    ("activation", "detach", "has_copy_engine"),
    [("siren", False, True), ("finer", True, True), ("spder", False, True), ("siren", False, False)],
)
def test_one_network_finds_what_two_find(activation, detach, has_copy_engine, device):
    sizes = SIZES if activation == "siren" and has_copy_engine else SIZES[:1]
    given = sizes, activation, detach, has_copy_engine, device
    names = f"SIZES, ACTIVATION, DETACH, HAS_COPY_ENGINE, DEVICE = {given!r}\n"
    environment = {**os.environ, **({"TRITON_INTERPRET": "1"} if device == "cpu" else {})}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", names + textwrap.dedent(CHECK)],
        env=environment, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "checked" in done.stdout


def _of(network):
    return Network.of(network.for_ops())


def _networks(features=8):
    return SineMLP(3, (16, 16), 1 + features), SineMLP(3 + features, (16,), 3)


@pytest.mark.parametrize("activation", ["siren", "finer", "spder"])
def test_the_field_gives_density_and_colour_as_features_and_colour_do(activation):
    torch.manual_seed(0)
    field = SineRadianceField(torch.zeros(3), 1.0, (20, 21), (22,), 5, activation, is_contracted=True)
    x = 3 * torch.rand(70, 3) - 1.5
    directions = torch.nn.functional.normalize(torch.randn(70, 3), dim=-1)
    sigma, features = field.features(x)
    expected = sigma, field.colour(directions, features)
    for got, wanted in zip(field.density_and_colour(x, directions), expected, strict=True):
        assert torch.equal(got, wanted)
    # Who waits for a layer, a network or any module to be called is not passed by.
    watchers = [part.register_forward_hook for part in (field.colour_net.layers[0], field.colour_net)]
    for register in (*watchers, torch.nn.modules.module.register_module_forward_hook):
        called = []
        handle = register(lambda *_, called=called: called.append(1))
        field.density_and_colour(x, directions)
        handle.remove()
        assert called


@NEEDS_CUDA
def test_in_a_graph_gradients_are_those_without(monkeypatch):
    monkeypatch.setattr(triton_radiance.triton_network, "matmul_precision", lambda: "medium")
    density, colour = SineMLP(3, (70, 33), 31).cuda(), SineMLP(33, (40, 20), 3).cuda()
    x, directions = (torch.rand(1100, 3, device="cuda") for _ in range(2))
    parameters = [*density.parameters(), *colour.parameters()]

    def gradients():
        outputs = radiance_network(x, directions, _of(density), _of(colour), "siren")
        assert type(outputs[0].grad_fn).__name__ == "_TritonRadianceBackward"
        return torch.autograd.grad(sum(y.square().sum() for y in outputs), parameters)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = [g.clone() for g in gradients()]
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        found = gradients()
    for _ in range(3):
        for g in found:
            g.fill_(float("nan"))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_only_what_fits_is_one_network(monkeypatch):
    monkeypatch.setattr(triton_radiance.triton_network, "is_possible", lambda *_: True)
    x, directions = torch.rand(40, 3), torch.rand(40, 3)
    density, colour = _networks()
    assert triton_radiance.is_possible(x, directions, _of(density), _of(colour))
    others = [
        (x.clone().requires_grad_(), directions, density, colour),
        (x, directions.clone().requires_grad_(), density, colour),
        (x, directions[:1], density, colour),  # broadcasting is the reference's
        (x, directions.double(), density, colour),
        (x[None], directions[None], density, colour),
        (x, directions, SineMLP(3, (16,), 9), colour),
        (x, directions, density, SineMLP(11, (16,), 5)),
        (x, directions, *_networks(features=9)[:1], colour),
        (x, directions, density, colour.double()),
    ]  # fmt: skip
    for points, ways, first, second in others:
        assert not triton_radiance.is_possible(points, ways, _of(first), _of(second))


def test_networks_that_do_not_fit_together_are_refused_everywhere():
    density, colour = map(_of, _networks())
    with pytest.raises(ValueError, match="omegas"):
        radiance_network(torch.rand(40, 3), torch.rand(40, 3), density, colour._replace(omegas=[]), "siren")
    with pytest.raises(ValueError, match="activation"):
        radiance_network(torch.rand(40, 3), torch.rand(40, 3), density, colour, "sine")


def test_on_a_processor_it_is_the_reference():
    density, colour = _networks()
    x, directions = torch.rand(40, 3), torch.rand(40, 3)
    found = radiance_network(x, directions, _of(density), _of(colour), "siren")
    for a, b in zip(found, reference(x, directions, _of(density), _of(colour), "siren"), strict=True):
        assert torch.equal(a, b)
