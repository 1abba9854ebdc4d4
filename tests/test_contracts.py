"""What nerfstudio, and Python code around it, may expect of these models beside training and rendering."""

import copy
import io
import math
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.model_components.renderers import background_color_override_context
from nerfstudio.utils.eval_utils import eval_setup
from nerfstudio.viewer.utils import CameraState, get_camera
from PIL import Image
from tiny import STEPS, TASKS, checkpoints, differences, tiny_config, train

from aire_nerfstudio.checkpoint_file import read_checkpoint
from aire_nerfstudio.data.picture import pixel_centres
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.export.files import load_model
from aire_nerfstudio.export.image import ExportImage
from aire_nerfstudio.export.mesh import ExportMesh
from aire_nerfstudio.export.network import load_network
from aire_nerfstudio.models.image import ImageModelConfig
from aire_nerfstudio.models.nerf import NerfModelConfig
from aire_nerfstudio.models.sdf import SdfModel
from aire_nerfstudio.models.trainer_checks import check_trainer

RED = (1.0, 0.0, 0.0)


@pytest.fixture(scope="module", params=sorted(TASKS))
def trained(request, demo, tmp_path_factory):
    """(task, trainer) of a run that has ended, its model in evaluation mode."""
    sizes = {"eval_resolution": 24} if request.param in ("sdf", "flow") else {}
    trainer = train(tiny_config(request.param, tmp_path_factory.mktemp(request.param), model=sizes))
    trainer.pipeline.eval()
    return request.param, trainer


def _camera(trainer, width=9, height=7):
    manager = trainer.pipeline.datamanager
    camera = manager.train_dataset.cameras[:1].to("cpu")
    camera.rescale_output_resolution(max(width, height) / int(camera.width.max()))
    return camera


@torch.no_grad()
def _seen(trainer, box=None, **changes):
    camera = _camera(trainer)
    for name, value in changes.items():
        setattr(camera, name, value)
    return trainer.pipeline.model.get_outputs_for_camera(camera, obb_box=box)


def _box(where):
    return OrientedBox(R=torch.eye(3), T=torch.tensor(where), S=torch.full((3,), 0.5))


def test_copies_render_the_same_and_are_their_own(trained):
    _, trainer = trained
    model = trainer.pipeline.model
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    model.portraits(trainer.pipeline.datamanager, 1, 20)
    whole = _seen(trainer)
    for made in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert made.adaptation._task is made
        assert not differences(model.state_dict(), made.state_dict())
        shown = made.get_outputs_for_camera(_camera(trainer))
        assert all(torch.equal(whole[name], shown[name]) for name in whole)
        with torch.no_grad():
            next(made.field.parameters()).zero_()
        assert next(model.field.parameters()).abs().max() > 0
        assert made.by_hand.is_waiting is False


def test_what_is_asked_for_behind_a_crop_is_seen(trained):
    _, trainer = trained
    nothing = _seen(trainer, _box((50.0, 50.0, 50.0)))
    assert float(nothing["accumulation"].max()) == 0
    assert not torch.allclose(nothing["rgb"], torch.tensor(RED))
    with background_color_override_context(torch.tensor(RED)):
        assert torch.allclose(_seen(trainer, _box((50.0, 50.0, 50.0)))["rgb"], torch.tensor(RED))
        rgba = trainer.pipeline.model.get_rgba_image(_seen(trainer))
    # What is met keeps its colour.
    plain = trainer.pipeline.model.get_rgba_image(_seen(trainer))
    is_met = plain[..., 3] > 0.9
    assert torch.allclose(rgba[is_met], plain[is_met], atol=0.02)


def test_no_rays_have_no_outputs(trained):
    _, trainer = trained
    rays = _camera(trainer).generate_rays(camera_indices=0).flatten()[:0]
    outputs = trainer.pipeline.model(rays)
    assert isinstance(rays, RayBundle)
    assert {name: tuple(value.shape) for name, value in outputs.items() if name in ("rgb", "depth", "normals")} == {
        "rgb": (0, 3), "depth": (0, 1), "normals": (0, 3)
    }  # fmt: skip


