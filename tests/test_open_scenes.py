"""Scenes without bounds: contraction's laws, a field that knows all of space, and trainings in one."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.scene_box import SceneBox
from open_scene import write_open_scene
from PIL import Image
from tiny import checkpoints, differences, load, tiny_config, train

from aire_nerfstudio.data import rays_manager
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.occupancy_grid import OccupancyGrid
from aire_nerfstudio.fields.radiance_field import SineRadianceField
from aire_nerfstudio.models import nerf, nerf_rendering
from aire_nerfstudio.models.nerf import NerfModelConfig
from aire_nerfstudio.ops.contraction import contract, expand, pull_back, radial_scale

COORDINATE = st.floats(-1e5, 1e5)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(COORDINATE, COORDINATE, COORDINATE), min_size=0, max_size=5))
def test_all_of_space_fits_a_cube_and_comes_back(points):
    x = torch.tensor(points, dtype=torch.float64).reshape(-1, 3)
    u = contract(x)
    assert (u.abs() < 1).all()
    assert torch.allclose(expand(u), x, rtol=1e-5, atol=1e-12)
    inside = (x.abs() <= 1).all(-1)
    assert torch.equal(u[inside], x[inside] / 2)
    assert ((2 * u.abs()).amax(-1) > 1).equal(~inside)


def test_contraction_is_continuous_monotone_and_keeps_directions():
    direction = torch.tensor([[0.3, -1.0, 0.62]]).double()
    x = torch.linspace(0, 50, 4001, dtype=torch.float64)[:, None] * direction
    u = contract(x)
    size = u.abs().amax(-1)
    assert (size[1:] > size[:-1]).all()
    assert float((u[1:] - u[:-1]).abs().max()) < 0.5 * 50 / 4000 * 1.0001
    assert torch.allclose(
        torch.nn.functional.normalize(u[1:], dim=-1), torch.nn.functional.normalize(direction, dim=-1)
    )
    # Twice as far is half as far from the edge.
    assert torch.allclose(1 - contract(2 * x[300:]).abs().amax(-1), 0.5 * (1 - size[300:]))


@pytest.mark.parametrize("scale", [0.4, 1.7, 30.0])
def test_gradients_are_pulled_back_as_autograd_does(scale):
    g = torch.Generator().manual_seed(0)
    x = scale * torch.randn(57, 3, generator=g).double()
    gradient = torch.randn(57, 3, generator=g).double()
    points = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(contract(points), points, gradient)
    assert torch.allclose(pull_back(x, gradient), expected, rtol=1e-9, atol=1e-12)


def test_normals_in_contracted_space_are_the_worlds():
    torch.manual_seed(1)
    field = SineRadianceField(
        torch.zeros(3), 1.0, (13, 7), (9,), 6, first_omega=3.0, hidden_omega=3.0, is_contracted=True
    ).double()
    x = 3 * torch.randn(41, 3).double()
    with torch.no_grad():
        step = 1e-5 * torch.eye(3).double()

        def log_density(points):
            return field.density_net(field.inputs(points))[:, 0]

        differences = [log_density(x + s) - log_density(x - s) for s in step]
    expected = -torch.nn.functional.normalize(torch.stack(differences, -1), dim=-1)
    found = field.float().normals(x.float()).double()
    assert torch.allclose(found, expected, atol=5e-3)
    # The world's interface knows no edge.
    far = torch.tensor([[40.0, 2.0, -7.0]])
    assert torch.allclose(field.density_fn(far)[:, 0], field.density(far))
    field.is_contracted = False
    assert float(field.density_fn(far)) == 0


def test_density_is_spread_over_what_a_radial_step_stands_for():
    torch.manual_seed(0)
    field = SineRadianceField(torch.zeros(3), 1.0, (13, 7), (9,), 6, is_contracted=True)
    x = torch.tensor([[0.2, -0.9, 0.3], [3.0, -1.0, 0.5], [0.1, 0.2, -20.0]])
    size = torch.tensor([0.9, 3.0, 20.0])
    u = x * torch.tensor([0.5, (1 - 1 / 6) / 3, (1 - 1 / 40) / 20])[:, None]
    expected = field.density_net(u)[:, 0].exp() / size.clamp_min(1).square()
    assert torch.allclose(field.density(x), expected, rtol=1e-4)
    sigma, features = field.features(x)
    assert torch.allclose(sigma, expected, rtol=1e-4)
    assert torch.allclose(features, field.density_net(u)[:, 1:], atol=1e-5)
    # What a sample far away absorbs is what one in the middle does that is as long in contracted space.
    assert torch.allclose(radial_scale(x) * size.clamp_min(1).square(), torch.ones(3))


def test_the_grid_is_asked_where_the_contracted_points_lie():
    torch.manual_seed(0)
    grid = OccupancyGrid(32, 10.0, is_contracted=True)

    def shell(u):
        distance = expand(u).norm(dim=-1)
        return 100.0 * ((distance > 3) & (distance < 20)).float()

    grid.update(shell, everywhere=True)
    directions = torch.nn.functional.normalize(torch.randn(200, 3), dim=-1)
    assert grid.occupancy.at(7.9 * directions).all()
    assert not grid.occupancy.at(1.3 * directions).any()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_open_scene(tmp_path_factory.mktemp("open") / "scene", side=24, train=14, test=2)


def _config(scene, folder, model=(), **trainer):
    config = tiny_config("nerf", folder, model, **trainer)
    config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig(data=scene)
    config.steps_per_eval_batch = 1_000_000
    return config


def _middle(config):
    files = checkpoints(config)
    return int(files[len(files) // 2].stem.removeprefix("step-"))


def _check_units(model):
    """Distances are the world's, whatever the cube's size; the networks' inputs are contracted, the grid's density not
    spread."""
    model.field.half_side.fill_(2.5)
    near, far = model._limits(torch.zeros(2, 3), torch.ones(2, 3))
    assert near.tolist() == pytest.approx([0.05 / 2.5] * 2)
    assert far.tolist() == pytest.approx([1000 / 2.5] * 2)
    world = torch.tensor([[7.0, -30.0, 1.0]])
    assert torch.allclose(model.adaptive_inputs(world), contract((world - model.field.centre) / 2.5))
    with torch.no_grad():
        for parameter in model.field.density_net.parameters():
            parameter.zero_()
    model.grid.density.zero_()
    model.before_step(0)
    assert torch.allclose(model.grid.density, torch.ones(()))


def test_cameras_inside_the_box_make_a_scene_without_bounds(scene, tmp_path, capsys, monkeypatch):
    """And a run of it resumes as if uninterrupted, and is refused to one that knows the box alone."""
    growths = []
    for place, name in ((nerf, "march_rays_train"), (nerf_rendering, "march_rays")):
        march = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *a, march=march: growths.append(a[-1]) or march(*a))
    config = _config(scene, tmp_path / "whole", {"cone_angle": 0.003}, steps_per_eval_image=40, quiet=False)
    model = train(config).pipeline.model
    assert set(growths) == {0.003}
    assert model.is_contracted
    assert model.field_average.is_contracted
    assert model.grid.is_contracted
    end = load(checkpoints(config)[-1])
    assert end["pipeline"]["_model._extra_state"]["settings"]["scene_contraction"] is True
    again = _config(
        *(scene, tmp_path / "again", {"cone_angle": 0.003}),
        load_dir=config.get_checkpoint_dir(), load_step=_middle(config), steps_per_eval_image=40,
    )  # fmt: skip
    train(again)
    assert differences(load(checkpoints(again)[-1]), end) == []
    boxed = _config(scene, tmp_path / "boxed", {"scene_contraction": False}, load_dir=config.get_checkpoint_dir())
    with pytest.raises(SystemExit, match=r"scene_contraction is True and this run.s False; give --pipeline"):
        train(boxed)
    assert "space around it is contracted" in capsys.readouterr().out
    _check_units(model)
    model.config.marcher = "nerfacc"
    with pytest.raises(InputError, match="contracted and marcher is nerfacc"):
        model._set_contraction(True)


def test_an_earlier_run_of_such_a_scene_stays_what_it_was(scene, tmp_path):
    """Releases before this one knew the box alone, and their configurations say nothing of contraction."""
    config = _config(scene, tmp_path / "earlier", {"scene_contraction": False})
    assert not train(config).pipeline.model.is_contracted
    again = _config(scene, tmp_path / "again", load_dir=config.get_checkpoint_dir(), load_step=_middle(config))
    model = train(again).pipeline.model
    assert not model.is_contracted
    assert not model.field_average.is_contracted
    assert differences(load(checkpoints(again)[-1]), load(checkpoints(config)[-1])) == []


def test_a_capture_of_few_pictures_or_of_palettes_is_refused(tmp_path):
    few = write_open_scene(tmp_path / "few", side=8, train=4, test=1)
    meta = json.loads((few / "transforms.json").read_text())
    meta = {name: value for name, value in meta.items() if not name.endswith("_filenames")}
    (few / "transforms.json").write_text(json.dumps(meta))
    with pytest.raises(SystemExit, match="leaves no picture for evaluation; add --eval-mode all"):
        train(_config(few, tmp_path / "out"))
    palettes = write_open_scene(tmp_path / "palettes", side=8, train=12, test=2)
    first = sorted(palettes.rglob("*.png"))[0]
    Image.open(first).convert("P").save(first)
    with pytest.raises(SystemExit, match="is a picture of mode P, which nerfstudio does not convert"):
        train(_config(palettes, tmp_path / "out"))


def test_one_view_has_no_spread(tmp_path):
    """NaN is no JSON."""
    pipeline = train(_config(write_open_scene(tmp_path / "s", side=8, train=12, test=1), tmp_path / "out")).pipeline
    assert len(pipeline.datamanager.eval_dataset) == 1
    scores = pipeline.get_average_eval_image_metrics(get_std=True)
    assert math.isfinite(scores["psnr"])
    assert "psnr_std" not in scores


def test_cameras_outside_the_box_keep_it(tmp_path):
    assert not train(tiny_config("nerf", tmp_path)).pipeline.model.is_contracted


@pytest.mark.parametrize(
    ("inside", "outside", "channels", "expected"),
    [(5, 0, 3, True), (3, 2, 3, True), (2, 2, 3, False), (0, 5, 3, False), (5, 0, 4, False)],
)
def test_a_scene_is_open_where_most_cameras_stand_in_its_box(inside, outside, channels, expected):
    # nerfstudio puts the outermost camera on the face.
    places = torch.tensor([[1.0, 0.2, -0.3]] * inside + [[0.1, -1.7, 0.0]] * outside)
    poses = torch.eye(4)[:3].repeat(len(places), 1, 1)
    poses[:, :, 3] = places
    dataset = SimpleNamespace(
        scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])),
        cameras=SimpleNamespace(camera_to_worlds=poses),
        get_image_float32=lambda index: torch.zeros(4, 5, channels),
    )
    assert rays_manager._is_open(dataset) is expected


def test_a_depth_picture_is_scaled_by_what_is_met():
    depth = torch.full((6, 7, 1), 2.0)
    depth[0], depth[1, 0] = 1.0, 1000.0
    accumulation = (depth < 100).float()
    picture = nerf_rendering.depth_picture({"depth": depth, "accumulation": accumulation})
    assert float((picture[0, 0] - picture[3, 3]).abs().max()) > 0.2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cone_angle": -0.1}, "cone_angle is -0.1"),
        ({"cone_angle": 1.0}, "cone_angle is 1.0"),
        ({"near_plane": 3.0, "far_plane": 2.0}, "near_plane is 3.0 and far_plane 2.0"),
        ({"far_plane": float("inf")}, "far_plane is inf"),
        ({"near_plane": float("nan")}, "near_plane is nan"),
        ({"scene_contraction": True, "marcher": "nerfacc"}, "even steps alone"),
        ({"cone_angle": 0.01, "marcher": "nerfacc"}, "even steps alone"),
    ],
)
def test_bad_settings_are_refused(settings, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(Exception, match=said):
        NerfModelConfig(**settings).check()
