"""Surfaces: closed-form derivatives against autograd, the pool of distances against distances a step, meshing at 512^3.

``python scripts/bench_surface.py [WIDTH] [POINTS]``: ratios within one run, medians of alternating repetitions; on the
GPU where there is one.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from aire_nerfstudio.analysis.iso_surface import extract_mesh
from aire_nerfstudio.data.demo_scene import bunny_path
from aire_nerfstudio.data.distances import SignedDistance
from aire_nerfstudio.data.surface import read_surface
from aire_nerfstudio.fields.differential import gradient_and_motion, motion, value_and_gradient, value_gradient_hessian
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.losses import eikonal, flow_residual
from aire_nerfstudio.ops.host_memory import keep_freed_memory

REPEATS = 7
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Let a GPU finish what it was given."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def compare(title: str, ways: dict[str, Callable[[], object]]) -> None:
    """Time each way in turn, several times over, and print the medians and their ratio to the first."""
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            wait()
            begin = time.perf_counter()
            way()
            wait()
            times[name].append(1e3 * (time.perf_counter() - begin))
    medians = {name: statistics.median(t) for name, t in times.items()}
    base = next(iter(medians.values()))
    parts = [
        f"{name} {m:.1f} ms ({min(times[name]):.1f} to {max(times[name]):.1f}), {m / base:.2f}"
        for name, m in medians.items()
    ]
    print(f"{title}: " + "; ".join(parts), flush=True)


def by_autograd(network: SineMLP, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and gradient through autograd alone; the graph stays."""
    x.requires_grad_()
    f = network(x).squeeze(-1)
    return f, torch.autograd.grad(f.sum(), x, create_graph=True)[0]


def motion_by_autograd(network: SineMLP, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient and motion of the level sets through autograd alone."""
    _, gradient = by_autograd(network, x)
    rows = [torch.autograd.grad(gradient[:, i].sum(), x, create_graph=True)[0][:, :3] for i in range(3)]
    return gradient, motion(gradient[:, :3], torch.stack(rows, 1))


def main() -> None:
    """Run all of it."""
    width, points = (int(a) for a in (*sys.argv[1:], *("256", "8192")[len(sys.argv) - 1 :]))
    keep_freed_memory()
    print(f"[{width}]*3, {points:,} points, {torch.get_num_threads()} threads, {DEVICE}, torch {torch.__version__}")
    torch.manual_seed(0)
    network, flow = SineMLP(3, [width] * 3, 1).to(DEVICE), SineMLP(4, [width] * 3, 1).to(DEVICE)
    x, y = (2 * torch.rand(points, d, device=DEVICE) - 1 for d in (3, 4))

    def distance_step(terms: Callable[..., tuple[torch.Tensor, ...]]) -> None:
        f, gradient = terms(network, x)
        (f.square().mean() + eikonal(gradient).mean()).backward()

    def flow_step(terms: Callable[..., tuple[torch.Tensor, ...]]) -> None:
        gradient, moved = terms(flow, y)
        flow_residual(gradient[:, 3], moved, 1e-3).square().mean().backward()

    def by_hessian(net: SineMLP, at: torch.Tensor) -> tuple[torch.Tensor, ...]:
        _, gradient, hessian = value_gradient_hessian(net, at, (0, 1, 2))
        return gradient, motion(gradient[:, :3], hessian)

    compare(
        "value and gradient, loss and backward",
        {"autograd": lambda: distance_step(by_autograd), "closed form": lambda: distance_step(value_and_gradient)},
    )
    compare(
        "mean curvature flow, loss and backward",
        {
            "autograd": lambda: flow_step(motion_by_autograd),
            "whole Hessian carried": lambda: flow_step(by_hessian),
            "closed form": lambda: flow_step(gradient_and_motion),
        },
    )
    surface = read_surface(bunny_path())
    distance = SignedDistance(surface.vertices, surface.faces)
    rng = np.random.default_rng(0)

    def with_distances() -> None:
        distance(rng.uniform(-1, 1, (points // 2, 3)))
        distance_step(value_and_gradient)

    compare(
        "SDF step, half of its points off the surface",
        {"distances from the pool": lambda: distance_step(value_and_gradient), "computed in the step": with_distances},
    )
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
