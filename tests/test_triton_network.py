"""The Triton kernels: right in Triton's interpreter, and on CUDA itself."""

import contextlib
import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops import aside, triton_network
from aire_nerfstudio.ops.sine_network import sine_network

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CASES = [("siren", False), ("finer", False), ("finer", True), ("spder", False)]
# Odd widths, one layer, many outputs, more rows than a program's share, fewer than one.
# Then networks of many inputs, and of many outputs as well.
SHAPES = [
    *[((70, 33), 2, 3, 300), ((40,), 3, 1, 129), ((130, 64), 4, 9, 200), ((64, 128, 31), 1, 8, 17)],
    *[((24, 140), 70, 3, 140), ((33,), 9, 20, 65), ((65,), 3, 64, 130), ((33,), 9, 3, 70)],
]

CHECK = """
    import copy, os, torch
    from aire_nerfstudio.fields.sine_mlp import SineMLP
    from aire_nerfstudio.ops import triton_kernels, triton_launches
    from aire_nerfstudio.ops.sine_network import reference
    from aire_nerfstudio.ops.triton_mean_square import triton_mean_square
    from aire_nerfstudio.ops.triton_network import can_fuse, triton_network

    def relative(got, expected):
        return float((got.detach().double() - expected.detach()).norm() / expected.detach().norm())

    triton_launches.COPY_ENGINE_WITHOUT_DEVICE = HAS_COPY_ENGINE
    # So that there are rows for more than one program.
    last_tile = triton_kernels.last_tile
    triton_kernels.last_tile = lambda: {**last_tile(), "BLOCKS": 4}
    for widths, d, out, rows in SHAPES:
        torch.manual_seed(rows)
        network = SineMLP(d, widths, out, ACTIVATION, 10.0, 10.0, None, DETACH).to(DEVICE)
        exact = copy.deepcopy(network).double()
        x = (2 * torch.rand(rows, d, device=DEVICE) - 1).requires_grad_()
        points = x.detach().double().requires_grad_()
        y, wanted = triton_network(x, *network.for_ops()), reference(points, *exact.for_ops())
        assert relative(y, wanted) < 2e-3, relative(y, wanted)
        # Small, as a mean over many points is: float16 alone would lose it.
        found = torch.autograd.grad(1e-9 * y.square().sum(), [x, *network.parameters()], retain_graph=True)
        expected = torch.autograd.grad(
            1e-9 * wanted.square().sum(), [points, *exact.parameters()], retain_graph=True
        )
        for a, b in zip(found, expected, strict=True):
            assert a.shape == b.shape and a.dtype == torch.float32
            assert relative(a, b) < 6e-3, (widths, relative(a, b))
        # Gradients that lie in memory column by column.
        factors = torch.rand(out, rows, device=DEVICE)
        found_so = torch.autograd.grad((y.t() * factors).sum(), list(network.parameters()), retain_graph=True)
        expected_so = torch.autograd.grad(
            (wanted.t() * factors).sum(), list(exact.parameters()), retain_graph=True
        )
        for a, b in zip(found_so, expected_so, strict=True):
            assert relative(a, b) < 6e-3, (widths, relative(a, b))
        again = torch.autograd.grad(1e-9 * y.square().sum(), [x, *network.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        zero = triton_network(x, *network.for_ops())
        for gradient in torch.autograd.grad((0 * zero).sum(), list(network.parameters())):
            assert not gradient.any()
        if out <= 4:
            target = torch.rand(rows, out, device=DEVICE)
            error = triton_mean_square(x.detach(), target, *network.for_ops())
            theirs = (reference(points.detach(), *exact.for_ops()) - target).square().mean()
            assert relative(error, theirs) < 4e-3, relative(error, theirs)
            found = torch.autograd.grad(3 * error, list(network.parameters()))
            expected = torch.autograd.grad(3 * theirs, list(exact.parameters()))
            for a, b in zip(found, expected, strict=True):
                assert a.shape == b.shape and relative(a, b) < 6e-3, (widths, relative(a, b))
        with torch.no_grad():
            evaluated = triton_network(x, *network.for_ops())
        assert evaluated.dtype == torch.float32 and evaluated.shape == y.shape
        assert relative(evaluated, wanted) < 2e-3, relative(evaluated, wanted)
        assert can_fuse(network.for_ops()[0]) == (max(widths) <= 128 and out <= 16 and d <= 4)
    with torch.no_grad():
        assert triton_network(x[:0], *network.for_ops()).shape == (0, out)
    # Gradients beyond float16's largest, between the layers.
    torch.manual_seed(5)
    steep = SineMLP(2, (64, 64, 64), 4, ACTIVATION, 300.0, 300.0, None, DETACH).to(DEVICE)
    with torch.no_grad():
        for layer in steep.affines()[1:]:
            layer.weight.normal_(0, 0.3)
        steep.affines()[-1].weight.fill_(200)  # what all outputs give a neuron adds up
    plane = x[:, :1].detach().repeat(1, 2)
    grads = torch.autograd.grad(triton_network(plane, *steep.for_ops()).sum(), list(steep.parameters()))
    assert all(torch.isfinite(g).all() and g.any() for g in grads)
    # Gradients below float16's smallest, since the last weights are small.
    flat = SineMLP(2, (64, 64), 3, ACTIVATION, 10.0, 10.0, None, DETACH).to(DEVICE)
    with torch.no_grad():
        flat.affines()[-1].weight.mul_(1e-8)
    exact_flat = copy.deepcopy(flat).double()
    found = torch.autograd.grad(triton_network(plane, *flat.for_ops()).sum(), list(flat.parameters()))
    expected = torch.autograd.grad(
        reference(plane.double(), *exact_flat.for_ops()).sum(), list(exact_flat.parameters())
    )
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) < 6e-3, relative(a, b)
    empty = triton_network(x[:0], *network.for_ops())
    assert empty.shape == (0, out)
    for gradient in torch.autograd.grad(empty.sum(), list(network.parameters())):
        assert not gradient.any()
    first = torch.autograd.grad(triton_network(x, *network.for_ops()).sum(), x, create_graph=True)[0]
    theirs = torch.autograd.grad(reference(points, *exact.for_ops()).sum(), points, create_graph=True)[0]
    weight = list(network.parameters())[0]
    if ACTIVATION != "spder":
        second = torch.autograd.grad(first.square().sum(), weight)[0]
        expected = torch.autograd.grad(theirs.square().sum(), list(exact.parameters())[0])[0]
        assert relative(second, expected) < 1e-4
    for angles in (torch.linspace(-40, 40, 1001), torch.tensor([0.5, -0.5, 0.25, 1.5, 99.5]) * 3.14159265):
        unit = SineMLP(1, (1,), 1, "siren", 1.0, 1.0)
        with torch.no_grad():
            for parameter in unit.parameters():
                parameter.fill_(0)
            unit.layers[0].weight.fill_(1)
            unit.layers[1].weight.fill_(1)
        unit = unit.to(DEVICE)
        z = angles[:, None].to(DEVICE).requires_grad_()
        y = triton_network(z, *unit.for_ops())
        assert (y - torch.sin(z)).abs().max() < 6e-4  # float16
        slope = torch.autograd.grad(y.sum(), z)[0]
        assert (slope - torch.cos(z)).abs().max() < 6e-4
    print("checked", flush=True)
    # With an emulated device, autograd's thread for it may still be there when libraries are unloaded.
    os._exit(0)
"""


