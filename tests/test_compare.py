"""Methods side by side: entries as typed, the clock, the shared scoring, and one whole comparison."""

import csv
import dataclasses
import io
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run_command as _run
from PIL import Image

from aire_nerfstudio.compare import cli
from aire_nerfstudio.compare.cli import _last_words, as_name
from aire_nerfstudio.compare.contestant import Contestant, circumstances, contestant, scene_format
from aire_nerfstudio.compare.report import Entry, common_views, markdown, page, ranked, table
from aire_nerfstudio.compare.scoring import read_over_white
from aire_nerfstudio.compare.trial import Clock, without_lpips_weights
from aire_nerfstudio.errors import InputError

KNOWN = {"aire-siren", "nerfacto", "instant-ngp"}
TINY = (
    "--pipeline.datamanager.train-num-rays-per-batch 64 --pipeline.model.density-widths 9 8 "
    "--pipeline.model.colour-widths 7 --pipeline.model.n-features 5 --pipeline.model.grid-resolution 16 "
    "--pipeline.model.max-steps-per-ray 32"
)


@pytest.mark.parametrize(
    ("text", "label", "method", "options"),
    [
        ("aire-siren", "aire-siren", "aire-siren", ()),
        ("aire-siren --a 1", "aire-siren --a 1", "aire-siren", ("--a", "1")),
        ("big=aire-siren --a 1", "big", "aire-siren", ("--a", "1")),
        ("nerfacto, 512 rays=nerfacto --a '1 2'", "nerfacto, 512 rays", "nerfacto", ("--a", "1 2")),
        ("aire-siren --a=1", "aire-siren --a=1", "aire-siren", ("--a=1",)),
    ],
)
def test_entries_are_read_as_typed(text, label, method, options):
    assert contestant(text, KNOWN) == Contestant(label, method, options)


@pytest.mark.parametrize("text", ["", "=aire-siren", "big=", "nerf-o-matic", "nerfacto --a 'b"])
def test_wrong_entries_are_refused(text):
    with pytest.raises(InputError, match=r"--methods .*(name a method|knows no method|cannot be read)"):
        contestant(text, KNOWN)


def test_a_scene_asks_for_its_options(tmp_path):
    (tmp_path / "transforms_train.json").write_text("{}")
    ours = Contestant("a", "aire-siren").command(tmp_path, "cpu")
    assert ours[-2:] == ["--data", str(tmp_path)]
    assert "--pipeline.model.density-widths" in ours
    assert Contestant("a", "aire-siren").command(tmp_path, "cuda") == ["aire-siren", "--data", str(tmp_path)]
    given = Contestant("a", "aire-siren", ("--x", "1")).command(tmp_path, "cpu")
    assert given[-4:] == ["--x", "1", "--data", str(tmp_path)]
    assert given[:-4] == ours[:-2]
    theirs = Contestant("b", "nerfacto").command(tmp_path, "cpu")
    assert theirs[-3:] == ["blender-data", "--data", str(tmp_path)]
    assert theirs[theirs.index("--pipeline.model.background-color") + 1] == "white"
    (tmp_path / "transforms_train.json").rename(tmp_path / "transforms.json")
    assert Contestant("b", "nerfacto").command(tmp_path, "cpu") == [
        *("nerfacto", "nerfstudio-data", "--data", str(tmp_path))
    ]
    (tmp_path / "transforms.json").unlink()
    with pytest.raises(InputError, match="Blender's or nerfstudio's"):
        scene_format(tmp_path)


def test_what_needs_cuda_says_why():
    assert "nerfacc" in Contestant("a", "instant-ngp").obstacle("cpu")
    assert Contestant("a", "instant-ngp").obstacle("cuda") is None
    assert Contestant("a", "nerfacto").obstacle("cpu") is None


def test_the_truth_lies_over_white_and_shrinks_as_a_mean(tmp_path):
    pixels = np.zeros((4, 6, 4), dtype=np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, 51  # a fifth opaque
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = torch.tensor([200 / 255 * 0.2 + 0.8, 0.8, 0.8])
    assert torch.allclose(read_over_white(tmp_path / "a.png", 6, 4), expected.expand(4, 6, 3), atol=1e-6)
    noise = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "b.png")
    halves = torch.from_numpy(noise / 255).float().view(2, 2, 3, 2, 3).mean((1, 3))
    assert torch.allclose(read_over_white(tmp_path / "b.png", 3, 2), halves, atol=1e-6)


