"""The commands as a user types them: train, kill, resume, evaluate, render, export, and bad input."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trimesh
from commands import run_command as _run
from commands import start_command
from tiny import differences, load

from aire_nerfstudio.models.checkpoints import check_checkpoint
from aire_nerfstudio.models.trainer import AdaptiveTrainer, AdaptiveTrainerConfig
from aire_nerfstudio.report.facts import latest_checkpoint
from aire_nerfstudio.summary import read_size, summarise

STEPS, DENSIFY, DECAY, PRUNE, SAVE = 80, 16, 32, 56, 12
TINY = [
    *("--vis", "tensorboard", "--report", "False", "--logging.local-writer.enable", "False", "--timestamp", "run"),
    *("--max-num-iterations", str(STEPS), "--steps-per-save", str(SAVE), "--save-only-latest-checkpoint", "False"),
    *("--steps-per-eval-batch", "7", "--steps-per-eval-image", "1000000", "--steps-per-eval-all-images", "1000000"),
    *("--pipeline.datamanager.train-num-rays-per-batch", "96"),
    *("--pipeline.model.density-widths", "14", "12", "13", "--pipeline.model.colour-widths", "11"),
    *("--pipeline.model.n-features", "7"),
    *("--pipeline.model.grid-resolution", "16", "--pipeline.model.max-steps-per-ray", "48"),
    *("--pipeline.model.adaptation.unit", "steps"),
    *("--pipeline.model.adaptation.densify-at", str(DENSIFY), "--pipeline.model.adaptation.densify-count", "4"),
    *("--pipeline.model.adaptation.decay-start", str(DECAY), "--pipeline.model.adaptation.prune-at", str(PRUNE)),
]


def _train(name, *options, cwd, method="aire-siren"):
    return _run("ns-train", method, *TINY, "--experiment-name", name, *options, cwd=cwd)


def _folder(root, name, method="aire-siren"):
    return root / "outputs" / name / method / "run"


def _last(run):
    return sorted((run / "nerfstudio_models").glob("step-*.ckpt"))[-1]


@pytest.fixture(scope="module")
def root(tmp_path_factory, demo):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(root):
    """An uninterrupted run of the demo scene through densify, decay and prune, with the viewer as users have it."""
    viewer = ["--vis", "viewer+tensorboard", "--viewer.quit-on-train-completion", "True"]
    done = _train("whole", *viewer, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    return _folder(root, "whole"), done.stdout


def test_the_plan_and_each_change_are_printed(finished):
    _, text = finished
    for words in ("densify: 4 input neurons", "[14, 12, 13]", "[18, 12, 13]", "[9, 6, 13]", "parameters"):
        assert words in text, words
    for event, step in (("densify", DENSIFY), ("decay", DECAY), ("prune", PRUNE)):
        assert f"step {step}: {event}" in text


def test_the_checkpoint_holds_the_adapted_shapes_as_plain_data(finished):
    run, _ = finished
    state = load(_last(run))["pipeline"]
    assert state["_model.field.density_net.layers.0.weight"].shape == (9, 3)
    assert state["_model.field.density_net.layers.1.weight"].shape == (6, 9)
    assert state["_model.field_average.density_net.layers.2.weight"].shape == (13, 6)
    history = state["_model._extra_state"]["history"]
    assert [(h["event"], h["step"]) for h in history] == [("densify", DENSIFY), ("decay", DECAY), ("prune", PRUNE)]
    size = read_size(_last(run))
    assert size.final == history[-1]["parameters"] < size.initial


@pytest.mark.parametrize("killed_after", [SAVE, 3 * SAVE, 5 * SAVE])  # before densify, in the decay, after the prune
def test_a_killed_run_ends_where_an_uninterrupted_one_does(root, finished, killed_after):
    name = f"killed-{killed_after}"
    process = start_command(
        "ns-train", "aire-siren", *TINY, "--experiment-name", name, cwd=root, out=root / f"{name}.log"
    )
    wanted = _folder(root, name) / "nerfstudio_models" / f"step-{killed_after:09d}.ckpt"
    until = time.monotonic() + 200
    while not wanted.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.002)
    process.end()
    assert not list(wanted.parent.glob(f"step-{STEPS - 1:09d}.ckpt")), "the kill came too late"
    resumed = _train(f"{name}-resumed", "--load-dir", wanted.parent, "--load-step", killed_after, cwd=root)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    got, whole = load(_last(_folder(root, f"{name}-resumed"))), load(_last(finished[0]))
    assert got["step"] == STEPS - 1
    assert differences(got, whole) == []


def test_iterations_of_several_steps_train_the_same(root, finished, tmp_path):
    """Four steps an iteration, changes in the middle of one, a kill and a resume: the weights of one step each."""
    name = "fourfold"
    options = ("--steps-per-iteration", "4", "--max-num-iterations", str(STEPS // 4), "--steps-per-save", "3")
    done = _train(name, *options, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    saved, expected = load(_last(_folder(root, name))), load(_last(finished[0]))
    assert saved["step"] == STEPS // 4 - 1
    assert differences(saved["pipeline"], expected["pipeline"]) == []
    assert differences(saved["optimizers"], expected["optimizers"]) == []
    early = sorted((_folder(root, name) / "nerfstudio_models").glob("step-*.ckpt"))[1]
    folder = tmp_path / "early"
    folder.mkdir()
    shutil.copy(early, folder)
    resumed = _train("fourfold-resumed", *options, "--load-dir", folder, cwd=root)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    again = load(_last(_folder(root, "fourfold-resumed")))
    assert differences(again["pipeline"], expected["pipeline"]) == []
    refused = _train("fourfold-refused", *options, "--steps-per-iteration", "2", "--load-dir", folder, cwd=root)
    assert refused.returncode != 0
    assert "--steps-per-iteration is 2" in refused.stdout + refused.stderr
    assert "give 4" in refused.stdout + refused.stderr


@pytest.mark.parametrize("method", ["aire-finer", "aire-spder"])
def test_the_other_activations_train(root, method):
    done = _train("other", "--max-num-iterations", 70, cwd=root, method=method)
    assert done.returncode == 0, done.stderr[-2000:]
    state = load(_last(_folder(root, "other", method)))["pipeline"]
    assert state["_model.field.density_net.layers.0.weight"].shape == (9, 3)
    assert all(torch.isfinite(t).all() for t in state.values() if isinstance(t, torch.Tensor))


@pytest.mark.parametrize(("variant", "width"), [("large", 14), ("small", 9)])
def test_the_fixed_baselines_keep_their_size(root, variant, width):
    done = _train(variant, "--pipeline.model.variant", variant, "--max-num-iterations", 60, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    assert load(_last(_folder(root, variant)))["pipeline"]["_model.field.density_net.layers.0.weight"].shape[0] == width


def test_lego_through_both_dataparsers(root, lego):
    for name, options in (("ours", ["--data", lego]), ("theirs", ["blender-data", "--data", lego])):
        done = _train(f"lego-{name}", "--max-num-iterations", 60, *options, cwd=root)
        assert done.returncode == 0, done.stderr[-2000:]


def test_eval_render_and_export_work_on_the_adapted_checkpoint(root, finished):
    run, _ = finished
    config = ["--load-config", run / "config.yml"]
    done = _run("ns-eval", *config, "--output-path", run / "eval.json", cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((run / "eval.json").read_text())["results"]
    assert 5 < results["psnr"] < 60
    assert -1 <= results["ssim"] <= 1
    assert summarise(run).startswith(f"PSNR {results['psnr']:.1f} dB | ")

    options = [
        "--pose-source",
        "eval",
        "--interpolation-steps",
        "1",
        "--rendered-output-names",
        "rgb",
        "depth",
        "normals",
    ]
    done = _run("ns-render", "interpolate", *config, *options, "--output-path", run / "turntable.mp4", cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (run / "turntable.mp4").stat().st_size > 1000

    if subprocess.run([sys.executable, "-c", "import open3d"], capture_output=True, check=False).returncode:
        pytest.skip("ns-export: Open3D's system libraries are not installed (README, Troubleshooting)")
    options = ["--num-points", "1000", "--normal-method", "open3d"]
    done = _run("ns-export", "pointcloud", *config, *options, "--output-dir", run / "points", cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    points = trimesh.load(run / "points" / "point_cloud.ply").vertices
    assert len(points) >= 900
    # Only what is opaque may become a point: the background would lie outside the scene's cube.
    assert abs(points).max() <= 1.25


BAD_OPTIONS = {
    "the schedule is longer than the run": ["--pipeline.model.adaptation.prune-at", STEPS],
    "at least one must remain": ["--pipeline.model.adaptation.prune-counts", 18, 6],
    "prune_layers names layer 3": ["--pipeline.model.adaptation.prune-layers", 0, 3],
    "does not exist": ["--data", "nowhere"],
    "must be at least 1": ["--max-num-iterations", 0],
    "holds no step-": ["--load-dir", "."],
}


@pytest.mark.parametrize("message", BAD_OPTIONS)
def test_bad_options_end_in_one_line_and_leave_nothing(tmp_path, message):
    done = _train("bad", *BAD_OPTIONS[message], cwd=tmp_path)
    assert done.returncode != 0
    text = done.stdout + done.stderr
    assert message in text
    assert "Traceback" not in text
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_activation_is_refused_and_kept(root, finished, tmp_path):
    run, _ = finished
    before = _last(run).read_bytes()
    done = _train(
        "bad", "--load-dir", run / "nerfstudio_models", "--load-step", SAVE, cwd=tmp_path, method="aire-finer"
    )
    assert done.returncode != 0
    assert "trained with activation siren" in done.stdout + done.stderr
    assert _last(run).read_bytes() == before
    assert not list(tmp_path.iterdir())


def test_resuming_a_finished_run_says_so(root, finished, tmp_path):
    run, _ = finished
    done = _train("bad", "--load-dir", run / "nerfstudio_models", cwd=tmp_path)
    assert done.returncode != 0
    assert "nothing is left to train" in done.stdout + done.stderr


def test_damaged_and_foreign_checkpoints_are_told_apart(finished, tmp_path):
    run, _ = finished
    whole = _last(run)
    expected = set(load(whole)["pipeline"])
    check_checkpoint(whole, expected)
    damaged = tmp_path / "step-000000079.ckpt"
    for size in (0, 10, 1000, whole.stat().st_size - 1):
        damaged.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(ValueError, match="truncated or not a checkpoint"):
            check_checkpoint(damaged, expected)
    torch.save({"step": 1, "pipeline": {"_model.field.w": torch.zeros(2)}}, damaged)
    with pytest.raises(ValueError, match="belongs to another method"):
        check_checkpoint(damaged, expected)
    torch.save([1, 2], damaged)
    with pytest.raises(ValueError, match="is not a nerfstudio checkpoint"):
        check_checkpoint(damaged, expected)
    torch.save({"step": Path("x")}, damaged)
    with pytest.raises(ValueError, match="holds more than plain data"):
        check_checkpoint(damaged, expected)
    with pytest.raises(ValueError, match="does not exist"):
        check_checkpoint(tmp_path / "none.ckpt", expected)


def test_a_save_that_fails_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    trainer = AdaptiveTrainer.__new__(AdaptiveTrainer)
    folder = tmp_path / "nerfstudio_models"
    trainer.local_rank, trainer.base_dir, trainer.checkpoint_dir = 0, tmp_path, folder
    trainer.config = AdaptiveTrainerConfig(save_only_latest_checkpoint=True)
    trainer.pipeline = torch.nn.Linear(2, 2)
    trainer.optimizers = SimpleNamespace(optimizers={}, schedulers={})
    trainer.grad_scaler = torch.amp.GradScaler(enabled=False)
    trainer.save_checkpoint(1)
    good = folder / "step-000000001.ckpt"
    before = good.read_bytes()

    def fails_half_way(_, path):
        Path(path).write_bytes(before[:50])
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fails_half_way)
    with pytest.raises(OSError, match="no space"):
        trainer.save_checkpoint(2)
    assert good.read_bytes() == before
    # Nothing else lies there: ns-eval takes the largest number of any name in it.
    assert [p.name for p in folder.iterdir()] == [good.name]
    monkeypatch.undo()
    trainer.save_checkpoint(3)
    assert [p.name for p in folder.iterdir()] == ["step-000000003.ckpt"]


def test_the_summary_of_an_unfinished_run_names_what_is_missing(finished, tmp_path):
    with pytest.raises(ValueError, match="holds no nerfstudio_models"):
        summarise(tmp_path)
    copy = tmp_path / "run"
    shutil.copytree(finished[0], copy, ignore=shutil.ignore_patterns("eval.json"))
    with pytest.raises(ValueError, match="make it with `ns-eval"):
        summarise(copy)
    shutil.copy(finished[0] / "eval.json", copy)
    last = latest_checkpoint(copy)
    last.rename(last.with_name("step-000099999.ckpt"))
    with pytest.raises(ValueError, match=f"is of {last.name}, and the last checkpoint is step-000099999.ckpt"):
        summarise(copy)