# What gradients between layers, float16, might not hold, and what is asked for seldom.
EXTREMES = """
    import copy, os, torch
    import torch.utils.checkpoint
    from aire_nerfstudio.fields.sine_mlp import SineMLP
    from aire_nerfstudio.ops.sine_network import reference
    from aire_nerfstudio.ops.triton_mean_square import triton_mean_square
    from aire_nerfstudio.ops.triton_network import triton_network

    def relative(got, expected):
        return float((got.detach().double() - expected.detach()).norm() / expected.detach().norm().clamp_min(1e-300))

    def gradients(network, x, target, **options):
        error = triton_mean_square(x, target, *network.for_ops())
        return error, torch.autograd.grad(error, list(network.parameters()), **options)

    def check(network, x, target, allowed=6e-3):
        exact = copy.deepcopy(network).double()
        wanted = (reference(x.double(), *exact.for_ops()) - target.double()).square().mean()
        error, found = gradients(network, x, target)
        assert relative(error, wanted) < 4e-3, relative(error, wanted)
        for a, b in zip(found, torch.autograd.grad(wanted, list(exact.parameters())), strict=True):
            assert a.shape == b.shape and relative(a, b) < allowed, (a.shape, relative(a, b))
        return found

    torch.manual_seed(1)
    network = SineMLP(2, (64, 64, 40), 3, "siren", 30.0, 30.0).to(DEVICE)
    x, target = 2 * torch.rand(70, 2, device=DEVICE) - 1, torch.rand(70, 3, device=DEVICE)
    # Outputs and targets of any size, and points: far ones say little in float32, but have finite gradients.
    small = copy.deepcopy(network)
    for factor in (1e-8, 1e4):
        with torch.no_grad():
            for ours, theirs in zip(small.affines()[-1].parameters(), network.affines()[-1].parameters(), strict=True):
                ours.copy_(theirs * factor)
        check(small, x, target * factor)
    check(network, x, target * 1e6)
    assert all(torch.isfinite(g).all() for g in gradients(network, x * 1e6, target)[1])
    assert all(torch.isfinite(g).all() for g in gradients(network, x * 0, target)[1])
    check(network, x * 1e-7, target)
    # Of one point, however often, the first weights' gradient is the bias's times its coordinates, of whatever sizes,
    # with more digits than float16 has, and than what comes from behind has.
    for other in (0.1, 1e-7, 1e5):
        place = torch.tensor([1.0, other], device=DEVICE)
        found = gradients(small, place.expand(70, 2), target)[1]
        for k in range(2):
            assert relative(found[0][:, k], found[1].double() * float(place[k])) < 2e-5, (other, k)
    # A point that is far away and wanted by nobody costs the others nothing.
    far, masked = x.clone(), target.clone()
    far[0] = 1e6
    masked[0] = triton_network(far, *small.for_ops())[0].detach()  # by the same kernels, to the bit
    others = torch.autograd.grad(
        triton_mean_square(x[1:], target[1:], *small.for_ops()) * (69 / 70), list(small.parameters())
    )
    for a, b in zip(gradients(small, far, masked)[1], others, strict=True):
        assert relative(a, b) < 2e-3, relative(a, b)
    # Memory that is not zero to begin with changes nothing.
    kept = [torch.full((1 << n,), float("nan"), device=DEVICE) for n in range(4, 18) for _ in range(3)]
    del kept
    for a, b in zip(gradients(small, x, target)[1], gradients(small, x, target)[1], strict=True):
        assert torch.equal(a, b) and a.is_contiguous()
    # Near the target, as after a long training, with one point far from it.
    with torch.no_grad():
        near = reference(x, *network.for_ops()) + 1e-2 * torch.randn_like(target)
        near[7] = 30
    check(network, x, near, 2e-2)
    # Targets that lie in memory otherwise.
    for given in (torch.rand(70, 1, device=DEVICE).expand(70, 3), torch.rand(70, 4, device=DEVICE)[:, :3]):
        check(small, x, given)
    # Checkpoints unpack what was saved once.
    again = torch.utils.checkpoint.checkpoint(
        lambda: triton_mean_square(x, target, *small.for_ops()), use_reentrant=False
    )
    expected = gradients(small, x, target)[1]
    for a, b in zip(torch.autograd.grad(again, list(small.parameters())), expected, strict=True):
        assert torch.equal(a, b)
    # Only what is wanted; derivatives of derivatives are the reference's.
    network.affines()[1].weight.requires_grad_(False)
    triton_mean_square(x, target, *network.for_ops()).backward()
    assert network.affines()[1].weight.grad is None
    assert network.affines()[0].weight.grad is not None
    first = gradients(small, x, target, create_graph=True)[1]
    assert torch.autograd.grad(first[0].square().sum(), small.affines()[0].weight)[0].any()
    # A target of NaN is seen.
    target[3, 1] = float("nan")
    error, found = gradients(small, x, target)
    assert not torch.isfinite(error)
    assert not torch.isfinite(found[0]).all()
    print("checked", flush=True)
    os._exit(0)
"""


