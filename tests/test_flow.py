"""Mean curvature flow: a sphere shrinks as it must; a run starts from a surface, and is shown at any moment."""

import json
import math

import pytest
import torch
import trimesh
import yaml
from commands import run_command as _run
from nerfstudio.data.scene_box import SceneBox

from aire_nerfstudio.data.surface import HALF_SIDE, read_surface
from aire_nerfstudio.data.surface_samples import SurfaceSamples
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.differential import motion
from aire_nerfstudio.losses import flow_residual
from aire_nerfstudio.models.flow import FlowModelConfig, surface_weights

SPEED, DURATION = 0.1, 1.0


def _model(surface, **options):
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    metadata = {"surface": surface, "duration": DURATION}
    return FlowModelConfig(**{"ema_decay": 0.0, **options}).setup(scene_box=box, num_train_data=1, metadata=metadata)


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    path = tmp_path_factory.mktemp("flow") / "ball.ply"
    trimesh.creation.icosphere(subdivisions=5, radius=1.0).export(path)
    return path


def test_the_exact_flow_of_a_sphere_has_no_residual():
    x = torch.randn(40, 3, dtype=torch.double, requires_grad=True)
    t = torch.rand(40, 1, dtype=torch.double, requires_grad=True)
    # |x|^2 + 4 alpha t: its level sets are spheres with r^2 = c - 4 alpha t.
    f = x.square().sum(-1) + 4 * SPEED * t[:, 0]
    gradient, rate = torch.autograd.grad(f.sum(), (x, t), create_graph=True)
    hessian = 2 * torch.eye(3, dtype=torch.double).expand(40, 3, 3)
    assert flow_residual(rate[:, 0], motion(gradient, hessian), SPEED).abs().max() < 1e-12
    assert flow_residual(rate[:, 0], motion(gradient, hessian), 2 * SPEED).abs().min() > 0.1


def test_a_sphere_shrinks_by_its_curvature(ball):
    """r' = -2 alpha / r, hence r^2 = r_0^2 - 4 alpha t: with alpha 0.1 from 0.9 to 0.64 at t = 1."""
    torch.manual_seed(0)
    surface = read_surface(ball)
    samples = SurfaceSamples(surface, 500, 500, 20_000, 0, "cpu")
    model = _model(
        surface, widths=(32, 32), first_omega=3.0, hidden_omega=3.0, variant="large", alpha=SPEED, flow_weight=200.0
    )
    steps = 1500
    optimizer = torch.optim.Adam(model.field.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.02 ** (1 / steps))
    for step in range(steps):
        batch = samples.batch(step)
        now = torch.nn.functional.pad(torch.cat([batch.on, batch.off]), (0, 1))
        anywhere = torch.cat([2 * torch.rand(1000, 3) - 1, DURATION * torch.rand(1000, 1)], dim=1)
        outputs = model(torch.cat([now, anywhere]))
        loss = model.get_loss_dict(outputs, {"normals": batch.normals, "distances": batch.distances})
        optimizer.zero_grad()
        sum(loss.values()).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    for moment in (0.0, 0.5, 1.0):
        model.time = moment
        vertices, _ = model.mesh(48)
        radius = float(torch.from_numpy(vertices).norm(dim=-1).mean())
        true = math.sqrt(HALF_SIDE**2 - 4 * SPEED * moment)
        assert radius == pytest.approx(true, rel=0.02), moment
        if moment:
            assert HALF_SIDE - radius == pytest.approx(HALF_SIDE - true, rel=0.05), moment
        direction = torch.nn.functional.normalize(torch.randn(200, 3), dim=-1)
        assert float(model.curvatures(radius * direction).mean()) == pytest.approx(2 / radius, rel=0.1)


def test_a_flow_has_the_weights_of_its_own_loss():
    names = {name for name in vars(FlowModelConfig()) if name.endswith("_weight")}
    assert names == {"data_weight", "normal_weight", "flow_weight"}
    # A config.yml from before: the one with the flow's name counts.
    old = yaml.dump(FlowModelConfig(normal_weight=100.0, alpha=0.3))
    old = old.replace("normal_weight: 100.0", "normal_weight: 100.0\nflow_normal_weight: 0.7\neikonal_weight: 50.0")
    read = yaml.load(old, Loader=yaml.Loader)
    assert (read.normal_weight, read.alpha) == (0.7, 0.3)
    assert not hasattr(read, "eikonal_weight")


def test_what_cannot_be_is_refused(ball):
    surface = read_surface(ball)
    for options, message in (
        ({"activation": "spder"}, "use siren or finer"),
        ({"alpha": 0.0}, "alpha is 0.0; it must be positive"),
        ({"time": 2.0}, r"time is 2.0; it must lie in \[0, 1.0\]"),
    ):
        with pytest.raises(SystemExit, match=message):
            _model(surface, **options)
    model = _model(surface, widths=(4,))
    with pytest.raises(InputError, match="it must lie in"):
        model.time = 1.5


