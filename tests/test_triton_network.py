"""The Triton kernels: right in Triton's interpreter, compiled for Hopper without spills, and right on CUDA itself."""

import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops import triton_network
from aire_nerfstudio.ops.sine_network import sine_network

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

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
    from aire_nerfstudio.ops.sine_network import reference
    from aire_nerfstudio.ops.triton_mean_square import triton_mean_square
    from aire_nerfstudio.ops.triton_network import can_fuse, triton_network

    def relative(got, expected):
        return float((got.detach().double() - expected.detach()).norm() / expected.detach().norm())

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


def _run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _check(activation, detach, device):
    # In the interpreter all shapes take half a minute: the others' activations are tried on some of them.
    shapes = SHAPES if activation == "siren" or device == "cuda" else SHAPES[2::4]
    if "emulated_device" in sys.modules:  # which is the interpreter as well
        shapes = SHAPES[:2]
    names = f"SHAPES, ACTIVATION, DETACH, DEVICE = {shapes!r}, {activation!r}, {detach!r}, {device!r}\n"
    return names + textwrap.dedent(CHECK)


@pytest.mark.parametrize(("activation", "detach"), CASES)
def test_the_interpreter_finds_the_references_values_and_gradients(activation, detach):
    assert "checked" in _run(_check(activation, detach, "cpu"), TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("activation", "detach"), CASES)
def test_cuda_finds_the_references_values_and_gradients(activation, detach):
    assert "checked" in _run(_check(activation, detach, "cuda"))