def test_a_run_that_is_not_trained_gives_cameras_and_rays(trained):
    task, trainer = trained
    pipeline = trainer.config.pipeline.setup(device="cpu", test_mode="test")
    camera, batch = pipeline.datamanager.eval_dataloader.get_camera(image_idx=0)
    assert camera.shape == (1,)
    assert batch["image"].shape[-1] >= 3
    sampler = pipeline.datamanager.train_pixel_sampler
    sampler.num_rays_per_batch = 500
    rays, _ = pipeline.datamanager.next_train(0)
    assert rays.origins.shape == (500, 3)
    if task in ("sdf", "flow"):
        pipeline.model.load_state_dict(trainer.pipeline.model.state_dict())
        outputs = pipeline.model.eval()(rays)
        rgba = pipeline.model.get_rgba_image(outputs)
        points = (rays.origins + rays.directions * outputs["depth"])[rgba[:, 3] > 0.5]
        assert len(points)
        distances = trainer.pipeline.model.distances(points)
        # So short a training leaves an inside that the cube cuts.
        is_cut = (points.abs().amax(-1) > 0.999) & (distances < 0)
        assert ((distances.abs() < 0.02) | is_cut).all()
        assert not is_cut.all()


def test_a_flow_is_seen_at_its_cameras_times(demo, tmp_path):
    trainer = train(tiny_config("flow", tmp_path))
    model = trainer.pipeline.model.eval()
    now = _seen(trainer)["depth"]
    model.time = 0.75 * model.duration
    later = _seen(trainer)["depth"]
    model.time = 0
    assert not torch.equal(now, later)
    # The viewer's cameras have a time of their own, 0, which is not meant: the slider is.
    camera = _camera(trainer)
    height, width, fy = int(camera.height), int(camera.width), float(camera.fy)
    fov = 2 * math.atan(height / 2 / fy)
    state = CameraState(fov, width / height, camera.camera_to_worlds[0], CameraType.PERSPECTIVE)
    viewers = get_camera(state, height, width)
    model.time = 0.75 * model.duration
    moved = model.get_outputs_for_camera(viewers)["depth"]
    model.time = 0
    assert not torch.equal(model.get_outputs_for_camera(viewers)["depth"], moved)
    assert torch.equal(_seen(trainer, times=torch.tensor([[0.75]]))["depth"], later)
    assert model.time == 0
    with pytest.raises(InputError, match=r"time is 1\.5; it must lie in \[0, 1\]"):
        _seen(trainer, times=torch.tensor([[1.5]]))
    assert torch.equal(_seen(trainer)["depth"], now)


def test_a_surface_shows_its_error_where_it_is_asked_for(demo, tmp_path):
    trainer = train(tiny_config("sdf", tmp_path, model={"eval_resolution": 24}))
    model = trainer.pipeline.model.eval()
    assert "error" not in _seen(trainer)
    shown = model.portraits(trainer.pipeline.datamanager, 1, 30)
    assert any("distance from the truth" in caption for caption in shown[0].pictures)
    assert model.config.shows_error is False
    model.config.shows_error = True
    assert "error" in _seen(trainer)


def test_nerfstudios_own_scheduler_can_be_resumed(tmp_path):
    def config(**changes):
        made = tiny_config("image", tmp_path, **changes)
        made.optimizers["fields"]["scheduler"] = ExponentialDecaySchedulerConfig(lr_final=1e-4, max_steps=STEPS)
        return made

    first = config()
    whole = train(first)
    for path in checkpoints(first):
        read_checkpoint(path)
    again = train(config(timestamp="again", load_dir=first.get_checkpoint_dir(), load_step=24))
    assert not differences(whole.pipeline.state_dict(), again.pipeline.state_dict())


def test_nerfstudios_own_trainer_trains_through_the_schedule(tmp_path):
    ours = tiny_config("image", tmp_path)
    names = ("pipeline", "optimizers", "max_num_iterations", "vis", "output_dir", "experiment_name", "timestamp")
    config = TrainerConfig(**{name: getattr(ours, name) for name in names}, method_name="stock", machine=ours.machine)
    config.optimizers["fields"]["scheduler"] = None
    config.logging.local_writer.enable = False
    model = train(config).pipeline.model
    assert [event["event"] for event in model.adaptation.history] == ["densify", "decay", "prune"]