SMALL = (
    "--vis", "tensorboard", "--report", "False", "--logging.local-writer.enable", "False", "--timestamp", "run",
    "--pipeline.model.first-omega", "10", "--pipeline.model.hidden-omega", "10",
    "--pipeline.datamanager.on-surface", "300", "--pipeline.datamanager.off-surface", "300",
    "--pipeline.datamanager.pool", "3000", "--pipeline.datamanager.dataparser.view-size", "32",
    "--optimizers.fields.optimizer.lr", "2e-3", "--pipeline.model.eval-resolution", "32",
)  # fmt: skip


def test_a_flow_from_a_trained_surface_through_the_commands(ball):
    root = ball.parent
    sdf = _run(
        "ns-train", "aire-sdf-siren", "--data", ball, "--max-num-iterations", "200", *SMALL, "--pipeline.model.widths",
        "32", "24", "--experiment-name", "sdf", cwd=root,
    )  # fmt: skip
    assert sdf.returncode == 0, sdf.stderr[-2000:]
    source = root / "outputs" / "sdf" / "aire-sdf-siren" / "run"
    before = torch.load(next((source / "nerfstudio_models").iterdir()), weights_only=True)["pipeline"]
    flow = [
        "ns-train", "aire-flow-siren", "--data", ball, *SMALL, "--pipeline.datamanager.space-time", "300",
        "--pipeline.model.load-sdf", source,
    ]  # fmt: skip
    at = flow.index("--pipeline.model.first-omega")
    del flow[at : at + 4]  # w0 is the surface's, as its widths are
    done = _run(*flow, "--max-num-iterations", "40", cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    run = root / "outputs" / "ball" / "aire-flow-siren" / "run"
    after = torch.load(next((run / "nerfstudio_models").iterdir()), weights_only=True)["pipeline"]
    assert before["_model.field.layers.0.weight"].shape == (8, 3)
    assert after["_model.field.layers.0.weight"].shape == (6, 4)  # a quarter of the layer went
    settings = yaml.load((run / "config.yml").read_text(), Loader=yaml.Loader).pipeline.model
    assert (settings.load_sdf, settings.widths) == (source, (32 - 24, 24 - 18))
    assert (settings.first_omega, settings.hidden_omega) == (10.0, 10.0)
    kept = source.rename(root / "elsewhere")  # what training alone needs is not needed again
    done = _run("ns-eval", "--load-config", run / "config.yml", "--output-path", "flow.json", cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    for moment in ("0", "0.2"):
        done = _run(
            "aire-export", "mesh", "--load-config", run / "config.yml", "--output-path", f"at{moment}.ply",
            "--resolution", "32", "--time", moment, cwd=root,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    done = _run(
        "aire-export", "compare", "--load-config", run / "config.yml", "--other-config", run / "config.yml", "--times",
        "0", "0.2", "--resolution", "32", "--output-path", "same.json", cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((root / "same.json").read_text())
    assert [row["time"] for row in rows] == [0.0, 0.2]
    assert all(row["chamfer"] < 1e-6 and row["normal_consistency"] > 0.999 for row in rows)
    assert "t = 0.2 | chamfer x 100 " in done.stdout
    moved = run.rename(root / "moved")  # and checkpoints come from beside the config.yml
    done = _run(
        "aire-export", "mesh", "--load-config", moved / "config.yml", "--output-path", "x.ply", "--resolution", "24",
        cwd=root / "elsewhere",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    moved.rename(run)
    kept.rename(source)
    saved = torch.load(next((source / "nerfstudio_models").iterdir()), weights_only=True)
    for spoiled in (None, "high", float("nan"), 0.0):
        saved["pipeline"]["_model._extra_state"]["settings"]["first_omega"] = spoiled
        torch.save(saved, root / "spoiled.ckpt")
        with pytest.raises(InputError, match=r"has the first_omega .*; it is damaged"):
            surface_weights(root / "spoiled.ckpt", FlowModelConfig())
    other = root / "other.ply"
    trimesh.creation.icosphere(subdivisions=5, radius=1.1).export(other)
    for options, message in (
        (["--pipeline.model.load-sdf", "nowhere"], "does not exist"),
        (["--data", other], "was trained on a shape of another place or size"),
        (["--pipeline.model.first-omega", "11"], "was trained with first_omega 10.0 and the flow has 11.0"),
    ):
        done = _run(*flow, *options, "--max-num-iterations", "40", "--experiment-name", "bad", cwd=root)
        assert done.returncode == 1
        assert message in " ".join(done.stderr.split())
        assert not (root / "outputs" / "bad").exists()
    done = _run(
        "aire-export", "mesh", "--load-config", source / "config.yml", "--output-path", "no.ply", "--time", "0.1",
        cwd=root,
    )  # fmt: skip
    assert done.returncode == 1
    assert "has no time" in done.stderr
