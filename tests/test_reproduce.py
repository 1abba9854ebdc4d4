"""The reproduction: fits are what they say, tables print only what was measured, nothing is run twice."""

import csv
import json
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.analysis.split import split_outputs
from aire_nerfstudio.data.picture import Picture, pixel_centres
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.reproduce import cli, runner
from aire_nerfstudio.reproduce.cli import main, parse_changes
from aire_nerfstudio.reproduce.evaluate import decibel, score_pixels
from aire_nerfstudio.reproduce.experiment import Choice
from aire_nerfstudio.reproduce.experiments import make_experiment
from aire_nerfstudio.reproduce.image_experiments import BUDGETS, IMAGE_EXPERIMENTS
from aire_nerfstudio.reproduce.image_fit import ImageFit, crop_picture, fit_image, load_picture, reduce_picture
from aire_nerfstudio.reproduce.record import Recorder
from aire_nerfstudio.reproduce.report import Measured, is_judged, markdown, measure, spread, verdict
from aire_nerfstudio.reproduce.store import Store

SCHEDULE = AireConfig(
    unit="percent", densify_at=10.0, densify_fraction=0.25, decay_start=40.0, prune_at=80.0, prune_layers=(0,),
    prune_fraction=0.6,
)  # fmt: skip
FIT = ImageFit(image="a.png", widths=(16, 12), epochs=40, batch=100, learning_rate=2e-3, adaptation=SCHEDULE)


@pytest.fixture(scope="module")
def picture():
    y, x = np.mgrid[0:13, 0:17] / 17
    return Picture(torch.tensor(np.stack([x, y, x * y], -1), dtype=torch.float32), 1.0)


def test_an_adaptive_fit(picture):
    recorder = Recorder(picture, "cpu")
    done = fit_image(FIT, picture, recorder=recorder)
    figures = done.figures
    assert figures["widths"] == done.network.widths == [8, 12]
    assert figures["parameters"] == SineMLP(2, [8, 12], 3).num_parameters
    assert figures["steps_per_epoch"] == 2  # 199 training pixels
    assert figures["steps"] == 80
    assert [event[:2] for event in figures["events"]] == [[8, "densify"], [32, "decay"], [64, "prune"]]
    everything = torch.arange(13 * 17)
    assert figures["psnr_train"] > 15
    end = torch.from_numpy(recorder.arrays["picture_end"].astype(np.float32))
    assert score_pixels(done.network, picture, everything, "cpu") == pytest.approx(
        decibel(float((end - picture.floats()).square().mean())), abs=0.02
    )
    assert len(recorder.arrays["contributions_densify"]) == len(recorder.arrays["contributions_prune"]) == 20
    assert recorder.arrays["new_prune"] == 4


def test_the_layer_that_loses_neurons_is_what_is_split(picture):
    recorder = Recorder(picture, "cpu")
    later = replace(SCHEDULE, densify_at=None, densify_fraction=0.0, prune_layers=(1,), prune_fraction=0.5)
    fit_image(replace(FIT, adaptation=later), picture, recorder=recorder)
    kept = recorder.arrays
    assert kept["important_before_decay"].shape == kept["unimportant_before_prune"].shape == (13, 17, 3)
    network = SineMLP(2, (16, 12), 3)
    recorder.before(network, "decay", 1, 5)
    strong, weak = split_outputs(network, pixel_centres(torch.arange(13 * 17), 13, 17), 1, 5)
    for name, wanted in (("important", strong), ("unimportant", weak)):
        shown = torch.from_numpy(kept[f"{name}_before_decay"].astype(np.float32)).view(-1, 3)
        assert torch.allclose(shown, 0.5 * (wanted + 1), atol=2e-3)


def test_a_fit_is_a_function_of_its_settings(picture):
    first, second = (fit_image(FIT, picture).figures for _ in range(2))
    for name in first.keys() - {"seconds", "inference_ms"}:
        assert first[name] == second[name], name
    assert fit_image(replace(FIT, seed=1), picture).figures["psnr_test"] != first["psnr_test"]


