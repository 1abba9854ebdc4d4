"""Which kernels a CUDA step of a sine network consists of and what each takes, beside the machine's own ceilings.

    python scripts/profile_cuda.py [--widths 256 512] [--rows 65536] [--precisions medium high] [--loss image]

The step is a loss, gradients and Adam as one CUDA graph, as `ns-train --pipeline.model.cuda-graph True` makes it: mean
squared error of an image, that of a surface's distances and gradients, or a flow's residual.
Ceilings: a large copy's bytes read and written, products of large float16 and TF32 matrices.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from aire_nerfstudio.fields.differential import gradient_and_motion, value_and_gradient
from aire_nerfstudio.fields.sine_layers import Activation
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.losses import SurfaceWeights, flow_residual, surface_loss
from aire_nerfstudio.ops.graphed import GraphedStep

STEPS = 5


def main() -> None:
    """Profile, print a table for each size and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512], help="of three sine layers")
    parser.add_argument("--rows", type=int, default=65_536)
    parser.add_argument("--precisions", nargs="+", default=["medium", "high"], choices=["highest", "high", "medium"])
    parser.add_argument("--loss", default="image", choices=["image", "surface", "flow"])
    parser.add_argument("--activation", default="siren", choices=["siren", "finer", "spder"])
    parser.add_argument("--kernels", type=int, default=14, help="lines a table")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    print(torch.cuda.get_device_name(), "| torch", torch.__version__)
    _ceilings()
    for precision in given.precisions:
        torch.set_float32_matmul_precision(precision)
        for width in given.widths:
            _profile(width, given.rows, precision, given.activation, given.loss, given.kernels)


def _ceilings() -> None:
    source, target = torch.randn(1 << 28, device="cuda"), torch.empty(1 << 28, device="cuda")
    print(f"copy: {2 * source.nbytes / _seconds(lambda: target.copy_(source)) / 1e12:.2f} TB/s")
    for name, dtype, precision in (
        ("float16", torch.float16, "highest"),
        ("TF32", torch.float32, "high"),
        ("float32", torch.float32, "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
        print(f"product of 8192^3, {name}: {2 * 8192**3 / _seconds(lambda a=a, b=b: a @ b) / 1e12:.0f} TFLOP/s")


def _seconds(call: Callable[[], object], repeats: int = 7) -> float:
    times = []
    for _ in range(repeats + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times[2:])


def _step_of(
    kind: str, width: int, rows: int, activation: Activation
) -> tuple[SineMLP, list[Tensor], Callable[..., Tensor]]:
    """A network, a batch and the loss of both."""

    def points(inputs: int) -> Tensor:
        return 2 * torch.rand(rows, inputs, device="cuda") - 1

    def network(inputs: int, outputs: int) -> SineMLP:
        return SineMLP(inputs, [width] * 3, outputs, activation, detach_finer_scale=kind == "image").cuda()

    if kind == "image":
        return network(2, 3), [points(2), torch.rand(rows, 3, device="cuda")], SineMLP.mean_square_step
    if kind == "surface":
        normals = torch.nn.functional.normalize(torch.randn(rows // 2, 3, device="cuda"), dim=-1)
        distances = torch.rand(rows - rows // 2, device="cuda")

        def surface(network: SineMLP, x: Tensor, normals: Tensor, distances: Tensor) -> Tensor:
            terms = surface_loss(*value_and_gradient(network, x), normals, distances, SurfaceWeights())
            return torch.stack(list(terms.values())).sum()

        return network(3, 1), [points(3), normals, distances], surface

    def flow(network: SineMLP, x: Tensor) -> Tensor:
        gradient, moved = gradient_and_motion(network, x)
        # A constant moves nothing: so that Adam has a gradient of the last bias as well.
        nothing = 0 * network.affines()[-1].bias.sum()
        return flow_residual(gradient[:, 3], moved, 1e-3).square().mean() + nothing

    return network(4, 1), [points(4)], flow


def _profile(width: int, rows: int, precision: str, activation: Activation, kind: str, lines: int) -> None:
    torch.manual_seed(0)
    network, batch, error = _step_of(kind, width, rows, activation)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, fused=True)

    def loss(network: SineMLP, _: Tensor | None, *batch: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"error": error(network, *batch)}, {}

    for _ in range(2):  # Adam's moments are there before anything is captured
        optimizer.zero_grad()
        loss(network, None, *batch)[0]["error"].backward()
        optimizer.step()
    step = GraphedStep(network, loss, optimizer)
    for _ in range(4):
        step(*batch)
    whole = _seconds(lambda: [step(*batch) for _ in range(STEPS)]) / STEPS
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(STEPS):
            step(*batch)
        torch.cuda.synchronize()
    head = f"{kind}, {activation} [{width}]^3, {rows:,} points, {precision}: {1e6 * whole:.0f} us a step"
    print_kernels(head, kernels_of(found), STEPS, lines)


def kernels_of(found: profile) -> list[FunctionEvent]:
    """What ran on the device."""
    return [event for event in found.events() if event.device_type == DeviceType.CUDA]


def print_kernels(head: str, kernels: Sequence[FunctionEvent], steps: int, lines: int) -> None:
    """A table of kernels that ran in so many steps, those that took longest first."""
    times, counts = defaultdict(float), defaultdict(int)
    for event in kernels:
        times[event.name] += event.device_time / steps
        counts[event.name] += 1
    print(f"\n{head}, {sum(times.values()):.0f} us in {len(kernels) / steps:g} kernels")
    for name in sorted(times, key=times.__getitem__, reverse=True)[:lines]:
        print(f"{times[name]:8.1f} us {counts[name] / steps:6g} x  {name[:100]}", flush=True)


if __name__ == "__main__":
    main()
