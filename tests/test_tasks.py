"""What every task owes to adaptation, viewer and report, on trainings of a second or two."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TASKS, checkpoints, load, tiny_config, train

from aire_nerfstudio.adaptation.control import Refused
from aire_nerfstudio.data.fingerprint import fingerprint
from aire_nerfstudio.data.image_views import default_picture_path
from aire_nerfstudio.models.adaptive import AdaptiveModel
from aire_nerfstudio.report.facts import read_run
from aire_nerfstudio.report.page import write_report


@pytest.fixture(scope="module", params=sorted(TASKS))
def trained(request, demo, tmp_path_factory):
    """(task, trainer) after a whole schedule that asks the task for its layers' outputs twice."""
    config = tiny_config(request.param, tmp_path_factory.mktemp(request.param))
    chosen = {"criterion": "activation", "compensation": "least_squares"}
    config.pipeline.model.adaptation = replace(config.pipeline.model.adaptation, **chosen)
    config.pipeline.model.eval_resolution = 24  # of surfaces
    return request.param, train(config)


def test_outputs_choose_and_compensate(trained):
    _, trainer = trained
    model = trainer.pipeline.model
    assert [(e["event"], e["counts"]) for e in model.adaptation.history] == [
        ("densify", [4, 0]),
        ("decay", [7, 5]),
        ("prune", [7, 5]),
    ]
    state = load(checkpoints(trainer.config)[-1])["pipeline"]
    assert all(torch.isfinite(v).all() for v in state.values() if isinstance(v, torch.Tensor))
    for outputs, group in zip(model.probe().outputs(), model.adaptive_groups(model.field), strict=True):
        assert outputs.shape[1] == group.width
        assert outputs.abs().max() > 0


def test_portraits_fill_a_report(trained, tmp_path):
    task, trainer = trained
    model = trainer.pipeline.model
    was_training = model.training
    shown = model.portraits(trainer.pipeline.datamanager, 2, 40)
    assert model.training is was_training
    assert len(shown) == {"image": 1, "nerf": 2, "sdf": 1, "flow": 3}[task]
    for portrait in shown:
        assert {"truth", "render"} <= set(portrait.pictures)
        for picture in portrait.pictures.values():
            assert picture.dtype == np.uint8
            assert picture.shape[2] == 3
    assert "strong neurons alone" in shown[0].pictures
    if task == "flow":
        moments = [f"time {moment:g}" for moment in (0, model.duration / 2, model.duration)]
        assert [portrait.title.split(",")[0] for portrait in shown] == moments
        assert model.time == 0
    if task in ("sdf", "flow"):
        assert "normals" in shown[0].pictures
    write_report(tmp_path / "page.html", [read_run(trainer.base_dir)], [shown])
    page = (tmp_path / "page.html").read_text("utf8")
    assert page.count("<img") >= sum(len(portrait.pictures) for portrait in shown)


def test_what_it_learned_can_be_written(trained, tmp_path):
    task, trainer = trained
    model = trainer.pipeline.model
    stem = tmp_path / "learned"
    if task == "nerf":
        with pytest.raises(Refused, match="no file for this task"):
            model.export(stem)
        assert list(tmp_path.iterdir()) == []
        return
    path = model.export(stem)
    assert path.stem == "learned"
    if task == "image":
        assert Image.open(path).size == model.picture_size
        return
    import trimesh

    mesh = trimesh.load(path)
    assert len(mesh.faces) > 0
    # In the units of the file that was learned.
    assert np.abs((mesh.vertices - model.centre.numpy()) / float(model.scale)).max() <= 1.01


@pytest.mark.parametrize("variant", ["large", "rigl"])
def test_what_has_no_schedule_cannot_be_frozen(variant, tmp_path, monkeypatch):
    answers, after_step = [], AdaptiveModel.after_step

    def pressing(self, step):
        if step == 5:
            self.by_hand.ask_to_freeze(True, answers.append)
        after_step(self, step)

    monkeypatch.setattr(AdaptiveModel, "after_step", pressing)
    trainer = train(tiny_config("image", tmp_path, model={"variant": variant}, max_num_iterations=20))
    assert answers == [f"refused: the variant {variant} has no schedule to freeze"]
    assert not trainer.pipeline.model.adaptation.is_frozen


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_run_that_goes_on_with_other_data_says_so(task, demo, tmp_path, capsys):
    config = tiny_config(task, tmp_path, quiet=False)
    train(config)
    folder = config.get_checkpoint_dir()

    def said_of(**changes):
        again = tiny_config(task, tmp_path, load_dir=folder, load_step=40, quiet=False)
        for name, value in changes.items():
            setattr(again.pipeline.datamanager.dataparser, name, value)
        capsys.readouterr()
        train(again)
        return capsys.readouterr().out

    assert "other data" not in said_of()
    assert "other data" in said_of(data=_other_data(task, demo, tmp_path))


def _other_data(task, demo, folder):
    """Data of the same kind and size as the default's, but for one number."""
    if task == "nerf":
        made = shutil.copytree(demo, folder / "scene")
        path = made / "transforms_train.json"
        scene = json.loads(path.read_text("utf8"))
        scene["frames"][3]["transform_matrix"][0][3] += 1e-3
        path.write_text(json.dumps(scene), "utf8")
        return made
    if task == "image":
        picture = np.asarray(Image.open(default_picture_path())).copy()
        picture[5, 7, 0] ^= 1
        Image.fromarray(picture).save(folder / "picture.png")
        return folder / "picture.png"
    import trimesh

    box = trimesh.creation.icosphere(3)
    box.export(folder / "ball.ply")
    return folder / "ball.ply"


def test_a_fingerprint_is_of_values_types_and_shapes():
    numbers = np.arange(12, dtype=np.int32)
    same = fingerprint([numbers, "a"])
    assert same == fingerprint([torch.arange(12, dtype=torch.int32), "a"])
    assert len({same, fingerprint(["a", numbers]), fingerprint([numbers.reshape(3, 4), "a"])}) == 3
    assert same != fingerprint([numbers.astype(np.int64), "a"])
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])
    assert fingerprint([np.zeros((0, 3))]) != fingerprint([np.zeros((0, 2))])
