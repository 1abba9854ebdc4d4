"""The compiled ray ops: the same samples as PyTorch's to the bit, and the same rendering."""

import ctypes
import math
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aire_nerfstudio.fields.radiance_field import SineRadianceField
from aire_nerfstudio.models.nerf_rendering import render_rays
from aire_nerfstudio.ops import backend, compositing, cuda, ray_marching
from aire_nerfstudio.ops.build import SOURCES, BuildError, compiler
from aire_nerfstudio.ops.compositing import Rendered, composite_rays, composite_rays_train, visibility
from aire_nerfstudio.ops.occupancy import Occupancy, morton3D, morton3D_invert, packbits, update_density_grid
from aire_nerfstudio.ops.ray_marching import ENDED, Samples, march_rays, march_rays_train, near_far_from_aabb
from aire_nerfstudio.ops.sample_places import places

CUBE = torch.tensor([-1.0, -1, -1, 1, 1, 1])
DEVICES = [
    "cpu",
    "warps",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


@pytest.fixture(scope="module")
def warps(tmp_path_factory):
    """What CUDA's warps compute, with lanes that take turns on a processor."""
    path = tmp_path_factory.mktemp("warps") / "warps.so"
    source = Path(__file__).with_name("emulated_warps.cpp")
    command = [*compiler(), "-O2", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", f"-I{SOURCES}"]
    subprocess.run([*command, str(source), "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    monkeypatch.delenv("AIRE_OPS", raising=False)
    place = torch.device("cpu" if request.param == "warps" else request.param)
    handle = backend.RAY_MARCHING.load() if place.type == "cpu" else cuda.RAY_MARCHING.load(place)
    if request.param == "warps" and handle is not None:
        handle = request.getfixturevalue("warps")
        monkeypatch.setattr(backend.RAY_MARCHING, "load", lambda: handle)
    if handle is None:
        pytest.skip("compiled ray ops cannot be had; python -m aire_nerfstudio.ops says why")
    return place


@pytest.fixture
def by_torch(monkeypatch):
    """Calls what it is given with PyTorch's operations alone."""

    def call(function, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setenv("AIRE_OPS", "off")
            return function(*arguments, **options)

    return call


def _rays(n, seed, device):
    """Rays towards a cube, some along axes, some from inside, some past it."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1)
    origins = torch.rand(n, 3, generator=g) * 2.6 - 1.3 - 3 * directions
    directions[::7] = torch.eye(3)[torch.arange(len(directions[::7])) % 3] * -1.0
    origins[::7] = torch.rand(len(origins[::7]), 3, generator=g) * 2 - 1 - 2 * directions[::7]
    origins[1::5] *= 0.2
    return origins.to(device), directions.to(device)


def _scene(size, share, rays, seed, device):
    origins, directions = _rays(rays, seed, device)
    near, far = near_far_from_aabb(origins, directions, CUBE.to(device))
    occupied = torch.rand(size, size, size, generator=torch.Generator().manual_seed(seed + 1)) < share
    return origins, directions, near, far, Occupancy(occupied.to(device))


def _open_scene(size, share, rays, seed, device, nearest=0.05, farthest=300.0, contracted=True):
    """Rays from the middle of all of space, or of a cube, outwards, some from far away."""
    origins, directions, near, far, grid = _scene(size, share, rays, seed, device)
    origins = origins / 6
    origins[2::9] *= 20
    near, far = torch.full_like(near, nearest), torch.full_like(far, farthest)
    return origins, directions, near, far, Occupancy(grid.occupied, contracted)


GRIDS = [
    *((1, 1.0, 0.1), (2, 0.5, 0.013), (5, 0.3, 0.05), (9, 0.02, 0.011), (16, 0.01, 0.4)),
    *((33, 0.001, 0.004), (96, 0.0005, 0.0108), (64, 0.2, 0.003)),
]


@pytest.mark.parametrize(("size", "share", "step"), GRIDS)
@pytest.mark.parametrize("with_jitter", [True, False])
def test_samples_are_pytorchs_to_the_bit(device, by_torch, size, share, step, with_jitter):
    scene = _scene(size, share, 301, size, device)
    jitter = torch.rand(301, device=device) if with_jitter else None
    got = march_rays_train(*scene, step, jitter)
    expected = by_torch(march_rays_train, *scene, step, jitter)
    assert torch.equal(got.ray_indices, expected.ray_indices)
    assert torch.equal(got.starts, expected.starts)
    assert torch.equal(got.ends, expected.ends)
    assert len(got.starts) > 0


OPEN = [
    # Voxels a side, share occupied, step, growth, near, far, whether all of space is in the grid.
    (1, 1.0, 0.3, 0.1, 0.0, 20.0, True),
    (2, 0.5, 0.02, 0.03, 0.05, 100.0, True),
    (5, 0.3, 0.05, 0.0, 0.1, 30.0, True),
    (9, 0.05, 0.011, 0.004, 0.05, 1000.0, True),
    (33, 0.01, 0.004, 1 / 128, 0.05, 1000.0, True),
    (64, 0.002, 0.0034, 1 / 128, 0.0, 1000.0, True),
    (96, 0.3, 0.01, 0.3, 0.5, 50.0, True),
    (12, 0.1, 0.01, 0.01, 0.2, 8.0, False),
    (40, 0.01, 0.003, 0.002, 0.0, 5.0, False),
]


@pytest.mark.parametrize(("size", "share", "step", "growth", "nearest", "farthest", "contracted"), OPEN)
@pytest.mark.parametrize("with_jitter", [True, False])
def test_growing_samples_are_pytorchs_to_the_bit(
    device, by_torch, size, share, step, growth, nearest, farthest, contracted, with_jitter
):
    scene = _open_scene(size, share, 207, size, device, nearest, farthest, contracted)
    jitter = torch.rand(207, device=device) if with_jitter else None
    got = march_rays_train(*scene, step, jitter, growth)
    expected = by_torch(march_rays_train, *scene, step, jitter, growth)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    assert len(got.starts) > 20


@pytest.mark.parametrize("contracted", [False, True])
@pytest.mark.parametrize("block", [2, 4, 8])
@pytest.mark.parametrize("size", [24, 30, 64])
def test_blocks_are_left_without_losing_a_sample(device, by_torch, contracted, block, size):
    """Most of space is empty by blocks, which the compiled march leaves in one go, from wherever a ray enters them."""
    g = torch.Generator().manual_seed(size + block)
    coarse = torch.rand(-(-size // block), -(-size // block), -(-size // block), generator=g) < 0.06
    occupied = coarse.repeat_interleave(block, 0).repeat_interleave(block, 1).repeat_interleave(block, 2)
    grid = Occupancy(occupied[:size, :size, :size].contiguous().to(device), contracted)
    origins, directions = _rays(4000, size, device)
    if contracted:
        origins[::2] /= 5
    near, far = torch.zeros(4000, device=device), torch.full((4000,), 8.0, device=device)
    growth = 0.004 if block == 4 else 0.0
    got = march_rays_train(origins, directions, near, far, grid, 0.02, None, growth)
    expected = by_torch(march_rays_train, origins, directions, near, far, grid, 0.02, None, growth)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    assert len(got.starts) > 2000


@pytest.mark.parametrize("contracted", [False, True])
@pytest.mark.parametrize("slope", [1e-2, 1e-3, 1e-4, 1e-6])
def test_rays_that_graze_a_face_lose_no_sample(request, device, by_torch, contracted, slope):
    """Where rounding decides on which side of a face a point lies, it decides far along the ray."""
    # Where samples grow, a warp's first lane goes alone, which takes a processor long.
    rays = 100 if contracted and request.node.callspec.params["device"] == "warps" else 2000
    occupied = torch.zeros(64, 64, 64, dtype=torch.bool)
    occupied[:, 28:32] = occupied[:, 36:40] = True
    grid = Occupancy(occupied.to(device), contracted)
    g = torch.Generator().manual_seed(0)
    along = 2 * torch.rand(rays, generator=g) - 1
    face = torch.tensor([28, 32, 36, 40])[torch.arange(rays) % 4] / 32 - 1.0
    face = face * (2 if contracted else 1)
    sign = torch.randint(2, (rays,), generator=g) * 2.0 - 1
    directions = torch.nn.functional.normalize(torch.stack([torch.ones(rays), slope * sign, 0.1 * along], -1), dim=-1)
    origins = torch.stack([-1 + 0.3 * along, face - slope * sign * (1 - along), 0.4 * along], -1)
    near, far = torch.zeros(rays), torch.full((rays,), 2.2)
    scene = [t.to(device) for t in (origins, directions, near, far)]
    got = march_rays_train(*scene, grid, 0.0034)
    expected = by_torch(march_rays_train, *scene, grid, 0.0034)
    assert torch.equal(got.ray_indices, expected.ray_indices)
    assert torch.equal(got.starts, expected.starts)


def test_places_are_the_middles_of_samples_to_the_bit(device, by_torch):
    origins, directions = _rays(40, 5, device)
    g = torch.Generator().manual_seed(2)
    rays = torch.randint(41, (777,), generator=g).sort().values  # of ray 40 as well, which does not exist
    starts = torch.rand(777, generator=g)
    samples = Samples(starts.to(device), (starts + 0.01).to(device), rays.to(device))
    points, ways = places(samples, origins, directions)
    for a, b in zip((points, ways), by_torch(places, samples, origins, directions), strict=True):
        assert torch.equal(a, b)
    there = samples.ray_indices < 40
    n = samples.ray_indices[there]
    middles = 0.5 * (samples.starts + samples.ends)[there, None]
    assert torch.equal(points[there], origins[n] + middles * directions[n])
    assert torch.equal(ways[there], directions[n])
    assert 0 < int(there.sum()) < 777
    assert not points[~there].any()
    assert not ways[~there].any()
    assert places(samples.select(n[:0]), origins, directions)[0].shape == (0, 3)
    # Who moves rays gets a gradient.
    moved = origins.clone().requires_grad_()
    places(samples, moved, directions)[0].sum().backward()
    assert float(moved.grad.sum()) == 3 * int(there.sum())


def test_growing_samples_go_on_as_far_as_there_is_something(device, by_torch):
    grid = Occupancy(torch.ones(4, 4, 4, dtype=torch.bool, device=device), True)
    scene = [torch.tensor(t, device=device) for t in ([[0.0, 0.1, 0.2]], [[1.0, 0.0, 0.0]], [0.0], [1e8])]
    got = march_rays_train(*scene, grid, 0.1)
    for a, b in zip(got, by_torch(march_rays_train, *scene, grid, 0.1), strict=True):
        assert torch.equal(a, b)
    assert float(got.starts[-1]) > 2**25
    # What ends at 0 is not where the ray begins.
    behind = [*scene[:2], scene[2] - 1, scene[3] * 1e-8]
    got = march_rays_train(*behind, Occupancy(grid.occupied, False), 0.25, None, 0.01)
    assert len(got.starts) == 8


@pytest.mark.parametrize("distance", [0.5, 1.5, 4.0, 30.0])
def test_jitter_moves_samples_by_up_to_their_length_wherever_the_camera_stands(device, distance):
    grid = Occupancy(torch.ones(8, 8, 8, dtype=torch.bool, device=device), True)
    jitter = torch.linspace(0, 1, 101, device=device)[:100]
    origins = torch.tensor([[-distance, 0.1, 0.2]], device=device).expand(100, 3)
    directions = torch.tensor([[1.0, 0.0, 0.0]], device=device).expand(100, 3)
    near, far = torch.zeros(100, device=device), torch.full((100,), 100.0, device=device)
    samples = march_rays_train(origins, directions, near, far, grid, 0.0135, jitter)
    # Starts of the samples that reach over the point nearest to the middle, in their own length.
    over = (samples.starts <= distance) & (samples.ends > distance)
    assert int(over.sum()) == 100
    shift = (distance - samples.starts[over]) / (samples.ends - samples.starts)[over]
    assert float(shift.max() - shift.min()) > 0.9


def test_a_camera_far_away_samples_the_middle(device):
    grid = Occupancy(torch.ones(8, 8, 8, dtype=torch.bool, device=device), True)
    for distance in (10.0, 300.0, 2000.0):
        ray = torch.tensor([[-distance, 0.0, 0.0]], device=device), torch.tensor([[1.0, 0.0, 0.0]], device=device)
        limits = torch.zeros(1, device=device), torch.full((1,), 2 * distance, device=device)
        samples = march_rays_train(*ray, *limits, grid, 0.02)
        x = places(samples, *ray)[0][:, 0]
        assert int((x.abs() < 1).sum()) >= 99
        assert float((samples.ends - samples.starts).max()) <= distance


def test_steps_that_grow_are_those_of_a_loop():
    """In double precision, by hand: no look-up is left out and no step is of another length."""
    origins, directions, near, far, grid = _open_scene(10, 0.2, 30, 1, torch.device("cpu"), 0.07, 60.0)
    scene = (origins.double(), directions.double(), near.double(), far.double())
    samples = march_rays_train(*scene, grid, 0.03, None, 0.02)
    expected = []
    for ray in range(30):
        t = float(scene[2][ray])
        while True:
            beyond = max(1.0, float((scene[0][ray] + t * scene[1][ray]).abs().max()))
            length = max(0.03, 0.03 * beyond**2 / (1 + 0.03 * beyond), 0.02 * t)
            if t + 0.5 * length >= 60:
                break
            x, y, z = (scene[0][ray] + (t + 0.5 * length) * scene[1][ray]).tolist()
            m = max(abs(x), abs(y), abs(z))
            voxel = [int((v * (0.5 if m <= 1 else (1 - 0.5 / m) / m) + 1) * 5) for v in (x, y, z)]
            if grid.occupied[tuple(voxel)]:
                expected.append((ray, t, t + length))
            t += length
    assert len(expected) > 200
    assert samples.ray_indices.tolist() == [ray for ray, _, _ in expected]
    assert samples.starts.tolist() == pytest.approx([start for _, start, _ in expected])
    assert samples.ends.tolist() == pytest.approx([end for _, _, end in expected])


def test_near_and_far_are_pytorchs_to_the_bit(device, by_torch):
    origins, directions = _rays(500, 0, device)
    for least in (0.0, 2.5):
        got = near_far_from_aabb(origins, directions, CUBE.to(device), least)
        for a, b in zip(got, by_torch(near_far_from_aabb, origins, directions, CUBE.to(device), least), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("most", [1, 3, 16, 1000])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("is_open", [False, True], ids=["cube", "open"])
def test_rounds_give_all_samples_once(device, by_torch, most, compiled, is_open):
    scene = _open_scene(17, 0.05, 203, 4, device) if is_open else _scene(17, 0.05, 203, 4, device)
    growth = 0.015 if is_open else 0.0
    origins, _, near, far, _ = scene
    expected = march_rays_train(*scene, 0.02, dt_gamma=growth)
    following = torch.zeros(len(origins), device=device)
    alive = (far > near).nonzero().squeeze(1)
    found, rounds = [], 0
    while len(alive):
        arguments = (alive, following, *scene, 0.02, most, growth)
        samples = march_rays(*arguments) if compiled else by_torch(march_rays, *arguments)
        assert len(samples.starts) == 0 or int(torch.bincount(samples.ray_indices).max()) <= most
        found.append(samples)
        alive = alive[following[alive] < ENDED]
        rounds += 1
        assert rounds < 2000
    index = torch.cat([part.ray_indices for part in found])
    starts = torch.cat([part.starts for part in found])
    order = index.argsort(stable=True)
    assert torch.equal(index[order], expected.ray_indices)
    assert torch.equal(starts[order], expected.starts)
    assert torch.equal(torch.cat([part.ends for part in found])[order], expected.ends)
    assert len(march_rays(alive, following, *scene, 0.02, most).starts) == 0


def test_no_rays_no_samples(device):
    scene = _scene(8, 0.5, 0, 0, device)
    assert len(march_rays_train(*scene, 0.1).starts) == 0
    with pytest.raises(ValueError, match="step is 0"):
        march_rays_train(*scene, 0.0)
    with pytest.raises(ValueError, match=r"dt_gamma is -0\.1"):
        march_rays_train(*scene, 0.1, dt_gamma=-0.1)
    with pytest.raises(ValueError, match="most is 0"):
        march_rays(torch.zeros(0, dtype=torch.long), torch.zeros(0), *scene, 0.1, 0)


@pytest.mark.parametrize("is_open", [False, True], ids=["cube", "open"])
def test_rays_that_are_not_finite_end(device, by_torch, is_open):
    scene = list(_open_scene(8, 0.5, 9, 0, device) if is_open else _scene(8, 0.5, 9, 0, device))
    for ray, value in enumerate([float("nan"), float("inf"), -float("inf")]):
        scene[1][ray, ray] = value
    scene[2][4], scene[3][5] = float("nan"), float("nan")
    scene[0][6, 1] = float("nan")
    samples = march_rays_train(*scene, 0.05)
    assert set(samples.ray_indices.tolist()) <= {3, 7, 8}
    assert len(samples.starts) > 0
    for a, b in zip(samples, by_torch(march_rays_train, *scene, 0.05), strict=True):
        assert torch.equal(a, b)


def _interleaved(x, y, z):
    total = 0
    for bit in range(10):
        for axis, value in enumerate((x, y, z)):
            total |= (value >> bit & 1) << (3 * bit + axis)
    return total


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 1023)] * 3), min_size=0, max_size=20))
def test_morton_order_interleaves_bits(points):
    coordinates = torch.tensor(points, dtype=torch.int32).reshape(-1, 3)
    indices = morton3D(coordinates)
    assert indices.tolist() == [_interleaved(*point) for point in points]
    assert torch.equal(morton3D_invert(indices), coordinates)


def test_morton_order_by_pytorch_is_the_same(device, by_torch):
    coordinates = torch.randint(1024, (1000, 3), device=device)
    indices = morton3D(coordinates)
    assert torch.equal(indices, by_torch(morton3D, coordinates))
    assert torch.equal(morton3D_invert(indices), by_torch(morton3D_invert, indices))
    assert torch.equal(morton3D_invert(indices).long(), coordinates)
    with pytest.raises(ValueError, match=r"\[N, 3\]"):
        morton3D(coordinates[:, :2])


@pytest.mark.parametrize("size", [1, 3, 4, 7, 16, 20])
def test_bits_are_the_voxels_above_the_threshold(device, by_torch, size):
    grid = torch.rand(size, size, size, device=device)
    packed = packbits(grid, 0.6)
    assert torch.equal(packed, by_torch(packbits, grid, 0.6))
    unpacked = (packed[:, None] >> torch.arange(8, device=device, dtype=torch.uint8) & 1).flatten().bool()
    x, y, z = (grid > 0.6).nonzero().unbind(-1)
    expected = torch.zeros_like(unpacked)
    expected[morton3D(torch.stack([x, y, z], -1)).long()] = True
    assert torch.equal(unpacked, expected)


def test_a_grid_that_is_no_cube_is_refused():
    for shape in [(4, 4, 5), (0, 0, 0), (4, 4)]:
        with pytest.raises(ValueError, match="grid must be"):
            packbits(torch.zeros(shape), 0.5)


def test_the_density_grid_fades_and_is_raised(device, by_torch):
    ours, theirs = (torch.rand(5, 5, 5, generator=torch.Generator().manual_seed(0)).to(device) for _ in range(2))
    index = torch.randperm(125, device=device)[:40]
    fresh = torch.rand(40, device=device)
    update_density_grid(ours, index, fresh, 0.9)
    by_torch(update_density_grid, theirs, index, fresh, 0.9)
    assert torch.equal(ours, theirs)


COUNTS = [3, 0, 1, 7, 0, 90, 0]


def _packed(device, counts=COUNTS, channels=3):
    g = torch.Generator().manual_seed(1)
    rays = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    starts = torch.cat([torch.arange(c) * 0.1 for c in counts]).float()
    sigmas, rgbs = torch.rand(len(rays), generator=g) * 9, torch.rand(len(rays), channels, generator=g)
    return Samples(*(t.to(device) for t in (starts, starts + 0.1, rays))), sigmas.to(device), rgbs.to(device)


def _double(samples):
    return Samples(samples.starts.double(), samples.ends.double(), samples.ray_indices)


@pytest.mark.parametrize(("counts", "channels"), [(COUNTS, 3), (COUNTS, 1), ([0, 0], 3), ([5], 4), ([], 3)])
def test_rendering_and_its_gradients(device, counts, channels):
    samples, sigmas, rgbs = _packed(device, counts, channels) if counts else _packed(device, [0], channels)
    ours = [t.clone().requires_grad_() for t in (sigmas, rgbs)]
    theirs = [t.double().requires_grad_() for t in (sigmas, rgbs)]
    got = composite_rays_train(*ours, samples, len(counts))
    expected = compositing.reference(*theirs, _double(samples), len(counts))
    assert isinstance(got[0].grad_fn, compositing._Composite._backward_cls)
    weighed = [torch.randn_like(t) for t in got]
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a.double(), b, atol=1e-6)
    for used in ([0], [1], [2], [3], [0, 1, 2, 3]):
        found = torch.autograd.grad(sum((got[i] * weighed[i]).sum() for i in used), ours, retain_graph=True)
        wanted = torch.autograd.grad(
            sum((expected[i] * weighed[i].double()).sum() for i in used), theirs, retain_graph=True, allow_unused=True
        )
        for a, b in zip(found, wanted, strict=True):
            assert torch.allclose(a.double(), torch.zeros_like(a).double() if b is None else b, atol=2e-6)


def test_an_opaque_ray_leaves_nothing_in_those_behind_it(device):
    """A last interval without end, as NeRF's first code had it, and densities without bound."""
    samples, sigmas, rgbs = _packed(device)
    is_last = torch.ones(len(sigmas), dtype=torch.bool, device=device)
    is_last[:-1] = samples.ray_indices[1:] != samples.ray_indices[:-1]
    ends = torch.where(is_last, samples.starts + 1e10, samples.ends)
    sigmas[[0, 40]] = torch.tensor([float("inf"), 1e20], device=device)
    samples = samples._replace(ends=ends)
    expected = torch.zeros(len(sigmas), dtype=torch.float64)
    behind = {}
    for i, (sigma, begin, end, ray) in enumerate(zip(*(t.tolist() for t in (sigmas, *samples)), strict=True)):
        depth = sigma * (end - begin)
        expected[i] = math.exp(-behind.get(ray, 0.0)) * -math.expm1(-depth)
        behind[ray] = behind.get(ray, 0.0) + depth
    for by in (
        composite_rays_train(sigmas, rgbs, samples, len(COUNTS)),
        compositing.reference(sigmas, rgbs, samples, len(COUNTS)),
        compositing.reference(sigmas.double(), rgbs.double(), _double(samples), len(COUNTS)),
    ):
        torch.testing.assert_close(by[0].cpu().double(), expected, atol=2e-6, rtol=0)
        assert by[2].max() <= 1 + 1e-6


def test_second_derivatives_of_rendering(device):
    samples, sigmas, rgbs = _packed(device)

    def second(function, sigmas, rgbs, samples):
        colour = function(sigmas, rgbs, samples, len(COUNTS))[1]
        first = torch.autograd.grad(colour.square().sum(), sigmas, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), [sigmas, rgbs])

    found = second(composite_rays_train, sigmas.requires_grad_(), rgbs.requires_grad_(), samples)
    exact = [t.detach().double().requires_grad_() for t in (sigmas, rgbs)]
    for a, b in zip(found, second(compositing.reference, *exact, _double(samples)), strict=True):
        assert torch.allclose(a.double(), b, atol=1e-4)


def test_intervals_that_ask_for_gradients_get_them(device):
    samples, sigmas, rgbs = _packed(device)
    moved = Samples(samples.starts.requires_grad_(), samples.ends.requires_grad_(), samples.ray_indices)
    colour = composite_rays_train(sigmas, rgbs, moved, len(COUNTS))[1]
    assert all(g.any() for g in torch.autograd.grad(colour.sum(), [moved.starts, moved.ends]))


@pytest.mark.parametrize("compiled", [True, False])
def test_rendering_in_rounds_is_rendering_at_once(device, by_torch, compiled):
    samples, sigmas, rgbs = _packed(device)
    weights, colour, accumulation, depth = composite_rays_train(sigmas, rgbs, samples, len(COUNTS))
    rendered = Rendered.nothing(len(COUNTS), 3, sigmas)
    rank = torch.cat([torch.arange(c) for c in COUNTS]).to(device)
    for begin in range(0, 90, 4):
        part = ((rank >= begin) & (rank < begin + 4)).nonzero().squeeze(1)
        arguments = (sigmas[part], rgbs[part], samples.select(part), rendered)
        some = composite_rays(*arguments) if compiled else by_torch(composite_rays, *arguments)
        assert torch.allclose(some, weights[part], atol=1e-6)
    for a, b in zip(rendered[1:], (colour, accumulation, depth), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_what_the_library_does_not_take_goes_to_pytorch(device, unchecked_shapes):
    """Other integers, and lengths that do not fit: right, or an error, never what lies behind the memory."""
    samples, sigmas, rgbs = _packed(device)
    expected = composite_rays_train(sigmas, rgbs, samples, len(COUNTS))
    with pytest.raises((RuntimeError, IndexError)):
        composite_rays_train(sigmas[:-3], rgbs, samples, len(COUNTS))
    with pytest.raises((RuntimeError, IndexError)):
        visibility(sigmas[:-3], samples, torch.zeros(len(COUNTS), device=device), 0.1)
    small = Samples(samples.starts, samples.ends, samples.ray_indices.int())
    found = composite_rays_train(sigmas, rgbs, small, len(COUNTS))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    scene = _scene(17, 0.05, 40, 4, device)
    alive = torch.arange(40, device=device)
    ours, wide = (torch.zeros(40, dtype=kind, device=device) for kind in (torch.float32, torch.float64))
    expected = march_rays(alive, ours, *scene, 0.02, 1000)
    found = march_rays(alive, wide, *scene, 0.02, 1000)
    assert torch.equal(found.starts, expected.starts)
    assert torch.equal(wide.float(), ours)
    with pytest.raises(ValueError, match=r"following is torch.int32; it must be float32"):
        march_rays(alive, torch.zeros(40, dtype=torch.int32, device=device), *scene, 0.02, 10)


def test_voxels_that_do_not_exist_are_refused():
    with pytest.raises(IndexError):
        update_density_grid(torch.zeros(2, 2, 2), torch.tensor([1, 8]), torch.ones(2), 0.9)


def test_light_reaches_what_lies_before_the_limit(device, by_torch):
    samples, sigmas, _ = _packed(device)
    ours, theirs = (torch.linspace(0, 2, len(COUNTS), device=device) for _ in range(2))
    got = visibility(sigmas, samples, ours, 0.02)
    assert torch.equal(got, by_torch(visibility, sigmas, samples, theirs, 0.02))
    assert torch.allclose(ours, theirs, rtol=1e-5)
    assert 0 < int(got.sum()) < len(got)


@pytest.mark.parametrize("compiled", [True, False])
def test_rays_are_rendered_as_all_their_samples_would_be(device, by_torch, compiled):
    torch.manual_seed(0)
    field = SineRadianceField(torch.zeros(3), 1.0, (24, 24), (16,), 8, hidden_omega=5.0).to(device)
    with torch.no_grad():
        field.density_net.layers[-1].bias[0] += 2.0
        field.density_net.layers[-1].weight[0] *= 8.0
    scene = _scene(12, 0.4, 150, 6, device)
    arguments = (field, *scene, 0.01, 1e-4)
    rendered, normals = render_rays(*arguments) if compiled else by_torch(render_rays, *arguments)
    origins, directions, *_ = scene
    samples = march_rays_train(*scene, 0.01)
    with torch.no_grad():
        sigmas, features = field.features(places(samples, origins, directions)[0])
        rgbs = field.colour(directions[samples.ray_indices], features)
        _, colour, accumulation, depth = compositing.reference(sigmas, rgbs, samples, len(origins))
    assert torch.allclose(rendered.colour, colour, atol=2e-4)
    assert torch.allclose(rendered.accumulation, accumulation, atol=2e-4)
    assert torch.allclose(rendered.depth, depth, atol=1e-3)
    assert 0.2 < float((accumulation > 0.999).float().mean()) < 1
    lengths = normals.norm(dim=-1)
    assert torch.allclose(lengths[accumulation > 0.9], torch.ones(1, device=device), atol=1e-4)
    assert not lengths[accumulation == 0].any()


def test_nerfacc_is_refused_where_it_cannot_march():
    with pytest.raises(ValueError, match="CUDA only"):
        ray_marching.march_rays_train_by_nerfacc(*_scene(8, 0.5, 3, 0, "cpu"), 0.1)


@pytest.mark.parametrize("library", cuda.LIBRARIES, ids=lambda library: library.name)
def test_cuda_sources_compile(library):
    try:
        cuda.nvcc()
    except BuildError as error:
        pytest.skip(str(error))
    assert library.compile((9, 0)).stat().st_size > 10_000


def test_without_nvcc_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    library = cuda.CudaLibrary("ray_marching")
    with pytest.warns(UserWarning, match="no CUDA compiler: CUDA_HOME is"):
        made = library.build((9, 0))
    assert made.handle is None
    assert library.build((9, 0)) is made
