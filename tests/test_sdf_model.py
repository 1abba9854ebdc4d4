"""Signed distances through nerfstudio: fitted, adapted, resumed, scored, rendered, exported in the file's own units."""

import json
import math

import numpy as np
import pytest
import torch
import trimesh
from commands import run_command as _run
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox

from aire_nerfstudio.data.surface import HALF_SIDE, read_surface
from aire_nerfstudio.data.surface_samples import SurfaceSamples
from aire_nerfstudio.data.surface_views import ring_cameras
from aire_nerfstudio.fields.differential import curvature_sum, value_gradient_hessian
from aire_nerfstudio.models.sdf import SdfModelConfig
from aire_nerfstudio.ops.sphere_tracing import sphere_trace
from aire_nerfstudio.summary import summarise

CENTRE, RADIUS = np.array([30.0, -20.0, 5.0]), 4.0


SMALL = (
    "--vis", "tensorboard", "--report", "False", "--logging.local-writer.enable", "False", "--timestamp", "run",
    "--pipeline.model.widths", "32", "24", "--pipeline.model.first-omega", "10", "--pipeline.model.hidden-omega", "10",
    "--pipeline.datamanager.on-surface", "800", "--pipeline.datamanager.off-surface", "800",
    "--pipeline.datamanager.pool", "5000", "--pipeline.datamanager.dataparser.view-size", "40",
    "--optimizers.fields.optimizer.lr", "3e-3", "--optimizers.fields.scheduler.final-ratio", "0.1",
    "--pipeline.model.eval-resolution", "48",
)  # fmt: skip


def _model(surface, **options):
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    return (
        SdfModelConfig(**{"ema_decay": 0.0, **options})
        .setup(scene_box=box, num_train_data=1, metadata={"surface": surface})
        .eval()
    )


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    """A sphere somewhere in its own units, as a file."""
    mesh = trimesh.creation.icosphere(subdivisions=5, radius=RADIUS)
    mesh.apply_translation(CENTRE)
    path = tmp_path_factory.mktemp("ball") / "ball.obj"
    mesh.export(path)
    return path


@pytest.fixture(scope="module")
def fitted(ball):
    """A small network fitted to it in a bare loop, in which the model's own loss is used."""
    torch.manual_seed(0)
    surface = read_surface(ball)
    samples = SurfaceSamples(surface, 1000, 1000, 20_000, 0, "cpu")
    model = _model(surface, widths=(32, 32), first_omega=6.0, hidden_omega=6.0, eval_resolution=64, variant="large")
    steps = 1500
    optimizer = torch.optim.Adam(model.field.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / steps))
    for step in range(steps):
        batch = samples.batch(step)
        outputs = model(torch.cat([batch.on, batch.off]))
        loss = model.get_loss_dict(outputs, {"normals": batch.normals, "distances": batch.distances})
        optimizer.zero_grad()
        sum(loss.values()).backward()
        optimizer.step()
        schedule.step()
    return model, surface


def test_the_distance_of_a_sphere_is_learned(fitted):
    model, _ = fitted
    points = torch.rand(3000, 3) * 2 - 1
    # A smooth network rounds the distance's tip in the middle off, and learns the cube's corners from few points.
    points = points[(points.norm(dim=-1) > 0.3) & (points.norm(dim=-1) < 1.2)]
    error = model.distances(points) - (points.norm(dim=-1) - HALF_SIDE)
    assert error.abs().mean() < 5e-3
    direction = torch.nn.functional.normalize(torch.randn(500, 3), dim=-1)
    assert model.distances(HALF_SIDE * direction).abs().max() < 5e-3
    assert (model.normals(HALF_SIDE * direction) * direction).sum(-1).min() > 0.999


def test_the_curvature_of_the_learned_sphere_is_2_over_r(fitted):
    model, _ = fitted
    direction = torch.nn.functional.normalize(torch.randn(2000, 3), dim=-1)
    _, gradient, hessian = value_gradient_hessian(model.field, HALF_SIDE * direction)
    found = curvature_sum(gradient, hessian)
    assert float(found.mean()) == pytest.approx(2 / HALF_SIDE, rel=0.02)
    assert float(found.std()) < 0.1