@pytest.mark.parametrize("variant", ["large", "small", "no_decay", "weight_decay", "depgraph", "rigl", "zell"])
def test_every_variant_fits(picture, variant):
    # The lattice has 780 frequencies and the small network must have fewer.
    figures = fit_image(replace(FIT, variant=variant, epochs=10), picture).figures
    small = SineMLP(2, [8, 12], 3).num_parameters
    expected = SineMLP(2, [16, 12], 3).num_parameters if variant == "large" else small
    assert abs(figures["parameters"] - expected) <= 2


def test_keys_tell_settings_apart():
    same = replace(FIT, seed=0)
    assert same.key() == FIT.key()
    others = [
        replace(FIT, seed=1), replace(FIT, widths=(16, 13)), replace(FIT, adaptation=replace(SCHEDULE, epsilon=0.02)),
    ]  # fmt: skip
    assert len({fit.key() for fit in [FIT, *others]}) == 4


def test_reducing_averages_areas(picture):
    even = Picture(torch.rand(12, 8, 3), 1.0)
    small = reduce_picture(even, 6)
    assert small.values.shape == (6, 4, 3)
    assert torch.allclose(small.values, even.values.view(6, 2, 4, 2, 3).mean((1, 3)), atol=1e-6)
    assert reduce_picture(picture, 17) is picture


def test_a_crop_is_the_middle_as_stored(tmp_path):
    values = torch.arange(7 * 10 * 3, dtype=torch.uint8).view(7, 10, 3)
    middle = crop_picture(Picture(values, 255.0), 4)
    assert torch.equal(middle.values, values[1:5, 3:7])
    assert middle.values.dtype == torch.uint8
    assert torch.equal(crop_picture(Picture(values, 255.0), 8).values, values[:, 1:9])  # less high than that
    Image.fromarray(values.numpy()).save(tmp_path / "a.png")
    fit = ImageFit(image="a.png", crop=6, side=3)
    assert load_picture(fit, tmp_path).floats().shape == (3, 3, 3)
    assert ImageFit(image="a.png", crop=6).key() != ImageFit(image="a.png").key()


@pytest.mark.parametrize("name", sorted(IMAGE_EXPERIMENTS))
@pytest.mark.parametrize("budget", sorted(BUDGETS))
def test_every_experiment_is_well_formed(name, budget):
    experiment = make_experiment(name, Choice(budget, ("00.png", "01.png"), (0, 1)))
    places = {(cell.row, cell.column) for cell in experiment.cells}
    assert len(places) == len(experiment.cells)
    for gain in experiment.gains:
        assert {(gain.row, gain.column), (gain.minus, gain.column)} <= places
    fits = experiment.fits()
    assert len({fit.key() for fit in fits}) == len(fits)
    assert all(fit.widths[0] >= 2 for fit in fits)


def test_the_paper_budget_is_the_papers_protocol():
    fits = make_experiment("images-table3", Choice("paper", ("00.png",))).fits()
    aire = next(fit for fit in fits if fit.variant == "aire")
    assert (aire.widths, aire.epochs, aire.batch, aire.side, aire.omega) == ((512,) * 3, 5000, 65_536, None, 30.0)
    picture = Picture(torch.zeros(512, 512, 3, dtype=torch.uint8), 255.0)
    from aire_nerfstudio.adaptation.aire import AireStrategy
    from aire_nerfstudio.adaptation.aire_plan import densify_count, planned_widths
    from aire_nerfstudio.data.pixels import PixelBatches, split_pixels

    batches = PixelBatches(picture, split_pixels(512 * 512, 0.1, 0)[0], aire.batch, 0, "cpu")
    assert batches.steps_per_epoch == 4
    strategy = AireStrategy(aire.adaptation)
    groups = SineMLP(2, aire.widths, 3).neuron_groups()
    schedule = strategy.init_state(groups, 4, 20_000).schedule
    assert (schedule.densify_at, schedule.decay_start, schedule.prune_at) == (4 * 250, 4 * 2250, 4 * 4500)
    assert densify_count(aire.adaptation, 512) == 128
    assert planned_widths(aire.adaptation, aire.widths, schedule) == (256, 512, 512)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("reproduce")
    (root / "data").mkdir()
    for name in ("a", "b"):
        values = np.random.default_rng(ord(name)).integers(0, 255, (24, 30, 3), dtype=np.uint8)
        Image.fromarray(values).save(root / "data" / f"{name}.png")
    arguments = [
        "images-figure10", "--budget", "smoke", "--data", str(root / "data"), "--out", str(root / "out"), "--jobs", "2",
        "--device", "cpu",
    ]  # fmt: skip
    main(arguments)
    return root, arguments


