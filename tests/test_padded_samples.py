# ruff: noqa: F811
"""Samples in memory of a fixed size: those of marching, of the first rays where there are too many."""

import pytest
import torch
from test_ray_ops import DEVICES, _open_scene, _scene, by_torch, device, warps  # noqa: F401

from aire_nerfstudio.ops import compositing
from aire_nerfstudio.ops.compositing import composite_rays_train, early_stop
from aire_nerfstudio.ops.occupancy import Occupancy
from aire_nerfstudio.ops.padded_samples import early_stop_padded, march_rays_padded, pad, reached_padded
from aire_nerfstudio.ops.ray_marching import Samples, march_rays_train

RAYS, EPSILON = 301, 0.02
SCENES = {
    "cube": lambda device: (_scene(16, 0.2, RAYS, 3, device), 0.05, 0.0),
    "open": lambda device: (_open_scene(12, 0.2, RAYS, 3, device), 0.05, 0.01),
}


@pytest.fixture(params=SCENES)
def scene(request, device):
    rays, step, growth = SCENES[request.param](device)
    jitter = torch.rand(RAYS, generator=torch.Generator().manual_seed(1)).to(device)
    return rays, step, jitter, growth


def _plain(scene):
    rays, step, jitter, growth = scene
    return march_rays_train(*rays, step, jitter, growth)


def _padded(scene, capacity):
    rays, step, jitter, growth = scene
    return march_rays_padded(*rays, step, capacity, jitter, growth)


def _density(samples):
    """Of any samples, padding too, which is no number there."""
    there = samples.ray_indices < RAYS
    return torch.where(there, 9 * (1 + torch.sin(40 * samples.starts + samples.ray_indices)), torch.nan)


def _is_those_of_the_first(padded, plain, complete):
    """Whether all samples of the first ``complete`` rays are there, and no others."""
    kept = plain.select(plain.ray_indices < complete)
    count = len(kept.starts)
    assert all(torch.equal(a[:count], b) for a, b in zip(padded.samples, kept, strict=True))
    assert not padded.samples.starts[count:].any()
    assert not padded.samples.ends[count:].any()
    assert bool((padded.samples.ray_indices[count:] == RAYS).all())
    assert int(padded.complete) == complete


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("spare", [0, 1, 777])
def test_with_enough_memory_they_are_those_of_marching(scene, by_torch, compiled, spare):
    plain = _plain(scene)
    capacity = len(plain.starts) + spare
    padded = _padded(scene, capacity) if compiled else by_torch(_padded, scene, capacity)
    assert len(plain.starts) > 1000
    assert int(padded.total) == len(plain.starts)
    assert len(padded.samples.starts) == capacity
    _is_those_of_the_first(padded, plain, RAYS)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9999])
def test_with_too_little_the_last_rays_have_none(scene, by_torch, compiled, share):
    plain = _plain(scene)
    capacity = max(1, int(share * len(plain.starts)))
    padded = _padded(scene, capacity) if compiled else by_torch(_padded, scene, capacity)
    ends = torch.bincount(plain.ray_indices, minlength=RAYS).cumsum(0)
    complete = int((ends <= capacity).sum())
    assert complete < RAYS
    _is_those_of_the_first(padded, plain, complete)
    assert int(padded.total) == len(plain.starts)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("reached_share", [1.0, 0.4])
def test_light_reaches_those_that_it_reaches_without_padding(scene, by_torch, compiled, share, reached_share):
    plain = _plain(scene)
    marched = _padded(scene, int(share * len(plain.starts)) + 5)
    there = plain.select(plain.ray_indices < marched.complete)
    index, _ = early_stop(there, RAYS, _density, EPSILON)
    capacity = max(1, int(reached_share * len(index)))
    arguments = (marched, RAYS, _density, EPSILON, capacity)
    got = early_stop_padded(*arguments) if compiled else by_torch(early_stop_padded, *arguments)
    expected = there.select(index)
    assert 100 < len(index) < len(there.starts)
    ends = torch.bincount(expected.ray_indices, minlength=RAYS).cumsum(0)
    complete = min(int((ends <= capacity).sum()), int(marched.complete))
    assert int(got.total) == len(index)
    _is_those_of_the_first(got, expected, complete)


