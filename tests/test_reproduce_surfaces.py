"""The reproduction of surfaces: the paper's protocol, fits that learn, tables that compare, pictures that show it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.data.surface import read_surface
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.reproduce.arrays import load_arrays
from aire_nerfstudio.reproduce.averaged import DECAY, Averaged
from aire_nerfstudio.reproduce.cli import choose_sources, main
from aire_nerfstudio.reproduce.experiment import Cell, Choice, Experiment, Gain
from aire_nerfstudio.reproduce.experiments import make_experiment
from aire_nerfstudio.reproduce.flow_fit import FlowFit
from aire_nerfstudio.reproduce.report import is_judged, markdown, measure
from aire_nerfstudio.reproduce.store import Store
from aire_nerfstudio.reproduce.surface_experiments import BUDGETS, SHAPES, SURFACE_EXPERIMENTS
from aire_nerfstudio.reproduce.surface_fit import SurfaceFit, fit_surface
from aire_nerfstudio.reproduce.surface_record import error_colours, weights_of

SCHEDULE = AireConfig(unit="percent", decay_start=20.0, prune_at=60.0, prune_layers=(0, 1), prune_fraction=0.5)
FIT = SurfaceFit(
    shape="ball.ply", widths=(32, 24, 16), epochs=10, on_surface=500, off_surface=500, pool=4_000, learning_rate=3e-3,
    final_ratio=0.1, omega=10.0, adaptation=SCHEDULE, resolution=40,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    trimesh.creation.icosphere(subdivisions=5, radius=3.0).export(root / "ball.ply")
    return root


def test_an_adaptive_fit_of_a_sphere(folder):
    done = fit_surface(FIT, read_surface(folder / "ball.ply"))
    figures = done.figures
    assert figures["steps"] == 205  # 10 x 10,242 / 500
    assert figures["widths"] == done.network.widths == [16, 12, 16]
    assert figures["parameters"] == SineMLP(3, [16, 12, 16], 1).num_parameters
    assert figures["reduction"] == pytest.approx(
        100 * (1 - figures["parameters"] / SineMLP(3, FIT.widths, 1).num_parameters), abs=0.01
    )
    assert [event[1] for event in figures["events"]] == ["decay", "prune"]
    # It learned: an untrained network is off by tens.
    assert figures["chamfer_x100"] < 8
    radii = np.linalg.norm(done.vertices, axis=1)
    assert np.median(radii) == pytest.approx(0.9, abs=0.03)
    assert figures["curve"][0][1] > figures["curve"][-1][1]


def test_an_average_is_scored_beside_the_last_state(folder, monkeypatch):
    """An average of one state is that state, and of many another."""
    surface = read_surface(folder / "ball.ply")
    figures = fit_surface(replace(FIT, epochs=2), surface).figures
    monkeypatch.setattr("aire_nerfstudio.reproduce.averaged.DECAY", 0.0)
    alike = fit_surface(replace(FIT, epochs=2), surface).figures
    for name in ("chamfer_x100", "hausdorff"):
        assert alike[f"averaged_{name}"] == alike[name] == figures[name]
        assert figures[f"averaged_{name}"] != figures[name]


def test_an_average_follows_and_begins_anew_where_neurons_change():
    live = SineMLP(3, [4, 4], 1)
    averaged = Averaged(live, total=1500)
    kept = [p.clone() for p in live.parameters()]
    for step in range(200, 203):
        with torch.no_grad():
            for p in live.parameters():
                p.add_(1.0)
        averaged.stepped(step)
    # After steps of 1, 2 and 3 away, each closing a twentieth of what is left.
    expected = sum((3 - i) * (1 - DECAY) * DECAY**i for i in range(3))
    for mean, old in zip(averaged.network.parameters(), kept, strict=True):
        assert torch.allclose(mean, old + expected, atol=1e-5)
        assert not mean.requires_grad
    averaged.after([])
    assert all(torch.equal(a, b) for a, b in zip(averaged.network.parameters(), live.parameters(), strict=True))


def test_a_network_without_a_surface_has_no_distance(folder):
    done = fit_surface(replace(FIT, epochs=0, variant="large", learning_rate=1e-12), read_surface(folder / "ball.ply"))
    with torch.no_grad():
        done.network.affines()[-1].bias += 100
    from aire_nerfstudio.reproduce.surface_fit import score_surface

    empty = (np.empty((0, 3)), np.empty((0, 3), np.int64))
    assert score_surface(done.network, read_surface(folder / "ball.ply"), *empty, "cpu")["chamfer_x100"] is None


def test_the_paper_budget_is_the_papers_protocol():
    fits = make_experiment("sdf-table6", Choice("paper", ("armadillo.ply",))).fits()
    aire = next(fit for fit in fits if fit.variant == "aire" and fit.activation == "finer")
    assert (aire.widths, aire.epochs, aire.omega, aire.resolution) == ((256, 256, 256), 1000.0, 60.0, 512)
    assert (aire.on_surface, aire.off_surface, aire.learning_rate, aire.final_ratio) == (10_000, 10_000, 1e-4, 1.0)
    moments = aire.adaptation
    assert (moments.decay_start, moments.prune_at, moments.prune_fraction) == (20.0, 70.0, 0.75)
    flow = [fit for fit in make_experiment("flow", Choice("paper", ("armadillo.ply",))).fits()]
    assert {fit.variant for fit in flow} == {"large", "aire", "aire_early", "aire_rounds"}
    assert all(
        (fit.on_surface, fit.space_time, fit.epochs, fit.start.omega) == (15_000, 30_000, 1e4, 30) for fit in flow
    )


@pytest.mark.parametrize("name", sorted(SURFACE_EXPERIMENTS))
@pytest.mark.parametrize("budget", sorted(BUDGETS))
def test_every_experiment_is_well_formed(name, budget):
    experiment = make_experiment(name, Choice(budget, ("bunny.ply", "lucy.ply"), (0, 1)))
    places = {(cell.row, cell.column) for cell in experiment.cells}
    assert len(places) == len(experiment.cells)
    for gain in experiment.gains:
        assert {(gain.row, gain.column), (gain.minus, gain.column)} <= places
    fits = experiment.fits()
    assert len({fit.key() for fit in fits}) == len(fits)
    for fit in fits:
        if isinstance(fit, FlowFit):
            assert fit.start in fit.needs()
            assert (fit.reference() in fit.needs()) == (fit.variant != "large")
            assert fit.reference() in fits


def test_seconds_of_other_machines_are_not_judged():
    choice = Choice("paper", tuple(f"{shape}.ply" for shape in SHAPES))
    experiment = make_experiment("sdf-table7", choice)
    judged = {
        cell.metric for cell in experiment.cells if cell.paper is not None and is_judged(cell, experiment, choice)
    }
    assert judged == {"chamfer_x100"}
    twice = next(cell for cell in experiment.cells if cell.column == "mean CD" and "twice" in cell.row)
    assert twice.paper == 0.86


def test_lower_is_better_and_ratios_divide():
    cell = Cell("ours", "CD", (), "chamfer_x100", 1.0, "lower")
    from aire_nerfstudio.reproduce.report import Measured

    rows = [Measured(cell, (0.9,)), Measured(replace(cell, row="theirs", paper=0.5), (2.0,))]
    gains = (Gain("ours", "theirs", "CD", -0.5, "lower"), Gain("ours", "theirs", "CD", 0.4, "lower", is_ratio=True))
    experiment = Experiment("x", "X", tuple(m.cell for m in rows), gains, averaged=frozenset({"a"}))
    page = markdown(experiment, Choice("paper", ("a.ply",)), rows, ["a machine"])
    assert "| ours | 0.900 | 1, met |" in page
    assert "| theirs | 2.000 | 0.5, short by 1.50 |" in page
    assert "| ours - theirs, CD | -1.10 | -0.50 | met |" in page
    assert "| ours / theirs, CD | 0.45 | 0.40 | short by 0.05 |" in page
    none = markdown(experiment, Choice("paper", ("a.ply",)), [Measured(cell, (float("nan"),)), rows[1]], ["a machine"])
    assert "| ours | none | 1, short |" in none
    assert "| ours - theirs, CD | none | -0.50 |  |" in none
    other = markdown(experiment, Choice("paper", ("b.ply",)), rows, ["a machine"])
    assert "| ours | 0.900 | 1 |" in other
    assert "| ours - theirs, CD | -1.10 | -0.50 |  |" in other
    assert "The paper's averages are over a; ours, over other files, are not held against them." in other
    of_file = replace(cell, is_of_file=True)
    alone = replace(experiment, cells=(of_file,), gains=())
    page = markdown(alone, Choice("paper", ("b.ply",)), [Measured(of_file, (1.2,))], ["a machine"])
    assert "1, short by 0.20" in page
    assert "held against" not in page
    close = replace(experiment, cells=(), gains=())
    small = replace(cell, metric="chamfer_mean", paper=0.004, rounding=0.0005)
    page = markdown(close, Choice("paper", ("a.ply",)), [Measured(small, (0.0088,))], ["a machine"])
    assert "0.004, short by 0.005" in page
    assert "0.004, met" in markdown(close, Choice("paper", ("a.ply",)), [Measured(small, (0.0044,))], ["a machine"])
    perfect = replace(cell, metric="psnr_test", is_better="higher")
    assert "| inf |" in markdown(close, Choice("paper", ("a.ply",)), [Measured(perfect, (float("inf"),))], ["m"])


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A flow, whose fits need each other, of a sphere, at the smoke budget."""
    out = tmp_path_factory.mktemp("out")
    arguments = [
        "flow",
        "--budget",
        "smoke",
        "--data",
        str(folder),
        "--out",
        str(out),
        "--jobs",
        "2",
        "--device",
        "cpu",
    ]
    main(arguments)
    return out, arguments


