"""The image methods: rays meet pixels, and the commands work from training to export."""

import json

import numpy as np
import pytest
import torch
from commands import run_command as _run
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from PIL import Image

from aire_nerfstudio.data.image_views import meet_plane, view_cameras
from aire_nerfstudio.data.picture import over_background, pixel_centres, read_picture
from aire_nerfstudio.data.picture_file import write_picture
from aire_nerfstudio.models.image import ImageModelConfig


def _model(height, width, channels, **options):
    config = ImageModelConfig(widths=(13, 11), **options)
    box = SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3]))
    metadata = {"height": height, "width": width, "channels": channels}
    return config.setup(scene_box=box, num_train_data=1, metadata=metadata, device="cpu").eval()


@pytest.mark.parametrize(("height", "width"), [(7, 12), (12, 7), (5, 5)])
def test_front_rays_meet_the_pixel_centres(height, width):
    rays = view_cameras(height, width)[0:1].generate_rays(camera_indices=0, keep_shape=True)
    points, distance, is_met = meet_plane(rays, height, width)
    assert is_met.all()
    centres = pixel_centres(torch.arange(height * width), height, width).view(height, width, 2)
    assert torch.allclose(points, centres, atol=1e-6)
    ends = rays.origins + distance[..., None] * rays.directions
    assert torch.allclose(ends[..., 2], torch.zeros(height, width), atol=1e-6)


def test_tilted_views_hold_the_whole_picture():
    height, width = 30, 50
    corners = torch.tensor([[x, y, 0.0] for x in (-1, 1) for y in (-0.6, 0.6)])
    for camera in view_cameras(height, width):
        local = (corners - camera.camera_to_worlds[:, 3]) @ camera.camera_to_worlds[:, :3]
        assert (local[:, 2] < 0).all()
        column = camera.fx * local[:, 0] / -local[:, 2] + camera.cx
        row = camera.fy * local[:, 1] / local[:, 2] + camera.cy
        assert ((column >= -1e-3) & (column <= width + 1e-3) & (row >= -1e-3) & (row <= height + 1e-3)).all()


def test_rays_beside_behind_and_along_the_plane_see_the_background():
    model = _model(8, 8, 3, background_color="black")
    origins = torch.tensor([[0.0, 0, 2], [0, 0, 2], [0, 0, 2], [5, 0, 2], [0, 0, 0]])
    directions = torch.tensor([[0.0, 0, -1], [0, 0, 1], [1, 0, 0], [0, 0, -1], [1, 0, 0]])
    outputs = model.get_outputs(RayBundle(origins=origins, directions=directions, pixel_area=torch.ones(5, 1)))
    assert outputs["accumulation"].squeeze(1).tolist() == [1, 0, 0, 0, 0]
    assert (outputs["rgb"][1:] == 0).all()
    assert all(torch.isfinite(value).all() for value in outputs.values())
    assert torch.allclose(outputs["rgb"][0], model.values(torch.zeros(1, 2))[0].clamp(0, 1))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_views_scores_and_exports_agree(tmp_path, channels):
    """Whatever the channels: what is rendered, scored and exported is one picture."""
    height, width = 13, 9
    model = _model(height, width, channels)
    camera = view_cameras(height, width)[0:1]
    seen = model.get_outputs_for_camera(camera)
    values = model.render_picture(height, width)
    assert torch.allclose(seen["rgb"], over_background(values, 1.0).clamp(0, 1), atol=1e-5)
    write_picture(values, tmp_path / "a.png", bits=8)
    truth = read_picture(tmp_path / "a.png").floats()
    assert truth.shape == (height, width, channels)
    is_test = torch.rand(height, width) < 0.3
    scores, images = model.get_image_metrics_and_images(seen, {"image": truth, "is_test": is_test})
    assert scores["psnr"] > 45
    assert scores["psnr_train"] > 45
    assert all(image.shape[-1] in (1, 3) for image in images.values())


def test_smaller_exports_are_averages():
    model = _model(12, 20, 3)
    fine = model.render_picture(12, 20)
    assert torch.allclose(model.render_picture(6, 10), fine.view(6, 2, 10, 2, 3).mean((1, 3)), atol=1e-5)


