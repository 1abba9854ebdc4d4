"""Scenes without bounds: contraction's laws, a field that knows all of space, and trainings in one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from open_scene import write_open_scene
from tiny import checkpoints, differences, load, tiny_config, train

from aire_nerfstudio.fields.occupancy_grid import OccupancyGrid
from aire_nerfstudio.fields.radiance_field import SineRadianceField
from aire_nerfstudio.models.nerf import NerfModelConfig
from aire_nerfstudio.ops.contraction import contract, expand, pull_back

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


def test_cameras_inside_the_box_make_a_scene_without_bounds(scene, tmp_path):
    """And a run of it resumes as if uninterrupted, and is refused to one that knows the box alone."""
    config = _config(scene, tmp_path / "whole")
    model = train(config).pipeline.model
    assert model.is_contracted
    assert model.field_average.is_contracted
    assert model.grid.is_contracted
    end = load(checkpoints(config)[-1])
    assert end["pipeline"]["_model._extra_state"]["settings"]["scene_contraction"] is True
    again = _config(scene, tmp_path / "again", load_dir=config.get_checkpoint_dir(), load_step=_middle(config))
    train(again)
    assert differences(load(checkpoints(again)[-1]), end) == []
    boxed = _config(scene, tmp_path / "boxed", {"scene_contraction": False}, load_dir=config.get_checkpoint_dir())
    with pytest.raises(SystemExit, match="trained with scene_contraction True"):
        train(boxed)


def test_an_earlier_run_of_such_a_scene_stays_what_it_was(scene, tmp_path):
    """Releases before this one knew the box alone, and their configurations say nothing of contraction."""
    config = _config(scene, tmp_path / "earlier", {"scene_contraction": False})
    assert not train(config).pipeline.model.is_contracted
    again = _config(scene, tmp_path / "again", load_dir=config.get_checkpoint_dir(), load_step=_middle(config))
    model = train(again).pipeline.model
    assert not model.is_contracted
    assert not model.field_average.is_contracted
    assert differences(load(checkpoints(again)[-1]), load(checkpoints(config)[-1])) == []


def test_cameras_outside_the_box_keep_it(tmp_path):
    assert not train(tiny_config("nerf", tmp_path)).pipeline.model.is_contracted


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cone_angle": -0.1}, "cone_angle is -0.1"),
        ({"cone_angle": 1.0}, "cone_angle is 1.0"),
        ({"near_plane": 3.0, "far_plane": 2.0}, "near_plane is 3.0 and far_plane 2.0"),
        ({"far_plane": float("inf")}, "far_plane is inf"),
        ({"near_plane": float("nan")}, "near_plane is nan"),
        ({"scene_contraction": True, "marcher": "nerfacc"}, "marcher is nerfacc"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(Exception, match=said):
        NerfModelConfig(**settings).check()
