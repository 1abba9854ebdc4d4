"""The field through its own functions and through nerfstudio's, against each other and against differences."""

import pytest
import torch

from aire_nerfstudio.fields.radiance_field import SineRadianceField, truncated_exp


def _field(activation="siren", **kwargs):
    torch.manual_seed(0)
    return SineRadianceField(torch.tensor([0.5, 0.0, -0.25]), 2.0, (13, 7, 11), (9, 5), 6, activation, **kwargs)


@pytest.mark.parametrize("activation", ["siren", "finer", "spder"])
@pytest.mark.parametrize("detached", [True, False])
def test_normals_are_minus_the_gradient_by_differences(activation, detached):
    # A low first frequency keeps the differences accurate.
    field = _field(activation, first_omega=3.0, detach_finer_scale=detached).double()
    x = torch.rand(17, 3).double() * 1.8 - 0.9
    with torch.no_grad():
        step = 1e-6 * torch.eye(3).double()
        difference = torch.stack([field.density_net(x + s)[:, 0] - field.density_net(x - s)[:, 0] for s in step], -1)
    expected = -torch.nn.functional.normalize(difference, dim=-1)
    assert torch.allclose(field.float().normals(x.float()).double(), expected, atol=2e-3)
    assert field.density_net.detach_finer_scale is detached


def test_density_alone_equals_density_with_features():
    field = _field()
    x = torch.rand(29, 3) * 2 - 1
    sigma, features = field.features(x)
    assert torch.allclose(sigma, field.density(x), rtol=1e-5)
    assert features.shape == (29, 6)


def test_world_units_of_the_nerfstudio_interface():
    field = _field()
    world = torch.rand(19, 3) * 4 - 2 + field.centre
    inside = field.density_fn(world)
    assert inside.shape == (19, 1)
    assert torch.allclose(inside[:, 0], field.density(field.normalise(world)) / 2.0)
    assert (field.density_fn(field.centre + torch.tensor([[2.1, 0.0, 0.0]])) == 0).all()


def test_colours_depend_on_the_view_and_lie_in_0_1():
    field = _field()
    _, features = field.features(torch.rand(5, 3))
    directions = torch.nn.functional.normalize(torch.randn(5, 3), dim=-1)
    one, other = field.colour(directions, features), field.colour(-directions, features)
    assert ((one > 0) & (one < 1)).all()
    assert not torch.allclose(one, other)


def test_truncated_exp():
    x = torch.tensor([-30.0, -1.0, 0.0, 2.0, 40.0], requires_grad=True)
    y = truncated_exp(x)
    assert torch.allclose(y[1:4], x[1:4].exp())
    assert torch.isfinite(y).all()
    y.sum().backward()
    assert torch.allclose(x.grad[1:4], x.detach()[1:4].exp())
    assert (x.grad > 0).all()
    assert torch.isfinite(x.grad).all()
    # Within its limits the second derivative is the exponential, outside the first one is constant.
    x = torch.tensor([-16.0, -3.0, 2.0, 16.0], dtype=torch.double, requires_grad=True)
    first = torch.autograd.grad(truncated_exp(x).sum(), x, create_graph=True)[0]
    assert torch.allclose(torch.autograd.grad(first.sum(), x)[0], torch.tensor([0, *x.detach()[1:3].exp(), 0]).double())


def test_the_papers_size_reduction():
    def size(widths):
        return sum(p.numel() for p in SineRadianceField(torch.zeros(3), 1.0, widths).parameters())

    large, pruned = size((182, 182, 182)), size((91, 91, 182))
    assert f"{100 * (1 - pruned / large):.2f}" == "20.74"