def test_the_reports_hold_what_the_fits_measured(finished):
    root, _ = finished
    folder = root / "out" / "smoke"
    report = json.loads((folder / "images-figure10.json").read_text())
    page = (folder / "images-figure10.md").read_text()
    for cell in report["cells"]:
        values = []
        for key, value in cell["fits"].items():
            saved = json.loads((root / "out" / "fits" / f"{key}.json").read_text())
            assert saved["figures"][cell["metric"]] == value
            values.append(value)
        assert cell["mean"] == pytest.approx(statistics.fmean(values))
        assert cell["std"] == pytest.approx(statistics.stdev(values))
        assert f"{cell['mean']:,.2f} +- {cell['std']:.2f}" in page
    with (folder / "images-figure10.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 12
    for picture in ("curves", "TWD", "no-decay"):
        with Image.open(folder / f"images-figure10-{picture}.png") as image:
            assert len(set(image.convert("L").resize((64, 64)).getdata())) > 10


def test_finished_fits_are_not_run_again(finished, monkeypatch, capsys):
    root, arguments = finished
    before = {path: path.stat().st_mtime_ns for path in (root / "out" / "fits").iterdir()}
    monkeypatch.setattr(runner, "ProcessPoolExecutor", None)
    main(arguments)
    assert "4 of them finished before" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (root / "out" / "fits").iterdir()}


def test_another_picture_of_the_same_name_is_another_fit(finished, tmp_path):
    root, _ = finished
    fit = make_experiment("images-figure10", Choice("smoke", ("a.png",))).fits()[0]
    stored = Store(root / "out" / "fits", root / "data", "cpu")
    assert stored.is_finished(fit, is_recorded=True)
    assert not stored.is_finished(fit, is_alone=True)  # two ran at a time
    (tmp_path / "a.png").write_bytes((root / "data" / "b.png").read_bytes())
    assert not Store(root / "out" / "fits", tmp_path, "cpu").is_finished(fit)
    assert Store(root / "out" / "fits", root / "data", "cuda:1").key(fit) != stored.key(fit)
    assert not Store(root / "out" / "fits", root / "data", "cpu", "high").is_finished(fit)


def test_a_diverged_fit_has_no_spread():
    assert spread([1.0, float("nan")]) is None
    assert spread([1.0]) is None
    assert spread([1.0, 3.0]) == pytest.approx(2**0.5)


def test_a_missing_or_damaged_fit_is_no_number(finished, tmp_path):
    root, _ = finished
    choice = Choice("smoke", ("a.png", "b.png"))
    experiment = make_experiment("images-figure10", choice)
    with pytest.raises(InputError, match="run the experiment first"):
        measure(experiment, Store(tmp_path, root / "data", "cpu"))
    store = Store(tmp_path, root / "data", "cpu")
    for fit in experiment.fits():
        store.path(fit).write_text((root / "out" / "fits" / f"{store.key(fit)}.json").read_text()[:-40])
    with pytest.raises(InputError, match="is damaged"):
        measure(experiment, store)