def _run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _check(activation, detach, device, has_copy_engine=True):
    # In the interpreter all shapes take half a minute: the others' activations are tried on some of them.
    shapes = SHAPES if (activation == "siren" and has_copy_engine) or device == "cuda" else SHAPES[2::4]
    # Pointers: few outputs and many.
    shapes = shapes if has_copy_engine else [SHAPES[0], SHAPES[2]]
    if "emulated_device" in sys.modules:  # which is the interpreter as well
        shapes = SHAPES[:2]
    names = f"SHAPES, ACTIVATION, DETACH, DEVICE = {shapes!r}, {activation!r}, {detach!r}, {device!r}\n"
    return names + textwrap.dedent(CHECK).replace("HAS_COPY_ENGINE", repr(has_copy_engine))


@pytest.mark.parametrize(
    ("activation", "detach", "has_copy_engine"),
    [*((*case, True) for case in CASES), ("siren", False, False), ("finer", False, False)],
)
def test_the_interpreter_finds_the_references_values_and_gradients(activation, detach, has_copy_engine):
    assert "checked" in _run(_check(activation, detach, "cpu", has_copy_engine), TRITON_INTERPRET="1")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def test_the_mean_square_of_extremes(device):
    code = textwrap.dedent(EXTREMES).replace("DEVICE", repr(device))
    assert "checked" in _run(code, **({"TRITON_INTERPRET": "1"} if device == "cpu" else {}))


