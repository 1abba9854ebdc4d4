"""What every task owes to adaptation, viewer and report, on trainings of a second or two."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TASKS, checkpoints, load, tiny_config, train

from aire_nerfstudio.adaptation.control import Refused
from aire_nerfstudio.data.fingerprint import file_fingerprint, files_fingerprint
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


@pytest.mark.parametrize("task", ["image", "nerf", "sdf"])
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
        path = sorted((made / "train").glob("*.png"))[3]
        picture = np.asarray(Image.open(path)).copy()
        picture[40:50, 40:50, :3] = 77
        Image.fromarray(picture).save(path)
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


def test_a_fingerprint_is_of_bytes_settings_names_and_sizes(tmp_path):
    a, b = tmp_path / "a.ply", tmp_path / "b.ply"
    a.write_bytes(b"0" * (1 << 20) + b"1")
    b.write_bytes(b"0" * (1 << 20) + b"2")
    moved = tmp_path / "elsewhere" / "a.ply"
    moved.parent.mkdir()
    shutil.copy(a, moved)
    assert file_fingerprint(a) == file_fingerprint(moved) != file_fingerprint(b)
    assert len({file_fingerprint(a, 0.1, 0), file_fingerprint(a, 0.1, 1), file_fingerprint(a)}) == 3
    assert files_fingerprint([a]) == files_fingerprint([moved]) != files_fingerprint([b])
    assert files_fingerprint([a, b]) != files_fingerprint([b, a])
    moved.write_bytes(b"0")
    assert files_fingerprint([a]) != files_fingerprint([moved])
    assert files_fingerprint([tmp_path / "none"]) == files_fingerprint([moved.parent / "none"])


def test_points_of_which_each_reading_makes_another_mesh_are_the_same_data(tmp_path, capsys):
    import trimesh

    ball = trimesh.creation.icosphere(3)
    np.savetxt(tmp_path / "ball.xyz", np.hstack([ball.vertices, ball.vertex_normals]))

    def run(**changes):
        config = tiny_config("sdf", tmp_path, quiet=False, **changes)
        config.pipeline.datamanager.dataparser.data = tmp_path / "ball.xyz"
        train(config)
        return config.get_checkpoint_dir()

    folder = run()
    capsys.readouterr()
    run(load_dir=folder, load_step=40)
    assert "other data" not in capsys.readouterr().out
