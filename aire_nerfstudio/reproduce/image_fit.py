"""One fit of one picture, without nerfstudio around it: what the tables are made of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aire_nerfstudio.adaptation.aire import AireState
from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.base import Probe, widths
from aire_nerfstudio.adaptation.budget import count_parameters
from aire_nerfstudio.adaptation.rigl import RigLStrategy
from aire_nerfstudio.adaptation.rounds import RoundsState
from aire_nerfstudio.adaptation.variants import LATTICE_LIMITS, Variant, final_widths, make_strategy, starting_widths
from aire_nerfstudio.data.picture import Picture, half_extent, read_picture
from aire_nerfstudio.data.pixels import PixelBatches, split_pixels
from aire_nerfstudio.fields.sine_layers import Activation
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.reproduce.evaluate import (
    decibel,
    inference_time,
    score_pixels,
    structural_similarity,
    wait_for,
)
from aire_nerfstudio.reproduce.record import Recorder

Progress = Callable[[int, int], None]
CURVE_POINTS = 100
PROBE_PIXELS = 8192


@dataclass(frozen=True)
class ImageFit:
    """Everything that decides the outcome of a fit on a given machine."""

    image: str
    """Name of the picture file, without its folder."""
    side: int | None = None
    """Longer side in pixels to reduce the picture to, by area averaging; None: as it is."""
    crop: int | None = None
    """Side of the square that is cut out of the middle, in pixels, before any reduction; None: the whole picture."""
    activation: Activation = "siren"
    """Sine variant."""
    widths: tuple[int, ...] = (512, 512, 512)
    """Widths of the large network."""
    epochs: int = 5000
    """Passes over the training pixels."""
    batch: int = 65_536
    """Pixels a step."""
    learning_rate: float = 5e-4
    """Adam's, at the beginning."""
    final_ratio: float = 0.1
    """Learning rate at the end over that at the beginning; the decay between is exponential."""
    omega: float = 30.0
    """w0 of all layers."""
    seed: int = 0
    """Of initialisation and order; the split of the pixels is always the same."""
    variant: Variant = "aire"
    """Who decides about the network's size."""
    adaptation: AireConfig = field(default_factory=AireConfig)
    """AIRe's schedule, from which the other variants take their final size."""

    def key(self) -> str:
        """A name that is the same for the same settings and no others, 16 hexadecimal digits."""

        def given(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            # A switch that is added later, and off, leaves old keys as they are.
            return {name: value for name, value in pairs if value is not None}

        settings = dataclasses.asdict(self, dict_factory=given)
        text = json.dumps(settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def reduce_picture(picture: Picture, side: int) -> Picture:
    """The picture with its longer side reduced to ``side`` by area averaging, float32; unchanged where not longer."""
    longer = max(picture.height, picture.width)
    if side >= longer:
        return picture
    size = (max(1, round(picture.height * side / longer)), max(1, round(picture.width * side / longer)))
    small = torch.nn.functional.adaptive_avg_pool2d(picture.floats().permute(2, 0, 1), size)
    return Picture(small.permute(1, 2, 0).contiguous(), 1.0)


def crop_picture(picture: Picture, side: int) -> Picture:
    """The middle of the picture, at most ``side`` pixels high and wide, values as stored."""
    height, width = min(side, picture.height), min(side, picture.width)
    top, left = (picture.height - height) // 2, (picture.width - width) // 2
    return Picture(picture.values[top : top + height, left : left + width].contiguous(), picture.peak)


@dataclass
class FittedImage:
    """A finished fit: its figures as JSON, and the network."""

    figures: dict[str, Any]
    network: SineMLP
    picture: Picture


def load_picture(fit: ImageFit, folder: Path) -> Picture:
    """The picture that a fit is of, cropped and reduced if so asked."""
    picture = read_picture(folder / fit.image)
    if fit.crop is not None:
        picture = crop_picture(picture, fit.crop)
    return picture if fit.side is None else reduce_picture(picture, fit.side)


def fit_image(
    fit: ImageFit, picture: Picture, device: str = "cpu", progress: Progress | None = None,
    recorder: Recorder | None = None,
) -> FittedImage:  # fmt: skip
    """Train one network on one picture.

    Args:
        fit: what to do.
        picture: what :func:`load_picture` gave.
        device: where to train.
        progress: called with (step, steps) now and then.
        recorder: keeps what figures need.

    Returns:
        ``figures``: ``psnr_test``, ``psnr_train`` and ``ssim`` at the end; ``psnr_test_before_removal`` and
        ``..._after_removal`` around the pruning (same weights but for the removed neurons); ``parameters`` at the
        beginning and end; ``widths``; ``seconds`` of training; ``curve``: (step, training PSNR of a batch);
        ``events``.
    """
    train_pixels, test_pixels = split_pixels(picture.height * picture.width, 0.1, 0)
    batches = PixelBatches(picture, train_pixels, fit.batch, fit.seed, device)
    torch.manual_seed(fit.seed)
    limit = LATTICE_LIMITS[2]
    start = starting_widths(fit.variant, fit.adaptation, fit.widths, 2, limit)
    network = SineMLP(2, start, picture.channels, fit.activation, fit.omega, fit.omega, detach_finer_scale=True)
    network.to(device)
    initial_parameters = network.num_parameters
    total = fit.epochs * batches.steps_per_epoch
    optimizer = torch.optim.Adam(network.parameters(), lr=fit.learning_rate, fused=device.startswith("cuda") or None)
    strategy = make_strategy(fit.variant, fit.adaptation, fit.widths, 2, picture.channels, limit, fit.omega)
    state = strategy.init_state(network.neuron_groups(), batches.steps_per_epoch, total)

    half = torch.tensor(half_extent(picture.height, picture.width), device=device)

    def outputs() -> list[Tensor]:
        return network.layer_outputs((2 * torch.rand(PROBE_PIXELS, 2, device=device) - 1) * half)

    @torch.no_grad()
    def residual() -> tuple[Tensor, Tensor]:
        points, values = batches.batch(step)
        return points, values - 0.5 * (network(points) + 1)

    probe = Probe(outputs, residual)
    figures: dict[str, Any] = {"events": [], "curve": []}
    # Rounds have many of both.
    is_once = isinstance(state, AireState) and not isinstance(state, RoundsState)
    removal, choosing = (state.schedule.prune_at, state.schedule.decay_start) if is_once else (None, None)
    every = max(1, total // CURVE_POINTS)
    seconds, begin = 0.0, time.perf_counter()
    for step in range(total):
        groups = network.neuron_groups()
        if step in (removal, choosing):
            wait_for(device)
            seconds += time.perf_counter() - begin
            if step == removal:
                figures["psnr_test_before_removal"] = score_pixels(network, picture, test_pixels, device)
            if recorder is not None:
                event = "prune" if step == removal else "decay"
                recorder.before(network, event, network.widths[0] - small_input(fit, network))
            begin = time.perf_counter()
        reports = strategy.step(groups, [optimizer], state, step, (), probe)
        for report in reports:
            figures["events"].append([report.step, report.event, list(report.after)])
            if report.event == "prune":
                wait_for(device)
                seconds += time.perf_counter() - begin
                figures["psnr_test_after_removal"] = score_pixels(network, picture, test_pixels, device)
                begin = time.perf_counter()
        if recorder is not None and reports:
            recorder.after(network, reports)
        for group in optimizer.param_groups:
            group["lr"] = fit.learning_rate * fit.final_ratio ** (step / total)
        points, values = batches.batch(step)
        optimizer.zero_grad()
        data_loss = (network(points) - (2 * values - 1)).square().mean()
        (data_loss + strategy.penalty(groups, state, step)).backward()
        optimizer.step()
        strategy.constrain(groups, [optimizer], state, step, data_loss.detach() / 4)
        if step % every == 0 or step == total - 1:
            figures["curve"].append([step, round(decibel(float(data_loss.detach()) / 4), 4)])
            if progress is not None:
                progress(step + 1, total)
    wait_for(device)
    seconds += time.perf_counter() - begin
    if recorder is not None:
        recorder.end(network)
    kept = network.num_parameters
    if isinstance(strategy, RigLStrategy):
        kept = strategy.parameters_kept(state, network.neuron_groups())
    figures |= {
        "psnr_test": score_pixels(network, picture, test_pixels, device),
        "psnr_train": score_pixels(network, picture, train_pixels, device),
        "ssim": structural_similarity(network, picture, device),  # NaN of a picture too small for it
        "parameters_start": initial_parameters,
        "parameters": kept,
        "reduction": round(100 * (1 - kept / count_parameters(2, fit.widths, picture.channels)), 2),
        "inference_ms": inference_time(network, picture, device),
        "widths": list(widths(network.neuron_groups())),
        "steps": total,
        "steps_per_epoch": batches.steps_per_epoch,
        "seconds": round(seconds, 3),
    }
    return FittedImage(figures, network, picture)


def small_input(fit: ImageFit, network: SineMLP) -> int:
    """Width of the input layer after the removal that is ahead, as far as the schedule tells."""
    if fit.adaptation.has_target:
        return network.widths[0]
    return min(final_widths(fit.adaptation, fit.widths)[0], network.widths[0])