def test_traced_rays_meet_the_sphere(fitted):
    model, _ = fitted
    rays = ring_cameras(3, 24, "y").generate_rays(camera_indices=1, keep_shape=True)
    model.config.shows_error = True
    outputs = model.get_outputs(rays)
    model.config.shows_error = False
    along = (rays.origins * rays.directions).sum(-1)
    root = along.square() - rays.origins.square().sum(-1) + HALF_SIDE**2
    true = torch.where(root > 0, -along - root.clamp_min(0).sqrt(), torch.nan)
    met = outputs["accumulation"][..., 0] > 0
    clear = root.abs() > 0.05  # near the outline a small error decides
    assert torch.equal(met[clear], (root > 0)[clear])
    both = met & (root > 0.05)
    assert (outputs["depth"][..., 0] - true)[both].abs().max() < 0.01
    for name in ("rgb", "normals", "curvature", "error"):
        assert outputs[name].shape == (24, 24, 3)
        assert 0 <= float(outputs[name].min()) <= float(outputs[name].max()) <= 1
    assert torch.equal(outputs["rgb"][~met], torch.ones_like(outputs["rgb"][~met]))
    none = RayBundle(torch.full((4, 3), 5.0), torch.tensor([[1.0, 0, 0]] * 4), torch.ones(4, 1), camera_indices=None)
    assert float(model.get_outputs(none)["accumulation"].max()) == 0


def test_scores_are_those_of_the_sphere(fitted):
    model, _ = fitted
    rays = ring_cameras(1, 24, "y").generate_rays(camera_indices=0, keep_shape=True)
    outputs = model.get_outputs(rays)
    metrics, images = model.get_image_metrics_and_images(outputs, {"image": outputs["rgb"]})
    assert metrics["psnr"] == math.inf
    assert metrics["chamfer_x100"] < 0.5
    assert metrics["hausdorff"] < 0.01
    assert metrics["normal_consistency"] > 0.999
    assert metrics["on_surface_error"] < 2e-3
    assert metrics["eikonal_error"] < 0.02
    assert images["img"].shape == (24, 48, 3)


def test_a_network_without_a_surface_is_said_to_have_none(fitted, capsys):
    model, _ = fitted
    last = model.field.affines()[-1].bias
    with torch.no_grad():
        last += 9
        try:
            scores = model._score_surface()
        finally:
            last -= 9
    assert set(scores) == {"on_surface_error", "eikonal_error"}
    assert "no surface: chamfer" in " ".join(capsys.readouterr().out.split())


def test_sphere_tracing_of_an_exact_distance_and_of_one_that_lies():
    origins = torch.tensor([[0.0, 0, 3], [0, 0.5, 3], [0, 2, 3], [0, 0, 0.2]])
    directions = torch.tensor([[0.0, 0, -1]] * 4)
    near, far = torch.zeros(4), torch.full((4,), 6.0)
    for factor in (1.0, 1.5, 0.3):  # too large a distance overshoots and is bisected

        def field(p, factor=factor):
            return factor * (p.norm(dim=-1) - 1)

        depth, is_met = sphere_trace(field, origins, directions, near, far, max_steps=400)
        assert is_met.tolist() == [True, True, False, True]
        assert torch.allclose(depth[:2], torch.tensor([2.0, 3 - math.sqrt(0.75)]), atol=6e-3)
        assert float(depth[2]) == 6
        assert float(depth[3]) == 0  # begun inside
    empty = sphere_trace(lambda p: p[:, 0], origins[:0], directions[:0], near[:0], far[:0])
    assert empty[0].shape == (0,)