@pytest.mark.parametrize("compiled", [True, False])
def test_light_reaches_as_many_of_each_ray(scene, by_torch, compiled):
    plain = _plain(scene)
    marched = _padded(scene, len(plain.starts) + 9)
    arguments = marched, RAYS, _density(marched.samples), EPSILON
    got = reached_padded(*arguments) if compiled else by_torch(reached_padded, *arguments)
    index, _ = early_stop(plain, RAYS, _density, EPSILON)
    assert torch.equal(got, torch.bincount(plain.ray_indices[index], minlength=RAYS))
    assert 0 < int(got.sum()) < len(plain.starts)


@pytest.mark.parametrize("compiled", [True, False])
def test_padding_renders_nothing_and_asks_for_nothing(scene, by_torch, compiled):
    plain, render = _plain(scene), composite_rays_train
    padded = _padded(scene, len(plain.starts) + 50).samples
    g = torch.Generator().manual_seed(2)
    sigmas, rgbs = (torch.rand(len(padded.starts), *more, generator=g).to(plain.starts) for more in ((), (3,)))
    rendered = []
    for samples in (padded, plain):
        given = [t[: len(samples.starts)].clone().requires_grad_() for t in (9 * sigmas, rgbs)]
        arguments = (*given, samples, RAYS)
        outputs = render(*arguments) if compiled else by_torch(render, *arguments)
        (outputs[0].sum() + sum(((1 + i) * o.square()).sum() for i, o in enumerate(outputs[1:]))).backward()
        rendered.append([*(o.detach() for o in outputs), *(t.grad for t in given)])
    count = len(plain.starts)
    for with_padding, without in zip(*rendered, strict=True):
        if len(with_padding) > len(without):
            assert not with_padding[count:].any()
        assert torch.allclose(with_padding[: len(without)], without, atol=1e-6)


def test_what_the_compiled_rendering_of_padding_gives_is_its_specifications(device):
    samples = Samples(
        *(torch.tensor([0.0, 0.5, 0.0], device=device) + shift for shift in (0, 0.25)), torch.tensor([0, 2, 3])
    )
    samples = samples._replace(ray_indices=samples.ray_indices.to(device))
    sigmas, rgbs = torch.tensor([1.0, 2.0, 7.0], device=device), torch.rand(3, 2, device=device)
    for a, b in zip(
        composite_rays_train(sigmas, rgbs, samples, 3), compositing.reference(sigmas, rgbs, samples, 3), strict=True
    ):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("compiled", [True, False])
def test_no_rays_and_no_samples(device, by_torch, compiled):
    def call(function, *arguments):
        return function(*arguments) if compiled else by_torch(function, *arguments)

    grid = Occupancy(torch.zeros(4, 4, 4, dtype=torch.bool, device=device))
    for count in (0, 3):
        rays = torch.ones(count, 3, device=device), torch.ones(count, 3, device=device) / 3**0.5
        limits = torch.zeros(count, device=device), torch.ones(count, device=device)
        marched = call(march_rays_padded, *rays, *limits, grid, 0.1, 7)
        reached = call(early_stop_padded, marched, count, lambda samples: samples.starts, EPSILON, 4)
        for found, capacity in ((marched, 7), (reached, 4)):
            assert found.samples.ray_indices.tolist() == [count] * capacity
            assert (int(found.total), int(found.complete)) == (0, count)


def test_memory_for_none_is_refused(scene):
    with pytest.raises(ValueError, match="capacity is 0; it must be at least 1"):
        _padded(scene, 0)
    with pytest.raises(ValueError, match="capacity is -2; it must be at least 1"):
        early_stop_padded(pad(_plain(scene), RAYS, 9), RAYS, _density, EPSILON, -2)
