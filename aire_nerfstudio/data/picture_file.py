"""Writing a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aire_nerfstudio.data.picture import has_alpha
from aire_nerfstudio.files import write_whole


def write_picture(values: Tensor, path: Path, bits: int) -> None:
    """Write ``[H, W, C]`` in [0, 1] with colours multiplied by alpha; the file appears only when whole.

    Args:
        values: the picture; ``C`` as in :class:`~aire_nerfstudio.data.picture.Picture`.
        path: where to; the folder is made.
        bits: 8 or 16 a channel.

    Raises:
        InputError: the format cannot hold the picture.
    """
    if has_alpha(values.shape[-1]):
        alpha = values[..., -1:]
        colour = torch.where(alpha > 0, values[..., :-1] / alpha.clamp_min(1e-6), torch.zeros_like(alpha)).clamp(0, 1)
        values = torch.cat([colour, alpha], dim=-1)
    peak, dtype = (255, np.uint8) if bits == 8 else (65535, np.uint16)
    array = (values * peak).round().numpy().astype(dtype)

    def write(unfinished: str) -> None:
        if bits == 16:
            _write_16_bits(array, unfinished)
        else:
            Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(unfinished)

    write_whole(path, write)


def _write_16_bits(array: np.ndarray, path: str) -> None:
    import cv2

    if array.shape[-1] == 2:  # OpenCV has no grey with alpha
        array = array[..., (0, 0, 0, 1)]
    order = {1: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[array.shape[-1]]
    if not cv2.imwrite(path, array if order is None else cv2.cvtColor(array, order)):
        raise OSError("OpenCV refused")
