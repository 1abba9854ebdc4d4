"""PSNR, SSIM and, where its weights can be had, LPIPS."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics.functional import structural_similarity_index_measure

from aire_nerfstudio.data.picture import SMALLEST_FOR_SSIM
from aire_nerfstudio.notices import warn

# AlexNet's last pooling must have something to pool.
SMALLEST_FOR_LPIPS = 31


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


@torch.no_grad()
def image_metrics(prediction: Tensor, truth: Tensor) -> dict[str, float]:
    """Metrics of one image.

    Args:
        prediction: ``[H, W, 3]`` in [0, 1].
        truth: ``[H, W, 3]`` in [0, 1].

    Returns:
        ``psnr`` in dB, ``ssim`` where both sides have 6 pixels or more, and ``lpips`` where they have 31 and its
        weights can be had.
    """
    a = prediction.moveaxis(-1, 0)[None].clamp(0, 1)
    b = truth.moveaxis(-1, 0)[None].to(a)
    metrics = {"psnr": float(psnr(a, b))}
    shorter = min(a.shape[-2:])
    if shorter >= SMALLEST_FOR_SSIM:
        metrics["ssim"] = float(structural_similarity_index_measure(a, b, data_range=1.0))  # type: ignore[arg-type]
    lpips = _lpips() if shorter >= SMALLEST_FOR_LPIPS else None
    if lpips is not None:
        metrics["lpips"] = float(lpips(a.cpu(), b.cpu()))
    return metrics
