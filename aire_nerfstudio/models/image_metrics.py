"""PSNR, SSIM and, where its weights can be had, LPIPS."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable

import psutil
import torch
from torch import Tensor
from torchmetrics.functional import structural_similarity_index_measure

from aire_nerfstudio.data.picture import SMALLEST_FOR_SSIM
from aire_nerfstudio.notices import warn

# AlexNet's last pooling must have something to pool.
SMALLEST_FOR_LPIPS = 31
# Rows and columns of SSIM's window around a pixel.
HALF_WINDOW = 5
PIXELS_AT_ONCE = 1 << 19
# A pixel, measured.
BYTES_OF_LPIPS = 300


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images with values in [0, 1], any shape, ``[]``."""
    return decibel_of((prediction - truth).square().mean())


def decibel_of(error: Tensor) -> Tensor:
    """PSNR in dB of a mean squared error ``[]`` of values in [0, 1], ``[]``."""
    return -10 * torch.log10(error)


@functools.cache
def _lpips() -> Callable[[Tensor, Tensor], Tensor] | None:
    """LPIPS (AlexNet), kept out of every module: its weights do not belong in a checkpoint."""
    timeout = socket.getdefaulttimeout()
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        socket.setdefaulttimeout(10)
        return LearnedPerceptualImagePatchSimilarity(normalize=True).eval()
    except Exception as error:
        warn(
            f"LPIPS is left out: its AlexNet weights cannot be had ({type(error).__name__}). Put "
            "alexnet-owt-7be5be79.pth in $TORCH_HOME/hub/checkpoints to get it."
        )
        return None
    finally:
        socket.setdefaulttimeout(timeout)


def _has_memory_for_lpips(height: int, width: int) -> bool:
    needed, free = height * width * BYTES_OF_LPIPS, psutil.virtual_memory().available
    if needed > free:
        warn(
            f"LPIPS is left out of a picture of {width} x {height}: it takes about {needed / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB are free."
        )
    return needed <= free


def _ssim(a: Tensor, b: Tensor) -> float:
    """SSIM of ``[1, C, H, W]``, band by band of rows: at once it takes some 450 bytes a pixel."""
    height, width = a.shape[-2:]
    rows = max(1, PIXELS_AT_ONCE // width)
    total = torch.zeros((), dtype=torch.float64)
    for first in range(0, height, rows):
        last = min(first + rows, height)
        # What the windows of these rows see.
        begin, end = max(0, first - HALF_WINDOW), min(height, last + HALF_WINDOW)
        of_band = a[..., begin:end, :], b[..., begin:end, :]
        local = structural_similarity_index_measure(*of_band, data_range=1.0, return_full_image=True)[1]  # type: ignore[arg-type]
        total += local[..., first - begin : last - begin, :].double().sum().cpu()
    return float(total / a.numel())


@torch.no_grad()
def image_metrics(prediction: Tensor, truth: Tensor) -> dict[str, float]:
    """Metrics of one image.

    Args:
        prediction: ``[H, W, 3]`` in [0, 1].
        truth: ``[H, W, 3]`` in [0, 1].

    Returns:
        ``psnr`` in dB, ``ssim`` where both sides have 6 pixels or more, and ``lpips`` where they have 31, its
        weights can be had and the memory is there.
    """
    a = prediction.moveaxis(-1, 0)[None].clamp(0, 1)
    b = truth.moveaxis(-1, 0)[None].to(a)
    metrics = {"psnr": float(psnr(a, b))}
    shorter = min(a.shape[-2:])
    if shorter >= SMALLEST_FOR_SSIM:
        metrics["ssim"] = _ssim(a, b)
    lpips = _lpips() if shorter >= SMALLEST_FOR_LPIPS and _has_memory_for_lpips(*a.shape[-2:]) else None
    if lpips is not None:
        metrics["lpips"] = float(lpips(a.cpu(), b.cpu()))
    return metrics
