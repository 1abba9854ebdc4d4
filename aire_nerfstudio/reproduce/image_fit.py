"""One fit of one picture, without nerfstudio around it: what the image tables are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.aire_plan import removal_count
from aire_nerfstudio.adaptation.base import Probe, Report
from aire_nerfstudio.adaptation.budget import count_parameters
from aire_nerfstudio.adaptation.variants import LATTICE_LIMITS, Variant, make_strategy, starting_widths
from aire_nerfstudio.data.picture import Picture, half_extent, read_picture
from aire_nerfstudio.data.pixels import PixelBatches, split_pixels
from aire_nerfstudio.fields.sine_layers import Activation
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops.host_memory import keep_freed_memory
from aire_nerfstudio.reproduce.evaluate import decibel, inference_time, score_pixels, structural_similarity
from aire_nerfstudio.reproduce.fit import Fit, Progress, settings_key
from aire_nerfstudio.reproduce.record import Recorder
from aire_nerfstudio.reproduce.training import Watcher, train

if TYPE_CHECKING:
    from aire_nerfstudio.reproduce.store import Store

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

    @property
    def source(self) -> str:
        """The picture."""
        return self.image

    @property
    def label(self) -> str:
        """Picture, variant, activation and seed."""
        return f"{self.image} {self.variant} {self.activation} seed {self.seed}"

    def key(self) -> str:
        """A name that is the same for the same settings and no others."""
        return settings_key(self)

    def cost(self) -> float:
        """Epochs, pixels and weights."""
        return self.epochs * (self.side or self.crop or 512) ** 2 * count_parameters(2, self.widths, 3)

    def needs(self) -> tuple[Fit, ...]:
        """Nothing."""
        return ()

    def check(self, folder: Path) -> None:
        """Read the picture."""
        read_picture(folder / self.image)

    def run(
        self, folder: Path, device: str, store: Store, progress: Progress | None, is_recorded: bool
    ) -> dict[str, Any]:
        """Train; see :func:`fit_image` for the figures."""
        if device == "cpu":
            keep_freed_memory()
        picture = load_picture(self, folder)
        recorder = Recorder(picture, device) if is_recorded else None
        done = fit_image(self, picture, device, progress, recorder, store.cuda_graph)
        if recorder is not None:
            recorder.save(store.record_path(self))
        return done.figures


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
    recorder: Recorder | None = None, cuda_graph: bool = False,
) -> FittedImage:  # fmt: skip
    """Train one network on one picture.

    Args:
        fit: what to do.
        picture: what :func:`load_picture` gave.
        device: where to train.
        progress: called with (step, steps) now and then.
        recorder: keeps what figures need.
        cuda_graph: each step is a CUDA graph.

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
    strategy = make_strategy(fit.variant, fit.adaptation, fit.widths, 2, picture.channels, limit, fit.omega)
    half = torch.tensor(half_extent(picture.height, picture.width), device=device)

    def probe(step: int) -> Probe:
        def outputs() -> list[Tensor]:
            return network.layer_outputs((2 * torch.rand(PROBE_PIXELS, 2, device=device) - 1) * half)

        @torch.no_grad()
        def residual() -> tuple[Tensor, Tensor]:
            points, values = batches.batch(step)
            return points, values - 0.5 * (network(points) + 1)

        return Probe(outputs, residual)

    def score() -> float:
        return score_pixels(network, picture, test_pixels, device)

    watcher = _ImageWatcher(fit, network, score, recorder)
    state, figures = train(
        network, strategy, batches.steps_per_epoch, fit.epochs * batches.steps_per_epoch, fit.learning_rate,
        fit.final_ratio, batches.batch, _error, 0.25, probe, lambda value: decibel(value / 4), device, watcher,
        progress, cuda_graph,
    )  # fmt: skip
    if recorder is not None:
        recorder.end(network)
    kept = strategy.parameters_kept(network.neuron_groups(), state)
    figures |= watcher.figures | {
        "psnr_test": score(),
        "psnr_train": score_pixels(network, picture, train_pixels, device),
        "ssim": structural_similarity(network, picture, device),  # NaN of a picture too small for it
        "parameters_start": initial_parameters,
        "parameters": kept,
        "reduction": round(100 * (1 - kept / count_parameters(2, fit.widths, picture.channels)), 2),
        "inference_ms": inference_time(network, picture, device),
        "widths": network.widths,
    }
    return FittedImage(figures, network, picture)


def _error(network: SineMLP, points: Tensor, values: Tensor) -> dict[str, Tensor]:
    """Mean squared error of a batch with values in [0, 1], which the network gives in [-1, 1]."""
    return {"error": network.mean_square_step(points, 2 * values - 1)}


class _ImageWatcher(Watcher):
    """Scores held-out pixels around the removal, and keeps what figures need."""

    def __init__(self, fit: ImageFit, network: SineMLP, score: Callable[[], float], recorder: Recorder | None) -> None:
        self._fit, self._network, self._score, self._recorder = fit, network, score, recorder
        self.figures: dict[str, Any] = {}

    def before(self, event: str) -> None:
        if event == "prune":
            self.figures["psnr_test_before_removal"] = self._score()
        if self._recorder is not None:
            self._recorder.before(self._network, event, *first_lost(self._fit, self._network))

    def after(self, reports: Sequence[Report]) -> None:
        if any(report.event == "prune" for report in reports):
            self.figures["psnr_test_after_removal"] = self._score()
        if self._recorder is not None:
            self._recorder.after(self._network, reports)


def first_lost(fit: ImageFit, network: SineMLP) -> tuple[int, int]:
    """The first sine layer that loses neurons in the removal ahead, and how many, as far as the schedule tells."""
    config = fit.adaptation
    if config.has_target or config.decay_start is None or not config.prune_layers:
        return 0, 0
    layer = min(config.prune_layers)
    return layer, removal_count(config, config.prune_layers.index(layer), network.widths[layer])
