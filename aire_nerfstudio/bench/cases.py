"""What is timed: steps and evaluations of sine networks, each in several ways, the baseline first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aire_nerfstudio.fields.differential import gradient_and_motion, gradient_and_motion_by_torch, motion
from aire_nerfstudio.fields.sine_layers import Activation
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.losses import SurfaceWeights, flow_residual, surface_loss
from aire_nerfstudio.ops import sine_network
from aire_nerfstudio.ops import value_gradient as derivative

Way = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: ``training step``, ``inference``, ``surface step`` or ``flow step``.
        width: of the three sine layers.
        rows: points.
        ways: by name, the baseline first.
        flop: floating-point operations of its matrix products, 0 where not counted.
    """

    name: str
    width: int
    rows: int
    ways: dict[str, Way]
    flop: float = 0.0


def at_precision(way: Way, precision: str) -> Way:
    """``way`` with ``torch.set_float32_matmul_precision(precision)`` in force."""

    def run() -> None:
        torch.set_float32_matmul_precision(precision)
        try:
            way()
        finally:
            torch.set_float32_matmul_precision("highest")

    return run


def with_precisions(case: Case, precisions: list[str]) -> Case:
    """The case with eager PyTorch and ours, whatever it is called, once more at each of the lower precisions."""
    ways = dict(case.ways)
    baseline = next(iter(ways))
    for precision in precisions:
        for name, way in case.ways.items():
            if name == baseline or name.startswith("ours"):
                ways[f"{name}, {precision}"] = at_precision(way, precision)
    return replace(case, ways=ways)


def image_cases(width: int, rows: int, activation: Activation, device: str, with_compile: bool) -> list[Case]:
    """A step on the mean squared error of three channels in the plane, without the optimizer, and an evaluation."""
    network = SineMLP(2, [width] * 3, 3, activation, detach_finer_scale=True).to(device)
    x = 2 * torch.rand(rows, 2, device=device) - 1
    target = torch.rand(rows, 3, device=device)

    def eager(points: Tensor) -> Tensor:
        return sine_network.reference(points, *network.for_ops())

    def step(evaluate: Callable[[Tensor], Tensor]) -> Way:
        def run() -> None:
            network.zero_grad()
            (evaluate(x) - target).square().mean().backward()

        return run

    def one_pass() -> None:
        network.zero_grad()
        network.mean_square_step(x, target).backward()

    def without_gradient(evaluate: Callable[[Tensor], Tensor]) -> Way:
        def run() -> None:
            with torch.no_grad():
                evaluate(x)

        return run

    training = {"eager": step(eager)}
    inference = {"eager": without_gradient(eager)}
    if with_compile:
        compiled = torch.compile(eager, dynamic=False)
        training["torch.compile"] = step(compiled)
        inference["torch.compile"] = without_gradient(torch.compile(eager, dynamic=False))
    training |= {"ours": step(network), "ours, one pass": one_pass}
    inference["ours"] = without_gradient(network)
    products = 2 * rows * (2 * width + 2 * width**2 + 3 * width)
    return [
        Case("training step", width, rows, training, 3 * products - 4 * rows * width),
        Case("inference", width, rows, inference, products),
    ]


def by_autograd(network: SineMLP, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points that ask for gradients, value and gradient through autograd alone; the graph stays."""
    points = x.clone().requires_grad_()
    f = sine_network.reference(points, *network.for_ops()).squeeze(-1)
    return points, f, torch.autograd.grad(f.sum(), points, create_graph=True)[0]


def surface_case(width: int, rows: int, device: str) -> Case:
    """A step on the loss of a distance, half of the points on the surface."""
    network = SineMLP(3, [width] * 3, 1).to(device)
    x, normals = (2 * torch.rand(n, 3, device=device) - 1 for n in (rows, rows // 2))
    normals, distances = torch.nn.functional.normalize(normals, dim=-1), torch.rand(rows - rows // 2, device=device)

    def step(terms: Callable[[], tuple[Tensor, Tensor]]) -> Way:
        def run() -> None:
            network.zero_grad()
            parts = surface_loss(*terms(), normals, distances, SurfaceWeights())
            torch.stack(list(parts.values())).sum().backward()

        return run

    arguments = network.for_ops()[:4]
    ways = {
        "double backward": step(lambda: by_autograd(network, x)[1:]),
        "closed form": step(lambda: derivative.reference(x, *arguments)),
        "ours": step(lambda: derivative.value_and_gradient(x, *arguments)),
    }
    return Case("surface step", width, rows, ways)


def flow_case(width: int, rows: int, device: str) -> Case:
    """A step on the residual of mean curvature flow."""
    network = SineMLP(4, [width] * 3, 1).to(device)
    x = 2 * torch.rand(rows, 4, device=device) - 1

    def autograd() -> tuple[Tensor, Tensor]:
        points, _, gradient = by_autograd(network, x)
        lines = [torch.autograd.grad(gradient[:, i].sum(), points, create_graph=True)[0][:, :3] for i in range(3)]
        return gradient, motion(gradient[:, :3], torch.stack(lines, 1))

    def step(terms: Callable[[], tuple[Tensor, Tensor]]) -> Way:
        def run() -> None:
            network.zero_grad()
            gradient, moved = terms()
            flow_residual(gradient[:, 3], moved, 1e-3).square().mean().backward()

        return run

    ways = {
        "autograd": step(autograd),
        "closed form": step(lambda: gradient_and_motion_by_torch(network, x)),
        "ours": step(lambda: gradient_and_motion(network, x)),
    }
    return Case("flow step", width, rows, ways)