def test_sixteen_bits_survive_the_file(tmp_path):
    values = torch.rand(5, 6, 3)
    write_picture(values, tmp_path / "a.png", bits=16)
    assert (read_picture(tmp_path / "a.png").floats() - values).abs().max() <= 0.5001 / 65535


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A smooth RGBA picture of odd size, fitted by a small FINER network through densify, decay and prune."""
    root = tmp_path_factory.mktemp("image")
    y, x = np.mgrid[0:31, 0:43] / 43
    values = np.stack([x, y, 0.5 + 0.4 * np.sin(9 * x * y), 0.4 + 0.6 * x], -1)
    Image.fromarray((255 * values).astype(np.uint8)).save(root / "photo.png")
    done = _run(
        "ns-train", "aire-image-finer", "--data", "photo.png", "--max-num-iterations", "300", "--timestamp", "run",
        "--vis", "tensorboard", "--steps-per-eval-batch", "100", "--steps-per-eval-image", "150",
        "--logging.local-writer.enable", "False", "--pipeline.model.widths", "24", "20",
        "--pipeline.datamanager.train-num-rays-per-batch", "500", "--optimizers.fields.optimizer.lr", "3e-3",
        cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return root, root / "outputs" / "photo" / "aire-image-finer" / "run", done.stdout


def test_training_follows_the_paper_schedule(trained):
    _, run, text = trained
    state = torch.load(next(iter((run / "nerfstudio_models").iterdir())), weights_only=True)["pipeline"]
    assert state["_model.field.layers.0.weight"].shape == (12, 2)
    assert state["_model.field.layers.2.weight"].shape == (4, 20)
    history = [(h["event"], h["step"]) for h in state["_model._extra_state"]["history"]]
    assert history == [("densify", 15), ("decay", 135), ("prune", 270)]
    assert "densify: 6 input neurons" in text


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rigl", ["--pipeline.model.variant", "rigl"]),
        ("zell", ["--pipeline.model.variant", "zell", "--pipeline.model.lattice-limit", "3"]),
        ("budget", ["--pipeline.model.adaptation.target-parameters", "400"]),
        ("rounds", ["--pipeline.model.variant", "aire_rounds"]),
        ("psnr", ["--pipeline.model.adaptation.target-psnr", "5", "--pipeline.model.variant", "aire_early"]),
        (
            "switches",
            [
                *("--pipeline.model.adaptation.densify-from", "residual"),
                *("--pipeline.model.adaptation.decay", "scheduled", "--pipeline.model.adaptation.criterion", "taylor"),
                *("--pipeline.model.adaptation.compensation", "least_squares"),
            ],
        ),
    ],
)
def test_variants_and_switches_from_the_command_line(trained, name, options):
    root, _, _ = trained
    done = _run(
        "ns-train", "aire-image-siren", "--data", "photo.png", "--max-num-iterations", "60", "--timestamp", "run",
        "--experiment-name", name, "--vis", "tensorboard", "--report", "False",
        "--logging.local-writer.enable", "False",
        "--pipeline.model.widths", "24", "20", *options, cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    folder = root / "outputs" / name / "aire-image-siren" / "run" / "nerfstudio_models"
    state = torch.load(next(folder.iterdir()), weights_only=True)["pipeline"]
    weight = state["_model.field.layers.0.weight"]
    if name == "rigl":
        assert weight.shape == (24, 2)
        assert int((state["_model.field.layers.1.weight"] == 0).sum()) > 100
    elif name == "budget":
        assert state["_model._extra_state"]["parameters"] <= 400
        assert "by theorem 2 the removal changes no output" in " ".join(done.stdout.split())
    elif name in ("rounds", "psnr"):
        history = state["_model._extra_state"]["history"]
        assert [h["event"] for h in history][:2] == ["densify", "prune"]
        # With 6 neurons added it has 794; the schedule, which leaves 12 of the first layer, 380.
        assert state["_model._extra_state"]["parameters"] <= (380 if name == "rounds" else 700)
    else:
        assert weight.shape == (12, 2)


def test_a_psnr_out_of_reach_ends_in_one_line_after_the_checkpoint(trained):
    root, _, _ = trained
    done = _run(
        "ns-train", "aire-image-siren", "--data", "photo.png", "--max-num-iterations", "60", "--timestamp", "run",
        "--experiment-name", "far", "--vis", "tensorboard", "--report", "False",
        "--logging.local-writer.enable", "False",
        "--pipeline.model.widths", "24", "20", "--pipeline.model.adaptation.target-psnr", "90", cwd=root,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "target_psnr is 90 dB and the training batches reach" in " ".join(done.stderr.split())
    folder = root / "outputs" / "far" / "aire-image-siren" / "run" / "nerfstudio_models"
    state = torch.load(next(folder.iterdir()), weights_only=True)["pipeline"]
    assert state["_model.field.layers.0.weight"].shape == (30, 2)


def test_eval_render_and_export(trained):
    root, run, _ = trained
    config = run / "config.yml"
    done = _run("ns-eval", "--load-config", config, "--output-path", "eval.json", cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    text = (root / "eval.json").read_text()
    assert "NaN" not in text
    results = json.loads(text)["results"]
    assert results["psnr"] > 18
    assert results["psnr_train"] > 18

    done = _run(
        "ns-render", "interpolate", "--load-config", config, "--output-path", "fly.mp4", "--interpolation-steps", "2",
        cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (root / "fly.mp4").stat().st_size > 500

    done = _run("aire-export", "image", "--load-config", config, "--output-path", "out/a.png", cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    exported = read_picture(root / "out" / "a.png").floats()
    truth = read_picture(root / "photo.png").floats()
    mean_square = (exported - truth).square().mean().item()
    assert -10 * np.log10(mean_square) == pytest.approx(results["psnr_train"], abs=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output-path", "a.xyz"], "is none of .png"),
        (["--output-path", "a.psd"], "is none of .png"),
        (["--output-path", "photo.png/a.png"], "is no folder that can be written to"),
        (["--output-path", "a.jpg", "--bits", "16"], "16 bits go into"),
        (["--output-path", "a.png", "--scale", "0"], "must be positive"),
    ],
)
def test_bad_exports_write_nothing(trained, options, message):
    root, run, _ = trained
    done = _run("aire-export", "image", "--load-config", run / "config.yml", *options, cwd=root)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (root / options[1]).exists()


def test_exporting_what_is_no_run_ends_in_one_line(tmp_path):
    (tmp_path / "config.yml").write_text("a: [")
    done = _run("aire-export", "image", "--load-config", "config.yml", "--output-path", "a.png", cwd=tmp_path)
    assert done.returncode == 1
    assert "config.yml cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_picture_ends_in_one_line_and_no_file(tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    done = _run("ns-train", "aire-image-siren", "--data", "bad.png", "--vis", "tensorboard", cwd=tmp_path)
    assert done.returncode == 1
    assert "bad.png is no picture that Pillow can open" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()