COMPILE = """
    import os, re, subprocess, tempfile
    import triton, triton.backends.nvidia as nvidia
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from aire_nerfstudio.ops import triton_adam as adam
    from aire_nerfstudio.ops import triton_kernels as kernels
    from aire_nerfstudio.ops import triton_sums as sums
    from aire_nerfstudio.ops.triton_network import NARROW

    ptxas = os.path.join(os.path.dirname(nvidia.__file__), "bin", "ptxas")

    SMALL = 101_376

    def check(function, types, constants, aligned, options, is_product=True, small=False):
        at = function.arg_names.index
        assert {*types, *constants} == {*function.arg_names}, {*types, *constants} ^ {*function.arg_names}
        signature = {**types, **{name: "constexpr" for name in constants}}
        source = ASTSource(
            fn=function, signature=signature, constexprs={(at(n),): v for n, v in constants.items()},
            attrs={(at(n),): [["tt.divisibility", 16]] for n in aligned},
        )
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        if small:
            # What a block may have on consumers' GPUs.
            there = triton.compile(source, target=GPUTarget("cuda", 86, 32), options=options)
            assert there.metadata.shared <= SMALL, (function, constants, there.metadata.shared)
        with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
            file.write(made.asm["ptx"])
            file.flush()
            command = [ptxas, "-v", "-arch=sm_90a", file.name, "-o", "/dev/null"]
            said = subprocess.run(command, capture_output=True, text=True).stderr
        spilled = [int(n) for n in re.findall(r"(\\d+) bytes spill", said)]
        assert spilled and not any(spilled), (function, constants, said)
        assert not is_product or "wgmma" in made.asm["ptx"], (function, constants)

    # Numbers that are 1 are constants to Triton, and what it then does with them has to compile as well.
    def split(tile):
        options = {name: value for name, value in tile.items() if name.startswith("num_")}
        return {name: value for name, value in tile.items() if name.isupper() and name != "SHARES"}, options

    for columns in (64, 128, 256):
        for kind in range(4 if columns == 64 else 1):  # the others have the same tiles
            kept = "*i16" if kind == 0 else "*fp32"
            sizes = {n: "i32" for n in ("rows", "depth", "columns", "width")}
            for entry, end, memory in (
                *((0, 0, 1 << 30), (0, 1, 1 << 30), (0, NARROW, 1 << 30), (2, 0, 1 << 30), (3, 3, 1 << 30)),
                *((0, 0, SMALL), (0, NARROW, SMALL)),
            ):
                share, options = split(kernels.forward_tile(columns, kind, bool(entry), bool(end), memory))
                of_weight = "*fp32" if entry else "*fp16"
                check(
                    kernels.layer_forward,
                    {"x": of_weight, "weight": of_weight, "value": "*fp16", "kept": kept,
                     **{n: "*fp32" for n in ("bias", "last", "sizes", "y", "norms")}, **sizes, "omega": "fp32"},
                    {"KIND": kind, "ENTRY": entry, "OUT": end, "KEEP": True, **share},
                    ["x", "weight", "bias", "value", "kept", "last", "columns", *([] if entry else ["depth"])], options,
                    not entry, small=memory == SMALL,
                )
            plain = ((0, 0, True), (1, 0, True), (NARROW, 0, True))
            for narrow, entry, store in (*plain, (0, 2, False), (3, NARROW, True)):
                share, options = split(kernels.backward_tile(columns, kind, bool(narrow), bool(entry)))
                names = ("x", "entry_weight", "entry_bias", "factor", "parts", "largest")
                kind_of = "*fp32" if narrow else "*fp16"
                check(
                    kernels.layer_backward,
                    {"grad": kind_of, "weight": kind_of, "kept": kept, "out": "*fp16", **{n: "*fp32" for n in names},
                     **sizes, "omega": "fp32"},
                    {"KIND": kind, "NARROW": narrow, "ENTRY": entry, "STORE": store, **share},
                    ["grad", "weight", "kept", "out", "columns", *([] if narrow else ["depth"])], options, not narrow,
                )
        share, options = split(kernels.outer_tile(columns, columns))
        check(
            kernels.outer_product,
            {"grad": "*fp16", "x": "*fp16", "partial": "*fp32",
             **{n: "i32" for n in ("rows", "n", "k", "share", "shares")}},
            share, ["grad", "x", "partial", "n", "k"], options, small=columns == 256,
        )
    for few in (kernels.FEW_OUT, kernels.MANY_OUT):
        for along in ({"along_depth": 1}, {"along_output": 1}):
            check(
                kernels.affine,
                {"x": "*fp16", "high": "*fp16", "low": "*fp16", "bias": "*fp32", "y": "*fp32", "rows": "i32",
                 "depth": "i32", "outputs": "i32", "along_output": "i32", "along_depth": "i32"},
                {"BIAS": True, "LOW": True, "OUT": few, **split(kernels.AFFINE_TILE)[0], **along},
                ["x", "high", "low", "depth", "along_output" if "along_depth" in along else "along_depth"],
                split(kernels.AFFINE_TILE)[1],
            )
    for one in ({}, {"n": 1}, {"k": 1}):
        check(
            sums.pack,
            {"weight": "*fp32", "high": "*fp16", "low": "*fp16", "norms": "*fp32", "n": "i32", "k": "i32",
             "columns": "i32", "padded_n": "i32"},
            {"LOW": True, "NORMS": True, "ROWS": sums.PACK_ROWS, "COLUMNS": sums.PACK_COLUMNS, **one},
            ["high", "low", "columns", "padded_n"], {}, is_product=False,
        )
    for one in ({}, {"across": 1, "shares": 1}):
        check(
            sums.total,
            {**{n: "*fp32" for n in ("partial", "numerator", "denominator", "out")}, "gain": "fp32",
             **{n: "i32" for n in ("shares", "across", "down", "padded_across", "padded_down")}},
            {"NUMERATOR": True, "BLOCK": sums.TOTAL_BLOCK, "SHARES": sums.TOTAL_SHARES, **one},
            ["partial", "padded_across"], {}, is_product=False,
        )
    for narrow, entry, one in ((0, 0, {"width": 1, "columns": 1}), (3, 2, {}), (NARROW, NARROW, {"blocks": 1})):
        check(
            sums.total_parts,
            {**{n: "*fp32" for n in ("parts", "numerator", "scale", "out")}, "gain": "fp32",
             **{n: "i32" for n in ("blocks", "width", "columns")}},
            {"NUMERATOR": True, "NARROW": narrow, "ENTRY": entry, "BLOCK": sums.PARTS_BLOCK,
             "SHARES": sums.PARTS_SHARES, **one},
            ["parts"], {}, is_product=False,
        )
    for out, one in ((1, {"tiles": 1}), (3, {})):
        check(
            sums.finish,
            {**{n: "*fp32" for n in ("shares", "bias", "target", "y", "sums", "squares", "largest")},
             "rows": "i32", "tiles": "i32", "gain": "fp32"},
            {"OUT": out, "BIAS": True, "TARGET": True, "MEASURE": True, "ROWS": sums.FINISH_ROWS, **one},
            ["shares"], {}, is_product=False,
        )
    check(
        adam._begin,
        {"table": "*i64", "corrections": "*fp32", "loss": "*fp32", "finite": "*i8", "count": "i32",
         "log_beta1": "fp32", "log_beta2": "fp32"},
        {"BLOCK": 8}, [], {}, is_product=False,
    )
    check(
        adam._update,
        {"table": "*i64", "places": "*i32", "corrections": "*fp32", "rate": "*fp32", "finite": "*i8",
         **{n: "fp32" for n in ("beta1", "beta2", "rest1", "rest2", "eps", "decay")}},
        {"UPDATE": True, "MAXIMIZE": True, "DECAY": True, "BLOCK": adam.BLOCK}, [], {}, is_product=False,
    )
    for kind in range(4):
        for one in ({}, {"n_grads": 1, "n_norms": 1, "n_sizes": 1}):
            check(
                sums.next_scale,
                {**{n: "*fp32" for n in ("grads", "norms", "sizes", "scale", "factor", "following")}, "omega": "fp32",
                 **{n: "i32" for n in ("n_grads", "n_norms", "n_sizes")}},
                {"KIND": kind, "BLOCK": sums.SCALE_BLOCK, **one}, [], {},
                is_product=False,
            )
    names = ["x", "first", "hidden", "last", "bias", "last_bias", "omega", "y"]
    for width in kernels.FUSED_WIDTHS:
        for kind in range(4):
            check(
                kernels.fused_forward,
                {**{n: "*fp16" if n in ("hidden", "last") else "*fp32" for n in names},
                 "rows": "i32", "inputs": "i32", "outputs": "i32"},
                {"LAYERS": 3, "KIND": kind, "WIDTH": width, "OUT": kernels.FUSED_OUT, "ROWS": kernels.FUSED_ROWS},
                names, {"num_warps": kernels.FUSED_WARPS},
            )
    print("compiled")
"""


def test_all_kernels_compile_for_hopper_with_tensor_cores_and_without_spills(tmp_path):
    assert "compiled" in _run(COMPILE, TRITON_CACHE_DIR=str(tmp_path))


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
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