@pytest.fixture(scope="module")
def trained(ball):
    done = _run("ns-train", "aire-sdf-siren", "--data", ball, "--max-num-iterations", "300", *SMALL, cwd=ball.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    return ball.parent / "outputs" / "ball" / "aire-sdf-siren" / "run", done.stdout


def _saved(run):
    return torch.load(sorted((run / "nerfstudio_models").iterdir())[-1], weights_only=True)


def test_training_follows_the_paper_schedule(trained):
    run, text = trained
    state = _saved(run)["pipeline"]
    assert state["_model.field.layers.0.weight"].shape == (8, 3)
    assert state["_model.field.layers.2.weight"].shape == (1, 6)
    assert [(h["event"], h["step"]) for h in state["_model._extra_state"]["history"]] == [("decay", 60), ("prune", 210)]
    assert torch.allclose(state["_model.centre"], torch.from_numpy(CENTRE), atol=1e-4)
    assert "targeted decay" in text


def test_eval_render_and_export(trained):
    run, _ = trained
    root, config = run.parents[3], run / "config.yml"
    done = _run("ns-eval", "--load-config", config, "--output-path", "eval.json", cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    scores = json.loads((root / "eval.json").read_text())["results"]
    assert {"chamfer_x100", "hausdorff", "normal_consistency", "on_surface_error", "eikonal_error"} <= set(scores)
    assert scores["chamfer_x100"] < 10
    (run / "eval.json").write_text((root / "eval.json").read_text())
    assert summarise(run).startswith(f"chamfer x 100 {scores['chamfer_x100']:.3f} | 93 parameters (-90.2 %) | ")
    done = _run(
        "ns-render", "interpolate", "--load-config", config, "--pose-source", "eval", "--output-format", "images",
        "--output-path", "frames", "--interpolation-steps", "1", "--rendered-output-names", "rgb", "normals",
        "curvature", cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((root / "frames").iterdir())
    for suffix in ("ply", "obj", "stl", "glb"):
        done = _run(
            "aire-export", "mesh", "--load-config", config, "--output-path", f"out.{suffix}", "--resolution", "40",
            cwd=root,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        mesh = trimesh.load(root / f"out.{suffix}", force="mesh")
        assert np.allclose(mesh.bounds.mean(0), CENTRE, atol=0.4)
        assert np.allclose(np.ptp(mesh.bounds, axis=0), 2 * RADIUS, atol=0.8)
        outwards = (mesh.vertices - CENTRE) / np.linalg.norm(mesh.vertices - CENTRE, axis=1, keepdims=True)
        assert (np.asarray(mesh.vertex_normals) * outwards).sum(1).mean() > 0.9


@pytest.mark.parametrize("stop_at", [120, 250])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(trained, ball, stop_at):
    run, _ = trained
    first = _run(
        "ns-train", "aire-sdf-siren", "--data", ball, "--max-num-iterations", "300", *SMALL, "--experiment-name",
        f"stop{stop_at}", "--steps-per-save", stop_at, "--save-only-latest-checkpoint", "False", cwd=ball.parent,
    )  # fmt: skip
    assert first.returncode == 0, first.stderr[-2000:]
    folder = ball.parent / "outputs" / f"stop{stop_at}" / "aire-sdf-siren" / "run" / "nerfstudio_models"
    again = _run(
        "ns-train", "aire-sdf-siren", "--data", ball, "--max-num-iterations", "300", *SMALL, "--experiment-name",
        f"on{stop_at}", "--load-dir", folder, "--load-step", stop_at, cwd=ball.parent,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr[-2000:]
    ends = [_saved(r) for r in (run, ball.parent / "outputs" / f"on{stop_at}" / "aire-sdf-siren" / "run")]
    for key, value in ends[0]["pipeline"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, ends[1]["pipeline"][key]), key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "none.ply"], "does not exist"),
        (["--pipeline.datamanager.pool", "10"], "pool is 10; it must be at least 800"),
        (["--pipeline.datamanager.on-surface", "0"], "on_surface is 0; it must be at least 1"),
        (["--pipeline.model.adaptation.target-psnr", "30"], "has no PSNR; name target_parameters"),
        (["--pipeline.datamanager.dataparser.views", "0"], "views is 0; it must be at least 1"),
    ],
)
def test_bad_input_ends_in_one_line_and_no_file(ball, tmp_path, options, message):
    data = [] if "--data" in options else ["--data", ball]
    done = _run("ns-train", "aire-sdf-siren", "--max-num-iterations", "10", *SMALL, *data, *options, cwd=tmp_path)
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("config.yml"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output-path", "a.step"], "is not one of .ply, .obj"),
        (["--output-path", "a.ply", "--resolution", "1"], "must be at least 2"),
        (["--output-path", "a.ply", "--resolution", "20000"], "lower the resolution"),
    ],
)
def test_bad_exports_write_nothing(trained, options, message):
    run, _ = trained
    root = run.parents[3]
    done = _run("aire-export", "mesh", "--load-config", run / "config.yml", *options, cwd=root)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (root / options[1]).exists()


def test_nerfstudios_own_marching_cubes_finds_its_names(fitted):
    model, _ = fitted
    assert hasattr(model.config, "sdf_field")
    points = torch.rand(5, 3)
    assert torch.equal(model.field.forward_geonetwork(points)[:, 0], model.distances(points))
