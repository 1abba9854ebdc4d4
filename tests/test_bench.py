"""aire-bench: every way computes the same, the report says what was timed, bad requests end in one line."""

import json

import pytest
import torch

from aire_nerfstudio.bench.cases import Case, flow_case, image_cases, ray_cases, surface_case, with_precisions
from aire_nerfstudio.bench.cli import main
from aire_nerfstudio.bench.memory import peak_megabytes
from aire_nerfstudio.bench.timing import time_in_turn


@pytest.mark.parametrize("which", ["image", "surface", "flow"])
def test_all_ways_leave_the_same_gradients(which, monkeypatch):
    import aire_nerfstudio.bench.cases as module

    made = []
    original = module.SineMLP

    def watched(*arguments, **options):
        made.append(original(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(module, "SineMLP", watched)
    if which == "image":
        case = image_cases(24, 100, "finer", "cpu", with_compile=False)[0]
    else:
        case = (surface_case if which == "surface" else flow_case)(24, 100, "cpu")
    gradients = {}
    for name, way in with_precisions(case, ["high"], "cpu").ways.items():
        way()
        gradients[name] = [p.grad.clone() for p in made[0].parameters() if p.grad is not None and p.grad.any()]
    # A precision is in force while its way runs, and no longer.
    assert torch.get_float32_matmul_precision() == "highest"
    first, *others = gradients.values()
    for other in others:
        assert len(other) == len(first)
        for a, b in zip(first, other, strict=True):
            assert torch.allclose(a, b, atol=2e-3 * float(a.abs().max()))


def test_the_marchers_and_renderers_that_are_timed_do_the_same():
    marching, rendering = ray_cases(64, "cpu", resolution=16)
    found = [way() for way in marching.ways.values()]
    assert len(found[0].starts) > 0
    for other in found[1:]:
        assert torch.equal(found[0].starts, other.starts)
        assert torch.equal(found[0].ray_indices, other.ray_indices)
    assert set(rendering.ways) == {"PyTorch", "ours"}


def test_memory_is_what_is_held_at_once():
    megabytes = peak_megabytes(lambda: torch.ones(64 << 18).sum() + torch.ones(64 << 18).sum(), "cpu")
    if megabytes is None:
        pytest.skip("this system does not tell")
    assert 63 < megabytes < 160


def test_every_way_runs_as_often():
    calls = []
    times, failures = time_in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, "cpu")
    assert calls == ["a", "b"] + ["a", "b"] * 3  # once to warm up, then in turn
    assert failures == {}
    assert [len(timed.milliseconds) for timed in times.values()] == [3, 3]
    low, high = times["a"].span
    assert low <= times["a"].median <= high


def test_what_does_not_run_is_said_and_the_rest_is_timed(tmp_path, capsys, monkeypatch):
    import aire_nerfstudio.bench.cli as module

    def fails(message, after=0):
        calls = []

        def way():
            calls.append(0)
            if len(calls) > after:
                raise RuntimeError(message)

        return way

    ways = {"eager": lambda: None, "compiler": fails("no ptxas\nand more"), "late": fails("  ", after=2)}
    times, failures = time_in_turn(ways, 3, "cpu")
    assert times.keys() == {"eager"}
    assert failures == {"compiler": "RuntimeError: no ptxas", "late": "RuntimeError"}
    case = Case("training step", 8, 64, {"eager": lambda: None, "broken": fails("out of memory")})
    monkeypatch.setattr(module, "image_cases", lambda *_: [case])
    monkeypatch.setattr(module, "surface_case", lambda *_: fails("no room")())
    main(["--widths", "8", "--batches", "64", "--repeats", "1", "--device", "cpu", "--out", str(tmp_path)])
    page = (tmp_path / "bench.md").read_text()
    assert "| broken | did not run: RuntimeError: out of memory |" in page
    assert "| surface | 8 | 64 | all | did not run: RuntimeError: no room |" in page
    assert "| flow step | 8 | 64 | ours |" in page
    assert "did not run: RuntimeError: no room" in capsys.readouterr().out.replace("\n", " ")


def test_the_report_holds_what_was_timed(tmp_path, capsys):
    sizes = ["--widths", "16", "--batches", "256", "--repeats", "2"]
    main([*sizes, "--no-compile", "--device", "cpu", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "bench.json").read_text())
    assert {entry["case"] for entry in report["results"]} == {
        *("training step", "inference", "surface step", "flow step", "marching", "compositing")
    }
    for entry in report["results"]:
        assert all(len(values) == 2 and min(values) > 0 for values in entry["ms"].values())
    page = (tmp_path / "bench.md").read_text()
    assert "| training step | 16 | 256 | ours, one pass |" in page
    assert "| training step | 16 | 256 | ours, one pass, high |" in page
    assert (tmp_path / "bench.png").stat().st_size > 5_000


def test_only_the_ways_that_are_named_are_timed_beside_the_baseline(tmp_path):
    small = ["--widths", "16", "--batches", "256", "--cases", "image", "--repeats", "1", "--no-compile", "--quiet"]
    given = [*small, "--device", "cpu", "--precisions", "medium", "--ways"]
    main([*given, "ours, one pass, medium", "--out", str(tmp_path / "one")])
    found = json.loads((tmp_path / "one" / "bench.json").read_text())["results"]
    # What has none of them is left out.
    assert [(entry["case"], list(entry["ms"])) for entry in found] == [
        ("training step", ["eager", "ours, one pass, medium"])
    ]
    with pytest.raises(SystemExit, match=r"--ways is mine; of these cases there are: eager; .*ours, one pass, medium"):
        main([*given, "mine", "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--widths", "0"], "--widths is"), (["--repeats", "0"], "--repeats is 0")]
)
def test_bad_requests_end_in_one_line(tmp_path, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--device", "cpu", "--out", str(tmp_path / "out")])
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()
