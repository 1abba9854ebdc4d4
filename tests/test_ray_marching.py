"""Marching and compositing against straightforward loops."""

import math

import pytest
import torch

from aire_nerfstudio.ops.compositing import composite_rays_train, early_stop, exclusive_sum
from aire_nerfstudio.ops.occupancy import Occupancy
from aire_nerfstudio.ops.ray_marching import Samples, march_rays_train, near_far_from_aabb

CUBE = torch.tensor([-1.0, -1, -1, 1, 1, 1])


def _rays(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1)
    target = torch.rand(n, 3, generator=g) * 2.4 - 1.2
    return target - 3 * directions, directions


def test_near_far_enclose_exactly_the_part_inside_the_box():
    origins, directions = _rays(200)
    near, far = near_far_from_aabb(origins, directions, CUBE)
    t = torch.linspace(0, 6, 6001)
    points = origins[:, None] + t[:, None] * directions[:, None]
    inside = (points.abs() <= 1).all(-1)
    assert ((far > near) | ~inside.any(1)).all()
    hit = inside.sum(1) > 2
    first = t[inside[hit].float().argmax(1)]
    length = inside[hit].sum(1) * 1e-3
    assert torch.allclose(near[hit], first, atol=2e-3)
    assert torch.allclose((far - near)[hit], length, atol=3e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_near_far_of_axis_parallel_rays(axis):
    direction = torch.zeros(1, 3)
    direction[0, axis] = 1.0
    near, far = near_far_from_aabb(-3 * direction, direction, CUBE)
    assert (near.item(), far.item()) == pytest.approx((2.0, 4.0))
    beside = -3 * direction
    beside[0, (axis + 1) % 3] = 1.5
    near, far = near_far_from_aabb(beside, direction, CUBE)
    assert far.item() == near.item()


def test_a_camera_inside_the_box_starts_at_itself():
    near, far = near_far_from_aabb(torch.zeros(1, 3), torch.tensor([[0.0, 0, 1]]), CUBE)
    assert (near.item(), far.item()) == pytest.approx((0.0, 1.0))


def _march_by_loop(origins, directions, near, far, occupied, step, jitter):
    """One sample after the other; the specification of march_rays_train."""
    size = occupied.shape[0]
    found = []
    for ray in range(len(origins)):
        t0 = near[ray] + (jitter[ray] - 1) * step if jitter is not None else near[ray]
        for k in range(2000):
            start = t0 + k * step
            middle = start + 0.5 * step
            if middle >= far[ray]:
                break
            if middle < near[ray]:
                continue
            voxel = ((origins[ray] + middle * directions[ray] + 1) * size / 2).long().clamp(0, size - 1)
            if occupied[tuple(voxel)]:
                found.append((ray, start.item()))
    return found


@pytest.mark.parametrize(("size", "step", "with_jitter"), [(8, 0.05, True), (9, 0.013, False), (4, 0.7, True)])
def test_marching_finds_the_samples_of_a_plain_loop(size, step, with_jitter):
    origins, directions = _rays(23, seed=size)
    origins, directions = origins.double(), directions.double()
    near, far = near_far_from_aabb(origins, directions, CUBE.double())
    occupied = torch.rand(size, size, size, generator=torch.Generator().manual_seed(1)) < 0.15
    jitter = torch.rand(23, generator=torch.Generator().manual_seed(2)).double() if with_jitter else None
    samples = march_rays_train(origins, directions, near, far, Occupancy(occupied), step, jitter)
    expected = _march_by_loop(origins, directions, near, far, occupied, step, jitter)
    assert samples.ray_indices.tolist() == [ray for ray, _ in expected]
    assert torch.allclose(samples.starts, torch.tensor([s for _, s in expected]).double(), atol=1e-9)
    assert torch.allclose(samples.ends - samples.starts, torch.full_like(samples.starts, step))


def test_marching_misses_no_lone_voxel():
    """Few and far voxels: a stretch too long for the dilated grid would jump over them."""
    occupied = torch.zeros(16, 16, 16, dtype=torch.bool)
    occupied[2::5, 3::6, 1::4] = True
    origins, directions = (x.double() for x in _rays(600, seed=3))
    near, far = near_far_from_aabb(origins, directions, CUBE.double())
    samples = march_rays_train(origins, directions, near, far, Occupancy(occupied), 0.02)
    expected = _march_by_loop(origins, directions, near, far, occupied, 0.02, None)
    assert len(expected) > 200
    assert samples.ray_indices.tolist() == [ray for ray, _ in expected]


def test_marching_nothing():
    empty = torch.zeros(0, 3)
    grid = Occupancy(torch.ones(4, 4, 4, dtype=torch.bool))
    assert len(march_rays_train(empty, empty, torch.zeros(0), torch.zeros(0), grid, 0.1).starts) == 0
    origins, directions = _rays(5)
    zero = torch.zeros(5)
    assert len(march_rays_train(origins, directions, zero, zero, grid, 0.1).starts) == 0
    none = Occupancy(torch.zeros_like(grid.occupied))
    assert len(march_rays_train(origins, directions, zero, zero + 6, none, 0.1).starts) == 0


def _packed(counts, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    rays = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    starts = torch.cat([torch.arange(c, dtype=dtype) * 0.1 for c in counts])
    sigmas = torch.rand(len(rays), generator=g, dtype=dtype) * 20
    rgbs = torch.rand(len(rays), 3, generator=g, dtype=dtype)
    return Samples(starts, starts + 0.1, rays), sigmas, rgbs


COUNTS = [3, 0, 1, 7, 0, 40]


def test_exclusive_sum_restarts_on_each_ray():
    samples, sigmas, _ = _packed(COUNTS)
    got = exclusive_sum(sigmas, samples.ray_indices)
    expected = torch.cat([s.cumsum(0) - s for s in sigmas.split(COUNTS)])
    assert torch.allclose(got, expected)
    assert len(exclusive_sum(sigmas[:0], samples.ray_indices[:0])) == 0


def test_compositing_equals_the_volume_rendering_sum():
    samples, sigmas, rgbs = _packed(COUNTS)
    weights, colour, accumulation, depth = composite_rays_train(sigmas, rgbs, samples, len(COUNTS))
    begin = 0
    for ray, count in enumerate(COUNTS):
        transmittance, c, a, d = 1.0, torch.zeros(3).double(), 0.0, 0.0
        for i in range(begin, begin + count):
            alpha = 1 - math.exp(-sigmas[i].item() * 0.1)
            w = transmittance * alpha
            assert weights[i].item() == pytest.approx(w, abs=1e-12)
            c, a, d = c + w * rgbs[i], a + w, d + w * (samples.starts[i].item() + 0.05)
            transmittance *= 1 - alpha
        assert torch.allclose(colour[ray], c)
        assert accumulation[ray].item() == pytest.approx(a)
        assert depth[ray].item() == pytest.approx(d)
        begin += count


def test_compositing_gradients():
    samples, sigmas, rgbs = _packed([3, 0, 5])
    sigmas.requires_grad_()
    rgbs.requires_grad_()
    assert torch.autograd.gradcheck(lambda s, c: composite_rays_train(s, c, samples, 3)[1:], (sigmas, rgbs))


@pytest.mark.parametrize("first_chunk", [1, 4, 100])
def test_early_stop_keeps_the_samples_that_light_reaches(first_chunk):
    samples, sigmas, _ = _packed(COUNTS)
    epsilon = 0.05

    def key(part):
        return (part.ray_indices * 1000 + (part.starts / 0.1).round().long()).tolist()

    table = dict(zip(key(samples), sigmas, strict=True))

    def density(part):
        return torch.stack([table[k] for k in key(part)])

    index, found = early_stop(samples, len(COUNTS), density, epsilon, first_chunk)
    transmittance = torch.exp(-exclusive_sum(sigmas * 0.1, samples.ray_indices))
    expected = (transmittance > epsilon).nonzero().squeeze(1)
    assert torch.equal(index, expected)
    assert torch.equal(found, sigmas[expected])
    assert 0 < len(expected) < len(sigmas)


def test_early_stop_does_not_evaluate_behind_an_opaque_wall():
    counts = [64]
    samples, _, _ = _packed(counts)
    evaluated = []

    def density(part):
        evaluated.append(len(part.starts))
        return torch.full_like(part.starts, 1e3)

    index, _ = early_stop(samples, 1, density, 1e-4, first_chunk=8)
    assert index.tolist() == [0]
    assert sum(evaluated) == 8