def test_a_configuration_can_be_used_twice(tmp_path):
    config = tiny_config("image", tmp_path / "a")
    first = copy.deepcopy(config)
    train(config)
    assert config == first
    config.max_num_iterations, config.output_dir = 2 * STEPS, tmp_path / "b"
    trainer = train(config)
    assert trainer.total_steps == 2 * STEPS
    assert trainer.config.optimizers["fields"]["scheduler"].max_steps == 2 * STEPS


def test_bad_input_is_an_ordinary_exception_in_python():
    with pytest.raises(ValueError, match=r"ema_decay is 2\.0") as caught:
        NerfModelConfig(ema_decay=2.0).setup(scene_box=None, num_train_data=1)
    assert isinstance(caught.value, InputError)
    assert isinstance(caught.value, SystemExit)  # of a command: one line, and status 1
    assert caught.value.code == f"error: {caught.value}"
    with pytest.raises(InputError, match="needs to know what it learns"):
        ImageModelConfig().setup(scene_box=None, num_train_data=1)


@pytest.mark.parametrize(
    ("task", "change", "said"),
    [
        ("nerf", lambda c: setattr(c, "relative_model_dir", "models"), "relative-model-dir is models"),
        ("nerf", lambda c: c.gradient_accumulation_steps.update(feilds=4), "names 'feilds'; it must be one of fields"),
        ("nerf", lambda c: c.gradient_accumulation_steps.update(fields=0), "fields is 0; it must be at least 1"),
        ("nerf", lambda c: setattr(c.logging, "steps_per_log", 0), "steps-per-log is 0"),
        ("nerf", lambda c: setattr(c.machine, "device_type", "mps"), "device-type is mps"),
        ("nerf", lambda c: setattr(c.pipeline.model, "prompt", "cat"), "prompt is cat"),
        ("nerf", lambda c: setattr(c.pipeline.model, "loss_coefficients", {"a": 1.0}), "loss_coefficients is"),
        ("image", lambda c: setattr(c.pipeline.model, "widths", (10**6, 10**6)), "GiB are free; give smaller ones"),
        ("image", lambda c: setattr(c.pipeline.model, "widths", (10**12,)), "GiB are free; give smaller ones"),
        ("sdf", lambda c: setattr(c.pipeline.model, "eval_num_rays_per_chunk", 0), "eval_num_rays_per_chunk is 0"),
        ("image", lambda c: setattr(c.optimizers["fields"]["optimizer"], "max_norm", -1.0), r"max-norm is -1\.0"),
        ("image", lambda c: setattr(c.pipeline.datamanager, "patch_size", 4), "patch-size is 4; no rays"),
        ("sdf", lambda c: setattr(c.pipeline.datamanager, "camera_res_scale_factor", 0.5), "no rays"),
    ],
)
def test_settings_that_nothing_heeds_or_that_mean_nothing_are_refused(task, change, said, tmp_path):
    config = tiny_config(task, tmp_path)
    check_trainer(config)
    change(config)
    with pytest.raises(InputError, match=said):
        check_trainer(config)


def test_a_resumed_run_says_which_learning_rate_holds(tmp_path, capsys):
    config = tiny_config("image", tmp_path, quiet=False)
    train(config)

    def said(lr, **changes):
        go_on = {"load_dir": config.get_checkpoint_dir(), "load_step": 40, **changes}
        again = tiny_config("image", tmp_path, quiet=False, **go_on)
        optimizer = again.optimizers["fields"]["optimizer"]
        again.optimizers["fields"]["optimizer"] = replace(optimizer, lr=optimizer.lr * lr)
        capsys.readouterr()
        train(again)
        return capsys.readouterr().out

    assert "learning rate of the checkpoint" not in said(1)
    assert "learning rate of the checkpoint" in said(math.pi)
    assert "learning rate of the checkpoint" not in said(math.pi, load_scheduler=False)