def test_a_flow_starts_from_its_surface_and_is_compared_with_the_large_one(finished, folder):
    out, _ = finished
    store = Store(out / "fits", folder, "cpu")
    fits = make_experiment("flow", Choice("smoke", ("ball.ply",))).fits()
    for fit in fits:
        figures = store.load(fit)
        assert figures is not None
        assert ("chamfer_0" in figures) == (fit.variant != "large")
    start = weights_of(load_arrays(store.record_path(fits[0].start)))
    assert start["layers.0.weight"].shape == (16, 3)
    report = json.loads((out / "smoke" / "flow.json").read_text())
    assert {cell["row"] for cell in report["cells"]} == {"large", "aire", "aire_early", "aire_rounds"}
    with Image.open(out / "smoke" / "flow-ball.png") as image:
        assert len(set(image.convert("L").resize((64, 64)).getdata())) > 10


def test_what_is_finished_is_not_run_again(finished, monkeypatch, capsys):
    from aire_nerfstudio.reproduce import runner

    _, arguments = finished
    monkeypatch.setattr(runner, "ProcessPoolExecutor", None)
    main(arguments)
    said = capsys.readouterr().out
    assert "5 of them finished before" in said
    assert "another state" not in said
    monkeypatch.setattr("aire_nerfstudio.reproduce.store.code", lambda: "other")
    main(arguments)
    assert "5 of the finished fits were run by another state of this package's code" in capsys.readouterr().out