def test_the_clock_stops_in_time_and_measures_the_speed_that_lasts(monkeypatch):
    from nerfstudio.engine import trainer as engine

    from aire_nerfstudio.models import trainer as own

    class Fake:
        def train(self):
            self.stop_training = False
            for number in range(10_000):
                if self.stop_training:
                    break
                self.train_iteration(number)
            self._after_train()

        def train_iteration(self, number):
            time.sleep(0.1 if number < 2 else 0.005)

        def _after_train(self):
            time.sleep(0.3)

    # Ours makes several steps in an iteration, not all through nerfstudio's.
    class FakeOfOurs(Fake):
        def train_iteration(self, number):
            for _ in range(3):
                self._train_step(number)
            super().train_iteration(number)

        def _train_step(self, number):
            time.sleep(0.001)

    monkeypatch.setattr(engine, "Trainer", Fake)
    monkeypatch.setattr(own, "AdaptiveTrainer", FakeOfOurs)
    clock = Clock(0.8)
    clock.install()
    Fake().train()
    assert 0.75 < clock.ended - clock.began < 1.2
    assert 20 < len(clock.moments) < 200
    lasting = clock.rate()
    assert lasting > 1.2 * len(clock.moments) / (clock.ended - clock.began)
    clock.moments.clear()
    trainer = FakeOfOurs()
    for number in range(2):
        trainer.train_iteration(number)
    assert len(clock.moments) == 6


def test_methods_can_be_made_without_lpips_weights(monkeypatch, tmp_path):
    from torchmetrics.image import lpip

    real = lpip.LearnedPerceptualImagePatchSimilarity
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with without_lpips_weights():
        made = lpip.LearnedPerceptualImagePatchSimilarity(normalize=True)
        assert math.isnan(made(1, 2))
        assert not list(made.parameters())
    assert lpip.LearnedPerceptualImagePatchSimilarity is real
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "alexnet-owt-1.pth").touch()
    with without_lpips_weights():
        assert lpip.LearnedPerceptualImagePatchSimilarity is real


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\nTraceback\nValueError: the cause\n", "ValueError: the cause"),
        ("╭─ Unrecognized ─╮\n│ Unrecognized: --wrong │\n╰───╯\nFor full help, run x\n", "Unrecognized: --wrong"),
        ("", "ended without a word"),
        ("───\n", "ended without a word"),
    ],
)
def test_the_reason_is_what_the_method_said(text, words):
    assert _last_words(text) == words


def _entry(label, psnr, views=1, folder=None):
    outcome = {
        **{"parameters": 1234, "weight_bytes": 4936, "checkpoint_bytes": None, "trial": {"steps": 77}},
        **{"seconds": 61.0, "steps": 10, "render_seconds": 0.5, "memory": 2.5e8, "views": views},
        **{"renders": [], "truths": [], "scores": [{"psnr": psnr, "ssim": 0.9}, {"psnr": 99.0, "ssim": 0.9}][:views]},
    }
    return Entry(label, "aire-siren", ("aire-siren", "--data", "a b"), outcome, folder, None)


def test_tables_rank_by_quality_and_name_what_did_not_run():
    # The second view of "low" would put it first; "high" was too slow to render it.
    low, diverged = _entry("low", 20.0, views=2), _entry("nan", math.nan)
    entries = [diverged, low, Entry("no", "x", (), {}, None, "needs CUDA: y"), _entry("high", 25.0)]
    assert [entry.label for entry in ranked(entries)] == ["high", "low", "nan"]
    assert common_views(entries) == 1
    text = markdown(entries, {"scene": "s"})
    assert text.index("| high | 25.00 | 0.900 | n/a | 1,234 |") < text.index("| low |")
    assert "- no: needs CUDA: y" in text
    assert "ns-train aire-siren --max-num-iterations 77 --data 'a b'" in text
    assert "| a\\|b |" in markdown([_entry("a|b", 1.0)], {})
    rows = list(csv.DictReader(io.StringIO(table(entries))))
    assert [row["label"] for row in rows] == ["high", "low", "nan", "no"]
    assert rows[0]["psnr"] == "25.0"
    assert rows[3]["reason"] == "needs CUDA: y"
    assert "<script" not in page([_entry("<script>", 1.0)], {"scene": "s"})
    assert "Not run here" in page([entries[2]], {"scene": "s"})


