"""``aire-export image``: the picture that a run learned, at any resolution."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aire_nerfstudio.data.picture import half_extent, has_alpha, pixel_centres, shrink_factor
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.export.files import check_config, check_folder, load_model, write_whole
from aire_nerfstudio.models.image import ImageModel

FORMATS_OF_16_BITS = (".png", ".tif", ".tiff")
SAMPLES_AT_ONCE = 1 << 18


@dataclass
class ExportImage:
    """Write the picture that an aire-image run learned, at any resolution."""

    load_config: Path
    """config.yml of the run."""
    output_path: Path
    """File to write; its suffix chooses the format."""
    size: tuple[int, int] | None = None
    """Width and height in pixels; None: those of the training picture. The whole picture is stretched over them."""
    scale: float = 1.0
    """Factor on the training picture's width and height; used where size is not given."""
    bits: Literal[8, 16] = 8
    """Depth of each channel; 16 needs PNG or TIFF."""

    def main(self) -> None:
        """Render and write."""
        check_config(self.load_config)
        suffix = self.output_path.suffix.lower()
        Image.init()
        if Image.registered_extensions().get(suffix) not in Image.SAVE:
            raise InputError(f"--output-path {self.output_path}: no format to write is known for {suffix!r}; use .png")
        check_folder(self.output_path)
        if self.bits == 16 and suffix not in FORMATS_OF_16_BITS:
            raise InputError(f"--bits 16 with {suffix!r}; 16 bits go into {', '.join(FORMATS_OF_16_BITS)}")
        if not 0 < self.scale < float("inf"):
            raise InputError(f"--scale is {self.scale}; it must be positive")
        model = load_model(self.load_config, ImageModel, "image", "aire-image")
        height, width = model.picture_size
        if self.size is not None:
            new_width, new_height = self.size
        else:
            new_width, new_height = (max(1, round(self.scale * side)) for side in (width, height))
        if min(new_width, new_height) < 1:
            raise InputError(f"--size is {new_width} {new_height}; both must be at least 1")
        values = render_picture(model, new_height, new_width)
        write_picture(values, self.output_path, self.bits)
        print(f"wrote {self.output_path}: {new_width} x {new_height}, {self.bits} bits, {values.shape[-1]} channels")


@torch.no_grad()
def render_picture(model: ImageModel, height: int, width: int) -> Tensor:
    """Sample the network at the pixel centres of a picture of another size; averaged where that one is smaller.

    Args:
        model: a trained image model.
        height: rows of the result.
        width: columns of the result.

    Returns:
        ``[height, width, C]`` in [0, 1], colours multiplied by alpha where there is one, on the CPU.
    """
    model.eval()
    own_height, own_width = model.picture_size
    samples = shrink_factor(own_height, own_width, height, width)
    fine_width = width * samples
    # The training picture's frame, whatever the new aspect: outline on outline.
    own, new = half_extent(own_height, own_width), half_extent(height, width)
    stretch = torch.tensor([own[0] / new[0], own[1] / new[1]])
    rows_at_once = max(1, SAMPLES_AT_ONCE // (fine_width * samples))
    out = torch.empty(height, width, model.channels)
    for top in range(0, height, rows_at_once):
        rows = min(rows_at_once, height - top)
        index = torch.arange(top * samples * fine_width, (top + rows) * samples * fine_width)
        points = pixel_centres(index, height * samples, fine_width) * stretch
        # A single row may hold more samples than fit at once.
        parts = [model.values(part.to(model.device)).cpu().clamp(0, 1) for part in points.split(SAMPLES_AT_ONCE)]
        values = torch.cat(parts)
        out[top : top + rows] = values.view(rows, samples, width, samples, -1).mean(dim=(1, 3))
    return out


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
