"""Strong and weak neurons alone, and the frequencies that drive a network."""

import copy

import pytest
import torch
from nerfstudio.data.scene_box import SceneBox

from aire_nerfstudio.adaptation.importance import contribution, weakest
from aire_nerfstudio.analysis.split import split_outputs
from aire_nerfstudio.data.image_views import view_cameras
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.models.image import ImageModelConfig
from aire_nerfstudio.models.parts import driving_frequency, parts_of

X = 2 * torch.rand(33, 2, generator=torch.Generator().manual_seed(1)) - 1


def _groups(net):
    return net.neuron_groups()


@pytest.mark.parametrize("activation", ["siren", "finer", "spder"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_parts_are_those_of_the_analysis(activation, layer):
    """The oracle masks columns; here neurons are cut out of a copy."""
    net = SineMLP(2, [9, 8, 7], 3, activation, first_omega=8.0, hidden_omega=2.0)
    before = copy.deepcopy(net.state_dict())
    weak = weakest(contribution(_groups(net)[layer]), 4)
    parts = parts_of(net, _groups, {layer: weak})
    strong_alone, weak_alone = split_outputs(net, X, layer, 4)
    assert torch.allclose(parts["important"](X), strong_alone, atol=1e-5)
    assert torch.allclose(parts["unimportant"](X), weak_alone, atol=1e-5)
    assert parts["unimportant"].widths[layer] == 4
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))


@pytest.mark.parametrize("weak", [torch.arange(5), torch.tensor([], dtype=torch.long)])
def test_a_layer_that_loses_all_keeps_one_silent_neuron(weak):
    net = SineMLP(2, [5, 4], 1, first_omega=6.0)
    parts = parts_of(net, _groups, {0: weak})
    silenced = parts["important" if len(weak) else "unimportant"]
    with torch.no_grad():
        expected = copy.deepcopy(net)
        expected.layers[1].weight.zero_()
    assert torch.allclose(silenced(X), expected(X), atol=1e-6)


def test_the_driving_frequency_is_the_mean_that_its_formula_says():
    net = SineMLP(2, [6, 5], 2, first_omega=4.0, hidden_omega=3.0).double()
    x = X.double()
    w, b = net.layers[0].weight.detach(), net.layers[0].bias.detach()
    h = torch.sin(4 * (x @ w.T + b)).requires_grad_()
    y = net.layers[2](torch.sin(3 * net.layers[1](h))).sum()
    (slope,) = torch.autograd.grad(y, h)
    share = (slope * h).abs().detach()
    expected = (share * w.norm(dim=1)).sum(1) / share.sum(1) / w.norm(dim=1).max()
    got = driving_frequency(net, x)
    assert torch.allclose(got, expected)
    assert ((got > 0) & (got <= 1)).all()


def test_one_frequency_drives_everything_where_there_is_one():
    assert torch.allclose(driving_frequency(SineMLP(2, [1, 3], 1), X), torch.ones(33))


def test_views_show_the_parts_on_request_and_leave_the_model_alone():
    config = ImageModelConfig(widths=(13, 11))
    box = SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3]))
    metadata = {"height": 6, "width": 9, "channels": 3}
    model = config.setup(scene_box=box, num_train_data=1, metadata=metadata, device="cpu").eval()
    camera = view_cameras(6, 9)[1:2]
    plain = model.get_outputs_for_camera(camera)
    model.config.shows_parts = True
    shown = model.get_outputs_for_camera(camera)
    assert set(shown) - set(plain) == {"important", "unimportant", "frequency"}
    assert next(iter(shown)) == "rgb"
    assert all(torch.equal(plain[name], shown[name]) for name in plain)
    assert shown["frequency"].shape == shown["depth"].shape
    is_met = plain["accumulation"] > 0.5
    assert (shown["frequency"][~is_met] == 0).all()
    assert (shown["frequency"][is_met] > 0).all()
    weak = {0: weakest(contribution(model.field.neuron_groups()[0]), round(0.6 * 13))}
    strong = parts_of(model.field, _groups, weak)["important"]
    points = model.adaptive_inputs(
        (lambda rays: rays.origins + plain["depth"] * rays.directions)(
            camera.generate_rays(camera_indices=0, keep_shape=True)
        ).reshape(-1, 3)
    ).view(6, 9, 2)
    expected = (0.5 * (strong(points) + 1)).clamp(0, 1)
    assert torch.allclose(shown["important"][is_met[..., 0]], expected[is_met[..., 0]], atol=1e-5)
    assert model.rendered_part is None


def test_a_render_that_is_interrupted_leaves_no_part_behind():
    config = ImageModelConfig(widths=(5, 4), shows_parts=True)
    box = SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3]))
    metadata = {"height": 4, "width": 4, "channels": 1}
    model = config.setup(scene_box=box, num_train_data=1, metadata=metadata, device="cpu").eval()
    model._rendering.part = SineMLP(2, [3], 1)  # what an exception in a finally block would leave
    camera = view_cameras(4, 4)[0:1]
    first = model.get_outputs_for_camera(camera)["rgb"]
    assert torch.equal(first, model.get_outputs_for_camera(camera)["rgb"])
    model._rendering.part = SineMLP(2, [3], 1)
    model.train()
    assert model.evaluated_field is model.field