@pytest.mark.parametrize(("a", "b"), [("a b", "a-b"), ("x" * 90 + "1", "x" * 90 + "2"), ("..", "-"), (".", "..")])
def test_no_two_labels_share_a_folder(a, b):
    assert as_name(a) != as_name(b)
    assert as_name(a).strip(".")
    assert "/" not in as_name("a/../b")


def test_a_folder_that_is_no_trial_is_left_alone(tmp_path, demo):
    (tmp_path / "out" / "aire-siren").mkdir(parents=True)
    (tmp_path / "out" / "aire-siren" / "mine").touch()
    done = _run("aire-compare", "--data", demo, "--methods", "aire-siren", "--output-dir", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "would be overwritten" in done.stderr
    assert (tmp_path / "out" / "aire-siren" / "mine").exists()


@pytest.mark.parametrize(
    ("took", "steps"),
    [
        *((60.0, [600]), (51.1, [600]), (50.9, [600, int(0.98 * 600 / 50.9 * 60)])),
        *((7.0, [600, int(0.98 * 600 / 7 * 60)]), (61.0, [600, int(0.98 * 500 / 61 * 60)])),
    ],
)
def test_what_ends_early_or_is_cut_off_is_trained_once_more(monkeypatch, tmp_path, took, steps):
    """With the speed of its whole run, and in a second call not again."""
    asked = []

    def run(trial):
        asked.append(trial.steps)
        # Five optimizer steps in each of nerfstudio's iterations, of which a trial has its number.
        outcome = {"rate": 10.0, "steps": 5 * trial.steps, "seconds": took if trial.steps == 600 else 59.0}
        # After 60 s the clock has stopped it before the end.
        outcome["iterations"] = 500 if outcome["seconds"] > 60 else trial.steps
        if trial.views:
            Path(trial.folder).mkdir(parents=True, exist_ok=True)
            kept = {"trial": dataclasses.asdict(trial), **outcome}
            trial.result_path.write_text(json.dumps(kept))
        return outcome

    monkeypatch.setattr(cli, "_run", run)
    compare = cli.Compare(tmp_path / "scene", minutes=1.0, output_dir=tmp_path / "out")
    compare.output_dir.mkdir()
    for _ in range(2):
        outcome = compare._trained_in_time(["aire-siren"], tmp_path / "out" / "ours", "cpu", {})
        assert outcome["steps"] == 5 * steps[-1]
    assert asked == [cli.MANY_STEPS, *steps]


@pytest.mark.parametrize("end", ["it fails", "it is interrupted"])
def test_what_is_trained_once_more_stays_where_that_comes_to_nothing(monkeypatch, tmp_path, end):
    folder, rounds = tmp_path / "out" / "ours", []

    def run(trial):
        rounds.append(trial.steps)
        if len(rounds) == 3:
            folder.mkdir()
            (folder / "half").write_text("done")
            if end == "it is interrupted":
                raise KeyboardInterrupt
            return "no memory"
        outcome = {"rate": 10.0, "steps": trial.steps, "iterations": trial.steps, "seconds": 7.0}
        if trial.views:
            folder.mkdir(parents=True)
            trial.result_path.write_text(json.dumps({"trial": dataclasses.asdict(trial), **outcome}))
        return outcome

    monkeypatch.setattr(cli, "_run", run)
    compare = cli.Compare(tmp_path / "scene", minutes=1.0, output_dir=tmp_path / "out")
    compare.output_dir.mkdir()
    try:
        assert compare._trained_in_time(["aire-siren"], folder, "cpu", {})["steps"] == 600
    except KeyboardInterrupt:
        assert end == "it is interrupted"
    assert len(rounds) == 3
    assert [path.name for path in folder.iterdir()] == ["result.json"]
    assert sorted(path.name for path in compare.output_dir.iterdir()) == ["ours", "rates.json"]


def test_another_commands_result_is_not_shown_for_one_that_fails(monkeypatch, tmp_path):
    folder = tmp_path / "out" / "ours"
    folder.mkdir(parents=True)
    compare = cli.Compare(tmp_path / "scene", minutes=1.0, output_dir=tmp_path / "out")
    theirs = compare._trial(["aire-siren", "--y"], folder, "cpu", 600, 60.0, {})
    theirs.result_path.write_text(json.dumps({"trial": dataclasses.asdict(theirs), "steps": 600, "seconds": 60.0}))
    monkeypatch.setattr(cli, "_run", lambda trial: "no memory")
    assert compare._trained_again(dataclasses.replace(theirs, command=["aire-siren", "--x"])) == "no memory"
    assert compare._trained_again(dataclasses.replace(theirs, steps=700))["steps"] == 600


def test_a_trial_that_the_system_ends_is_said_so(tmp_path, monkeypatch):
    trial = cli.Compare(tmp_path, minutes=1.0)._trial([], tmp_path / "trial", "cpu", 1, 60.0, {})
    monkeypatch.setattr(cli.sys, "executable", "/bin/sh")
    (tmp_path / "aire").write_text("echo no error so far; kill -9 $$")
    popen = cli.subprocess.Popen
    monkeypatch.setattr(cli.subprocess, "Popen", lambda words, **rest: popen(["/bin/sh", tmp_path / "aire"], **rest))
    assert cli._run(trial) == "was ended by SIGKILL, of which it says nothing (out of memory?)"


def test_results_inside_the_scene_are_no_part_of_it(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "a.png").write_bytes(b"x")
    before = circumstances(tmp_path, "cpu", [tmp_path / "out"])
    (tmp_path / "out" / "render.png").write_bytes(b"x")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    assert circumstances(tmp_path, "cpu", [tmp_path / "out"]) == before
    assert circumstances(tmp_path, "cpu") != before
    (tmp_path / "a.png").write_bytes(b"xy")
    assert circumstances(tmp_path, "cpu", [tmp_path / "out"]) != before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "has no transforms_test.json"),
        (("--steps", "5", "--methods", "nerfacto", "b=aire-siren --steps-per-iteration 2"), "leave --steps-per-iter"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_training(options, said, tmp_path):
    (tmp_path / "transforms_train.json").write_text("{}")
    if options:
        (tmp_path / "transforms_test.json").write_text("{}")
    done = _run("aire-compare", "--data", tmp_path, "--output-dir", "out", *options, cwd=tmp_path)
    assert done.returncode == 1
    assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def done(tmp_path_factory, demo):
    root = tmp_path_factory.mktemp("compare")
    command = [
        *("aire-compare", "--data", demo, "--steps", "8", "--views", "2", "--longest-side", "24"),
        *("--methods", f"first=aire-siren {TINY}", f"wrong=aire-siren {TINY} --pipeline.model.variant nothing"),
        *("instant-ngp", "--output-dir", "out"),
    ]
    first = _run(*command, cwd=root)
    assert first.returncode == 0, first.stderr[-2000:]
    return root / "out", first.stdout, command


def test_a_comparison_from_training_to_the_page(done):
    folder, said, _ = done
    assert "first: PSNR" in said
    result = json.loads((folder / "first" / "result.json").read_text())
    assert result["steps"] == 8
    saved = next((folder / "first").glob("**/step-*.ckpt"))
    state = torch.load(saved, weights_only=True)["pipeline"]
    assert result["parameters"] == state["_model._extra_state"]["parameters"]
    assert result["checkpoint_bytes"] == saved.stat().st_size
    # The oracle: the files that were kept, to within their 8 bits.
    for name, truth, scores in zip(result["renders"], result["truths"], result["scores"], strict=True):
        a, b = (np.asarray(Image.open(folder / "first" / file), dtype=float) / 255 for file in (name, truth))
        assert a.shape == (24, 24, 3)
        assert abs(-10 * math.log10(((a - b) ** 2).mean()) - scores["psnr"]) < 0.2
    text = (folder / "comparison.html").read_text()
    assert text.count("data:image/jpeg") == 4
    assert "nothing" in (folder / "comparison.md").read_text()
    assert "needs CUDA: it marches with nerfacc" in text


def test_what_is_finished_is_not_run_again(done):
    folder, _, command = done
    before = (folder / "first" / "result.json").stat().st_mtime_ns
    again = _run(*command, "--quiet", cwd=folder.parent)
    assert again.returncode == 0
    assert again.stdout == ""
    assert (folder / "first" / "result.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "nowhere"], "holds neither"),
        (["--data", "demo", "--minutes", "0"], "must be positive"),
        (["--data", "demo", "--minutes", "1", "--steps", "3"], "exclude each other"),
        (["--data", "demo", "--steps", "0"], "--steps is 0"),
        (["--data", "demo", "--methods", "nerf-o-matic"], "knows no method"),
        (["--data", "demo", "--methods", "nerfacto", "nerfacto"], "some twice"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, demo, options, words):
    done = _run("aire-compare", *[demo if option == "demo" else option for option in options], cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