def test_a_table_of_surfaces_with_its_pictures(folder, tmp_path):
    main(
        [
            "sdf-figure4",
            "--budget",
            "smoke",
            "--data",
            str(folder),
            "--out",
            str(tmp_path),
            "--jobs",
            "2",
            "--device",
            "cpu",
        ]
    )
    made = tmp_path / "smoke"
    store = Store(tmp_path / "fits", folder, "cpu")
    experiment = make_experiment("sdf-figure4", Choice("smoke", ("ball.ply",)))
    found = {(m.cell.row, m.cell.column): m for m in measure(experiment, store)}
    # In the paper's unit: its shapes reach from -1 to 1.
    for column, metric in (("CD", "chamfer_x100"), ("Hausdorff", "hausdorff"), ("normals", "normal_consistency")):
        figures = store.load(found["large", column].cell.fits[0])
        factor = 1 if column == "normals" else 1 / 0.9
        assert found["large", column].mean == pytest.approx(factor * figures[metric])
    assert found["small", "parameters"].mean == SineMLP(3, [4, 4, 4, 16], 1).num_parameters
    mesh = trimesh.load(made / "sdf-figure4-ball-large.ply", process=False)
    arrays = load_arrays(store.record_path(found["large", "CD"].cell.fits[0]))
    assert len(mesh.vertices) == len(arrays["vertices"])
    assert np.array_equal(
        np.asarray(mesh.visual.vertex_colors)[:, :3], (255 * error_colours(arrays["error"] / 0.9)).astype(np.uint8)
    )
    assert (made / "sdf-figure4-ball.png").is_file()


def test_colours_of_errors_end_dark_red():
    colours = error_colours(np.array([0.0, 0.005, 0.01, 1.0]))
    assert colours[0, 2] > 0.4 > colours[0, 0]
    assert colours[2, 0] > 0.4 > colours[2, 2]
    assert np.array_equal(colours[2], colours[3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sdf-table6", "--budget", "crop"], "surfaces have no budget crop"),
        (["sdf-table6", "--shapes", "zz"], "has no such file among its surfaces"),
        (["images-table3"], "holds no images"),
    ],
)
def test_bad_requests_end_in_one_line(folder, tmp_path, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--data", str(folder), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_two_files_of_one_name_are_not_mixed_up(tmp_path):
    for suffix in ("ply", "obj"):
        trimesh.creation.icosphere(subdivisions=1).export(tmp_path / f"a.{suffix}")
    with pytest.raises(InputError, match="several files called a"):
        choose_sources(tmp_path, None, "surfaces")
    assert choose_sources(tmp_path, ["a.obj"], "surfaces") == ("a.obj",)


def test_a_bad_shape_is_found_before_any_fit(tmp_path):
    (tmp_path / "a.ply").write_text("no mesh")
    with pytest.raises((SystemExit, InputError), match="no end_header"):
        main(["sdf-table5", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert not (tmp_path / "out").exists()