def test_what_is_evaluated_lies_beside_its_configuration(tmp_path, monkeypatch):
    config = tiny_config("image", tmp_path / "runs")
    train(config)
    run = config.get_checkpoint_dir().parent
    copied = shutil.copytree(run, tmp_path / "copied")
    assert eval_setup(copied / "config.yml", test_mode="test")[2].parent == copied / "nerfstudio_models"
    assert eval_setup(run / "config.yml", test_mode="test")[2].parent == run / "nerfstudio_models"
    moved = shutil.copytree(run, tmp_path / "moved")
    shutil.rmtree(run / "nerfstudio_models")
    assert eval_setup(moved / "config.yml", test_mode="test")[2].parent == moved / "nerfstudio_models"
    shutil.rmtree(moved / "nerfstudio_models")
    with pytest.raises(InputError, match=r"neither .*moved/nerfstudio_models nor .* is there"):
        eval_setup(moved / "config.yml", test_mode="test")


@pytest.mark.parametrize("task", ["image", "sdf", "flow"])
def test_what_was_learned_is_written_without_the_data(task, tmp_path, capsys):
    data = tmp_path / ("picture.png" if task == "image" else "ball.ply")
    if task == "image":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (11, 13, 3), dtype=np.uint8)).save(data)
    else:
        trimesh.creation.icosphere(3, radius=5).apply_translation((30, 0, 0)).export(data)
    config = tiny_config(task, tmp_path / "runs")
    config.pipeline.datamanager.dataparser.data = data
    model = train(config).pipeline.model.eval()
    run = config.get_checkpoint_dir().parent
    data.unlink()
    learned = load_network(run)
    assert learned.task == {"sdf": "surface"}.get(task, task)
    if task == "image":
        centres = pixel_centres(torch.arange(11 * 13), 11, 13)
        assert torch.allclose(learned(centres).view(11, 13, 3), model.render_picture(11, 13), atol=1e-5)
        with pytest.raises(InputError, match=r"a learned image takes \[N, 2\]"):
            learned(torch.zeros(5, 3))
        ExportImage(run / "config.yml", tmp_path / "a.png", scale=2, quiet=True).main()
        wanted = (255 * model.render_picture(22, 26)).round().to(torch.uint8)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), wanted.numpy())
        return
    moment = None if task == "sdf" else 0.1
    ExportMesh(run, tmp_path / "a.ply", resolution=24, time=moment, quiet=True).main()
    if moment is not None:
        model.time = moment
    vertices = model.in_file_units(model.mesh(24)[0])
    assert abs(vertices.mean(0)[0] - 30) < 10
    # The surface is where the function is 0, in the file's units.
    on = torch.from_numpy(vertices[:500])
    asked = on if moment is None else torch.cat([on, torch.full((len(on), 1), moment)], -1)
    anywhere = asked.clone()
    anywhere[:, :3] = 30 * torch.tensor([1.0, 0, 0]) + 10 * (torch.rand(len(on), 3) - 0.5)
    assert learned(asked).abs().mean() < 0.1 * learned(anywhere).abs().mean()
    assert np.allclose(trimesh.load(tmp_path / "a.ply", process=False).vertices, vertices, atol=1e-4)
    with pytest.raises(InputError, match="only with it can errors be told"):
        load_model(run / "config.yml", SdfModel, "mesh", "aire-sdf").eval()._score_surface()


def test_a_checkpoint_without_a_weight_average_says_what_to_add(tmp_path):
    def config(decay, **changes):
        return tiny_config("sdf", tmp_path, model={"ema_decay": decay}, **changes)

    first = config(0.0)
    train(first)
    with pytest.raises(InputError, match=r"has no weight average, and this run has one; add .*ema-decay 0$"):
        train(config(0.95, load_dir=first.get_checkpoint_dir(), load_step=40))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_numpy_refuses_is_refused_in_a_line(seed, tmp_path):
    config = tiny_config("image", tmp_path)
    config.machine.seed = seed
    with pytest.raises(InputError, match=rf"--machine.seed is {seed}; it must lie in \[0, 2\^32\)"):
        config.save_config()


@pytest.mark.parametrize("module", ["models.adaptation_log"])
def test_a_module_is_imported_whatever_comes_before_it(module):
    # nerfstudio's writer and its configurations import each other, and only one order works.
    command = [sys.executable, "-W", "ignore", "-c", f"import aire_nerfstudio.{module}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