def test_verdicts_only_where_they_mean_something(finished):
    root, _ = finished
    choice = Choice("smoke", ("a.png", "b.png"))
    experiment = replace(make_experiment("images-figure10", choice), averaged=frozenset({"a", "b"}))
    measured = measure(experiment, Store(root / "out" / "fits", root / "data", "cpu"))
    rough = markdown(experiment, choice, measured, ["a machine"])
    assert "| 38.12 |" in rough
    papers = markdown(experiment, replace(choice, budget="paper"), measured, ["a machine"])
    after = next(m for m in measured if m.cell.column == "after removal" and m.cell.row == "TWD")
    assert f"| 38.12, short by {38.12 - after.mean:.2f} |" in papers
    assert verdict(0.0) == verdict(-0.004) == "met"
    assert verdict(-0.02) == "short by 0.02"


@pytest.mark.parametrize("name", ["images-table4", "images-figure10", "images-table3"])
def test_pictures_that_the_paper_does_not_name_are_not_judged(name):
    choice = Choice("paper", tuple(f"{number:02d}.png" for number in range(16)))
    experiment = make_experiment(name, choice)
    judged = [cell for cell in experiment.cells if cell.paper is not None and is_judged(cell, experiment, choice)]
    assert bool(judged) is (name == "images-table3")
    page = markdown(replace(experiment, cells=experiment.cells[:1], gains=()), choice, [_measured(experiment)], ["m"])
    assert ("does not say which files" in page) is (name == "images-table4")


def _measured(experiment):
    return Measured(experiment.cells[0], (30.0,))


@pytest.mark.parametrize("name", ["images-figure11", "images-figure12", "images-figure13"])
def test_two_hidden_layers_come_after_the_input_layer(name):
    fits = make_experiment(name, Choice("paper", ("00.png",))).fits()
    assert {fit.widths for fit in fits} == {(512, 512, 512)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images-table99"], "no experiment"),
        (["images-table3", "--images", "zz"], "has no such file"),
        (["images-table3", "--jobs", "0"], "--jobs is 0"),
        (["images-table3", "--set", "decai=none"], "must be NAME=VALUE"),
        (["images-table3", "--set", "prune_at=soon"], "no value of prune_at"),
        (["images-table3", "--set", "decay=sheduled"], "choose one of targeted"),
        (
            ["images-table3", "--set", "prune_at=40"],
            "decay_start is 45 and prune_at 40 (percent)",
        ),
    ],
)
def test_bad_requests_end_in_one_line(finished, tmp_path, arguments, message):
    root, _ = finished
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--data", str(root / "data"), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_of_all_experiments_those_that_can_be_are_run(finished, tmp_path, monkeypatch):
    root, _ = finished
    asked = []
    monkeypatch.setattr(cli, "run_fits", lambda fits, *rest: asked.append(len(fits)))
    monkeypatch.setattr(cli, "write_report", lambda *rest: root / "out" / "smoke" / "images-figure10.md")
    monkeypatch.setattr(cli, "measure", lambda *rest: [])
    monkeypatch.setattr(cli, "draw", lambda *rest: [])
    changed = ["--set", "decay=scheduled", "decay_start=20", "prune_at=40"]
    with pytest.raises(SystemExit, match=r"images-ordering: .*images-figure13: |images-figure13: .*images-ordering: "):
        main(["all", "--data", str(root / "data"), "--out", str(tmp_path), "--budget", "smoke", *changed])
    assert len(asked) >= 8


def test_bad_data_is_found_before_any_fit(tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    for data, message in ((tmp_path, "no picture that Pillow can open"), (tmp_path / "none", "is no folder")):
        with pytest.raises(SystemExit, match=message):
            main(["images-table3", "--data", str(data), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert not (tmp_path / "out").exists()


def test_changes_are_typed():
    changes = dict(
        parse_changes(["decay=none", "prune_at=40", "prune_layers=0,1", "densify_at=none", "target_parameters=90"])
    )
    assert changes == {
        "decay": "none", "prune_at": 40.0, "prune_layers": (0, 1), "densify_at": None, "target_parameters": 90,
    }  # fmt: skip
    assert isinstance(changes["target_parameters"], int)
    replace(SCHEDULE, **changes)
