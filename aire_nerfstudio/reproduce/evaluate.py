"""What a fitted network is worth: PSNR, SSIM, its picture, and the time to evaluate it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from aire_nerfstudio.data.picture import SMALLEST_FOR_SSIM, Picture, pixel_centres
from aire_nerfstudio.data.pixels import PixelBatches
from aire_nerfstudio.fields.sine_mlp import SineMLP

# Pixels evaluated at once.
CHUNK = 1 << 16


def decibel(mean_square: float) -> float:
    """PSNR in dB of a mean squared error of values in [0, 1]."""
    return math.inf if mean_square == 0 else -10 * math.log10(mean_square)


def to_values(outputs: Tensor) -> Tensor:
    """A network's outputs, in [-1, 1] where the fit is good, as picture values clamped to [0, 1]; any shape."""
    return (0.5 * (outputs + 1)).clamp(0, 1)


def whole_picture(picture: Picture, device: str, evaluate: Callable[[Tensor], Tensor]) -> Tensor:
    """What ``evaluate`` (coordinates ``[N, 2]`` to outputs ``[N, C]``) makes of all pixels.

    Returns:
        ``[H, W, C]`` in [0, 1], on the CPU.
    """
    parts = [to_values(evaluate(points)).cpu() for points in _all_points(picture, device)]
    return torch.cat(parts).view(picture.height, picture.width, -1)


@torch.no_grad()
def reconstruction(network: SineMLP, picture: Picture, device: str) -> Tensor:
    """The network's picture at the training resolution, ``[H, W, C]`` in [0, 1], on the CPU."""
    return whole_picture(picture, device, network)


@torch.no_grad()
def score_pixels(network: SineMLP, picture: Picture, pixels: Tensor, device: str) -> float:
    """PSNR in dB over some pixels, values clamped to [0, 1]."""
    batches = PixelBatches(picture, pixels, CHUNK, 0, device)
    total = 0.0
    for step in range(batches.steps_per_epoch):
        points, values = batches.batch(step)
        got = to_values(network(points))
        total += float((got - values).square().sum(dtype=torch.float64))
    return decibel(total / (len(pixels) * picture.channels))


def structural_similarity(network: SineMLP, picture: Picture, device: str) -> float:
    """SSIM of the whole picture; NaN where a side has fewer than 6 pixels."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(picture.height, picture.width) < SMALLEST_FOR_SSIM:
        return math.nan
    a, b = (t.permute(2, 0, 1)[None] for t in (reconstruction(network, picture, device), picture.floats()))
    return float(structural_similarity_index_measure(a, b, data_range=1.0))  # type: ignore[arg-type]


@torch.no_grad()
def inference_time(network: SineMLP, picture: Picture, device: str, repeats: int = 9) -> float:
    """Median time in milliseconds to evaluate the whole picture, coordinates ready on the device."""
    chunks = list(_all_points(picture, device))
    times = []
    for _ in range(repeats + 2):
        wait_for(device)
        begin = time.perf_counter()
        for part in chunks:
            network(part)
        wait_for(device)
        times.append(time.perf_counter() - begin)
    return round(1e3 * sorted(times[2:])[repeats // 2], 4)


def wait_for(device: str) -> None:
    """Let a GPU finish what it was given, so that a clock tells the truth."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _all_points(picture: Picture, device: str) -> Iterator[Tensor]:
    for part in torch.arange(picture.height * picture.width).split(CHUNK):
        yield pixel_centres(part, picture.height, picture.width).to(device)
