"""What is timed: steps and evaluations of sine networks, each in several ways, the baseline first."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aire_nerfstudio.fields.differential import gradient_and_motion, motion
from aire_nerfstudio.fields.sine_layers import Activation
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.losses import SurfaceWeights, flow_residual, surface_loss
from aire_nerfstudio.ops import compositing, sine_network, tcnn
from aire_nerfstudio.ops import mean_curvature as curvature
from aire_nerfstudio.ops import ray_marching as marching
from aire_nerfstudio.ops import value_gradient as derivative
from aire_nerfstudio.ops.graphed import GraphedStep
from aire_nerfstudio.ops.occupancy import Occupancy

Way = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: ``training step``, ``inference``, ``surface step``, ``flow step``, ``marching`` or ``compositing``.
        width: of the three sine layers; of marching and compositing the grid's voxels a side.
        rows: points; of marching and compositing rays.
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


def with_precisions(case: Case, precisions: list[str], device: str) -> Case:
    """The case with eager PyTorch and ours, whatever it is called, once more at each of the lower precisions.

    On CUDA ``torch.compile`` as well at ``high``, which is TF32 there.
    """
    ways = dict(case.ways)
    baseline = next(iter(ways))
    for precision in precisions:
        for name, way in case.ways.items():
            is_compiled = name.startswith("torch.compile") and device.startswith("cuda") and precision == "high"
            if name == baseline or name.startswith("ours") or is_compiled:
                ways[f"{name}, {precision}"] = at_precision(way, precision)
    return replace(case, ways=ways)


def graphed(network: SineMLP, loss: Callable[..., dict[str, Tensor]], *tensors: Tensor) -> Way:
    """A step on the sum of a loss's terms as a CUDA graph."""
    step = GraphedStep(network, lambda network, _, *batch: (loss(network, *batch), {}))
    return lambda: step(*tensors)


def image_cases(width: int, rows: int, activation: Activation, device: str, with_compile: bool) -> list[Case]:
    """A step on the mean squared error of three channels in the plane, without the optimizer, and an evaluation."""
    network = SineMLP(2, [width] * 3, 3, activation, detach_finer_scale=True).to(device)
    x = 2 * torch.rand(rows, 2, device=device) - 1
    target = torch.rand(rows, 3, device=device)

    is_cuda = device.startswith("cuda")

    def eager(points: Tensor) -> Tensor:
        return sine_network.reference(points, *network.for_ops())

    def step(evaluate: Callable[[Tensor], Tensor]) -> Way:
        def run() -> None:
            network.zero_grad()
            (evaluate(x) - target).square().mean().backward()

        return run

    def eager_error(points: Tensor) -> Tensor:
        return (eager(points) - target).square().mean()

    def compiled_step(error: Callable[[Tensor], Tensor]) -> Way:
        def run() -> None:
            network.zero_grad()
            error(x).backward()

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
        modes = (
            {"torch.compile": None, "torch.compile, graph": "reduce-overhead"} if is_cuda else {"torch.compile": None}
        )
        for name, mode in modes.items():
            training[name] = compiled_step(torch.compile(eager_error, dynamic=False, mode=mode))
            inference[name] = without_gradient(torch.compile(eager, dynamic=False, mode=mode))
    training |= {"ours": step(network), "ours, one pass": one_pass}
    if is_cuda:

        def loss(network: SineMLP, x: Tensor, target: Tensor) -> dict[str, Tensor]:
            return {"error": network.mean_square_step(x, target)}

        training["ours, graph"] = graphed(network, loss, x, target)
    inference["ours"] = without_gradient(network)
    if tcnn.why_not(torch.device(device)) is None and activation == "siren":
        inference["tinycudann"] = without_gradient(tcnn.TcnnNetwork(*network.for_ops()))
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
    weights = SurfaceWeights()

    def step(terms: Callable[[], tuple[Tensor, Tensor]]) -> Way:
        def run() -> None:
            network.zero_grad()
            parts = surface_loss(*terms(), normals, distances, weights)
            torch.stack(list(parts.values())).sum().backward()

        return run

    arguments = network.for_ops()[:4]
    ways = {
        "double backward": step(lambda: by_autograd(network, x)[1:]),
        "closed form": step(lambda: derivative.reference(x, *arguments)),
        "ours": step(lambda: derivative.value_and_gradient(x, *arguments)),
    }
    if device.startswith("cuda"):

        def loss(network: SineMLP, x: Tensor, normals: Tensor, distances: Tensor) -> dict[str, Tensor]:
            return surface_loss(*derivative.value_and_gradient(x, *network.for_ops()[:4]), normals, distances, weights)

        ways["ours, graph"] = graphed(network, loss, x, normals, distances)
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
        "closed form": step(lambda: curvature.reference(x, *network.for_ops()[:4])),
        "ours": step(lambda: gradient_and_motion(network, x)),
    }
    if device.startswith("cuda"):

        def loss(network: SineMLP, x: Tensor) -> dict[str, Tensor]:
            gradient, moved = gradient_and_motion(network, x)
            return {"flow": flow_residual(gradient[:, 3], moved, 1e-3).square().mean()}

        ways["ours, graph"] = graphed(network, loss, x)
    return Case("flow step", width, rows, ways)


def ray_cases(rays: int, device: str, resolution: int = 128) -> list[Case]:
    """Marching through a ball's shell, and rendering of its samples forward and backward."""
    directions = torch.nn.functional.normalize(torch.randn(rays, 3, device=device), dim=-1)
    origins = 1.2 * (2 * torch.rand(rays, 3, device=device) - 1) - 3 * directions
    middle = (torch.arange(resolution, device=device) + 0.5) * (2 / resolution) - 1
    radius = torch.stack(torch.meshgrid(middle, middle, middle, indexing="ij")).norm(dim=0)
    occupancy = Occupancy((radius - 0.7).abs() < 0.06)
    near, far = marching.near_far_from_aabb(origins, directions, torch.tensor([-1.0] * 3 + [1.0] * 3, device=device))
    scene = (origins, directions, near, far, occupancy, 2 * math.sqrt(3) / 1024)
    jitter = torch.rand(rays, device=device)
    samples = marching.march_rays_train(*scene, jitter)
    sigmas = (20 * torch.rand(len(samples.starts), device=device)).requires_grad_()
    rgbs = torch.rand(len(samples.starts), 3, device=device, requires_grad=True)

    def render(function: Callable[..., tuple[Tensor, ...]]) -> Way:
        def run() -> None:
            sigmas.grad = rgbs.grad = None
            function(sigmas, rgbs, samples, rays)[1].square().mean().backward()

        return run

    march: dict[str, Way] = {
        "PyTorch": lambda: marching.march_by_torch(*scene, jitter),
        "ours": lambda: marching.march_rays_train(*scene, jitter),
    }
    if device.startswith("cuda"):

        def by_nerfacc() -> object:
            return marching.march_rays_train_by_nerfacc(*scene, jitter)

        try:
            by_nerfacc()
            march["nerfacc"] = by_nerfacc
        except Exception as error:  # whatever its build of kernels runs into
            warnings.warn(f"nerfacc is left out: {error}", stacklevel=2)
    composite = {"PyTorch": render(compositing.reference), "ours": render(compositing.composite_rays_train)}
    return [Case("marching", resolution, rays, march), Case("compositing", resolution, rays, composite)]
