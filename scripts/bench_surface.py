"""Surfaces: the pool of distances against distances a step, and meshing at 512^3; steps alone are in ``aire-bench``.

``python scripts/bench_surface.py [WIDTH] [POINTS]``: ratios within one run, medians of alternating repetitions; on the
GPU where there is one.
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np
import torch

from aire_nerfstudio.analysis.iso_surface import extract_mesh
from aire_nerfstudio.bench.timing import time_in_turn
from aire_nerfstudio.data.demo_scene import bunny_path
from aire_nerfstudio.data.distances import SignedDistance
from aire_nerfstudio.data.surface import read_surface
from aire_nerfstudio.fields.differential import value_and_gradient
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.losses import eikonal
from aire_nerfstudio.ops.host_memory import keep_freed_memory

REPEATS = 7
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    """Run all of it."""
    width, points = (int(a) for a in (*sys.argv[1:], *("256", "8192")[len(sys.argv) - 1 :]))
    keep_freed_memory()
    print(f"[{width}]*3, {points:,} points, {torch.get_num_threads()} threads, {DEVICE}, torch {torch.__version__}")
    torch.manual_seed(0)
    network = SineMLP(3, [width] * 3, 1).to(DEVICE)
    x = 2 * torch.rand(points, 3, device=DEVICE) - 1

    def from_the_pool() -> None:
        f, gradient = value_and_gradient(network, x)
        (f.square().mean() + eikonal(gradient).mean()).backward()

    surface = read_surface(bunny_path())
    distance = SignedDistance(surface.vertices, surface.faces)
    rng = np.random.default_rng(0)

    def with_distances() -> None:
        distance(rng.uniform(-1, 1, (points // 2, 3)))
        from_the_pool()

    times, failures = time_in_turn(
        {"distances from the pool": from_the_pool, "computed in the step": with_distances}, REPEATS, DEVICE
    )
    for name, reason in failures.items():
        raise SystemExit(f"error: {name}: {reason}")
    first = next(iter(times.values())).median
    for name, timed in times.items():
        low, high = timed.span
        print(f"SDF step, {name}: {timed.median:.1f} ms ({low:.1f} to {high:.1f}), {timed.median / first:.2f}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    truth = SineMLP(3, [width] * 3, 1).to(DEVICE)
    fit_sphere(truth)
    begin = time.perf_counter()
    vertices, faces = extract_mesh(lambda p: truth(p).squeeze(-1), 512, DEVICE)
    seconds, peak = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"512^3 mesh of a fitted sphere: {seconds:.1f} s, {len(vertices):,} vertices, {len(faces):,} faces, peak "
        f"{peak:.2f} GiB of the process ({before:.2f} before)"
    )


def fit_sphere(network: SineMLP, steps: int = 300) -> None:
    """Teach a network the distance from a sphere, well enough for a mesh."""
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)
    for _ in range(steps):
        x = 2 * torch.rand(2048, 3, device=DEVICE) - 1
        optimizer.zero_grad()
        (network(x).squeeze(-1) - (x.norm(dim=-1) - 0.7)).square().mean().backward()
        optimizer.step()


if __name__ == "__main__":
    main()