@NEEDS_CUDA
@pytest.mark.parametrize(("activation", "detach"), CASES)
def test_cuda_finds_the_references_values_and_gradients(activation, detach):
    assert "checked" in _run(_check(activation, detach, "cuda"))


class _Stream:
    """A stream that says whom it waits for."""

    device = torch.device("cuda")

    def __init__(self, name, said):
        self.name, self.said = name, said

    def wait_stream(self, other):
        self.said.append(f"{self.name} waits for {other.name}")


def test_what_goes_aside_comes_after_what_it_reads_and_before_what_reads_it(monkeypatch):
    said = []
    main, side, other = (_Stream(name, said) for name in ("main", "side", "other"))
    current = [main]

    @contextlib.contextmanager
    def on(stream):
        current.append(stream)
        try:
            yield
        finally:
            current.pop()

    monkeypatch.setattr(aside, "_streams", lambda device: (side, other))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    read = torch.zeros(3)
    with aside.Aside(torch.device("cuda")) as branch:
        assert branch.run(lambda given, n: (said.append(f"run on {current[-1].name}"), n)[1], read, 7) == 7
        assert branch._used[0] is read
    assert said == ["side waits for main", "run on side", "main waits for side"]
    assert not branch._used
    # Whatever happens, a capture can end; nothing is waited for that did not begin; what is kept has an end.
    said.clear()
    with pytest.raises(ZeroDivisionError), aside.Aside(torch.device("cuda")) as branch:
        branch.run(lambda _: 1 // 0, read)
    assert said[-1] == "main waits for side"
    said.clear()
    with aside.Aside(torch.device("cuda")):
        pass
    assert not said
    with aside.Aside(torch.device("cuda")) as branch:
        for _ in range(3 * aside.MOST):
            branch.run(lambda _: None, read)
            assert len(branch._used) <= aside.MOST
    # A capture may have been given the stream itself.
    said.clear()
    current[0] = side
    with aside.Aside(torch.device("cuda")) as branch:
        branch.run(lambda: said.append(f"run on {current[-1].name}"))
    assert said == ["other waits for side", "run on other", "side waits for other"]
    # Elsewhere it is as if it were not there.
    said.clear()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for device in ("cuda", "cpu"):
        with aside.Aside(torch.device(device)) as branch:
            assert branch.run(lambda _: 7, read) == 7
            assert not branch._used
    assert not said


def test_a_triton_without_descriptors_is_told_and_not_used(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.endswith("tensor_descriptor") else find(name)
    )
    triton_network.missing.cache_clear()
    with pytest.warns(UserWarning, match="has no tensor descriptors; a newer torch brings one"):
        assert triton_network.missing() is not None
    triton_network.missing.cache_clear()


def test_only_cuda_at_medium_precision_takes_them(monkeypatch):
    network = SineMLP(2, (16,), 1)
    x = torch.rand(2048, 2)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert not triton_network.is_possible(x, *network.for_ops()[:2])
    with torch.device("meta"):
        assert not triton_network.is_possible(torch.rand(2048, 2), *SineMLP(2, (16,), 1).for_ops()[:2])
    assert sine_network(x, *network.for_ops()).shape == (2048, 1)


def test_without_a_compiler_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    triton_network.missing.cache_clear()
    with pytest.warns(UserWarning, match="no C compiler"):
        first = triton_network.missing()
    assert triton_network.missing() is first
    triton_network.missing.cache_clear()


@NEEDS_CUDA
def test_on_cuda_the_precision_chooses():
    network = SineMLP(2, (64, 64), 1).cuda()
    x = torch.rand(4096, 2, device="cuda")
    before = torch.get_float32_matmul_precision()
    try:
        for precision, is_ours in (("highest", False), ("high", False), ("medium", True)):
            torch.set_float32_matmul_precision(precision)
            y = network(x)
            assert isinstance(y.grad_fn, triton_network._TritonNetwork._backward_cls) == is_ours
    finally:
        torch.set_float32_matmul_precision(before)
