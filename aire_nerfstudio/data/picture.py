"""Reading a picture, checked before use, in the depth it was saved with."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor

from aire_nerfstudio.errors import InputError, first_line
from aire_nerfstudio.files import OF_A_RUN, check_file

SMALLEST_SIDE = 2
FEWEST_PIXELS = 20
# Half of SSIM's window of 11 must fit.
SMALLEST_FOR_SSIM = 6
EXIF_ORIENTATION = 274
# A pixel's share while a run evaluates: colour, accumulation, depth, normals and truth as float32, its split, and
# its scores.
BYTES_PER_PIXEL_IN_USE = 130


@dataclass(frozen=True)
class Picture:
    """A picture in memory.

    Attributes:
        values: ``[H, W, C]``, uint8, uint16 or float32 as saved; row 0 is the top. ``C``: 1 grey, 2 grey and alpha,
            3 RGB, 4 RGB and alpha. Colours are multiplied by alpha where there is one.
        peak: the value that means 1.
    """

    values: Tensor
    peak: float

    @property
    def height(self) -> int:
        """Rows."""
        return self.values.shape[0]

    @property
    def width(self) -> int:
        """Columns."""
        return self.values.shape[1]

    @property
    def channels(self) -> int:
        """Channels, alpha included."""
        return self.values.shape[2]

    def floats(self) -> Tensor:
        """All of it in [0, 1], float32 ``[H, W, C]``."""
        return to_unit(self.values, self.peak)


def to_unit(values: Tensor, peak: float) -> Tensor:
    """Stored values as float32 in [0, 1], any shape."""
    return values.float() / peak


def has_alpha(channels: int) -> bool:
    """Whether the last of so many channels is alpha."""
    return channels in (2, 4)


def over_background(values: Tensor, background: Tensor | float) -> Tensor:
    """What a person sees: ``[..., C]`` with colours multiplied by alpha ``-> [..., 3]`` over a background."""
    colour, alpha = (values[..., :-1], values[..., -1:]) if has_alpha(values.shape[-1]) else (values, None)
    if colour.shape[-1] == 1:
        colour = colour.expand(*colour.shape[:-1], 3)
    return colour if alpha is None else colour + background * (1 - alpha)


# TIFF: bits of each channel; what 0 means in grey, and that it is white.
TIFF_BITS, TIFF_INTERPRETATION, WHITE_IS_0 = 258, 262, 0
# How channels lie: one behind the other, which OpenCV would read as side by side.
TIFF_PLANES, SEPARATE = 284, 2


def read_picture(path: Path) -> Picture:
    """Read any still picture that Pillow opens: 8 or 16 bits, float, grey, palette, RGB, RGBA, CMYK; EXIF-rotated.

    Args:
        path: the file.

    Raises:
        InputError: no such file, not a picture, animated, too small, values that are not finite or, in a float
            picture, outside [0, 1], or too large for the memory that is free.
    """
    check_file(path, "the picture", f"give an image file with --data{OF_A_RUN}")
    try:
        # Of a path, Pillow maps uncompressed files into memory, and a rotated TIFF's rows then have a wrong length.
        with path.open("rb") as stream:
            return _read(path, stream)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}); replace the file") from error


def _read(path: Path, stream: BinaryIO) -> Picture:
    try:
        with warnings.catch_warnings():
            # Size is judged below, against the memory there is.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(stream, formats=_formats())
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    except Exception as error:
        raise InputError(f"{path} is no picture that Pillow can open ({type(error).__name__}); convert it") from error
    with image:
        width, height = image.size
        # A camera's MPO holds a preview beside the picture, which comes first.
        try:
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        except Exception as error:
            raise InputError(f"{path} cannot be decoded ({first_line(error)}); replace the file") from error
        if frames > 1:
            raise InputError(f"{path} has {frames} frames; a still picture is needed, save one frame of it")
        if min(width, height) < SMALLEST_SIDE or width * height < FEWEST_PIXELS:
            raise InputError(
                f"{path} is {width} x {height} pixels; at least {SMALLEST_SIDE} a side and {FEWEST_PIXELS} in all are "
                "needed"
            )
        _check_memory(path, width, height)
        try:
            _check_tiles(path, image)
            values = _decode(image, path)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{path} cannot be decoded ({first_line(error)}); replace the file") from error
        try:
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        except Exception:  # malformed metadata harm no pixel
            orientation = 1
    return _as_picture(_upright(values, orientation), path)


def _formats() -> list[str]:
    """Those that Pillow decodes itself: for PostScript it would start a program."""
    Image.init()
    return [name for name in Image.ID if name not in ("EPS", "WMF")]


def _check_tiles(path: Path, image: Image.Image) -> None:
    """Refuse a TIFF whose tiles are far larger than the picture: each is decoded whole."""
    tags = getattr(image, "tag_v2", {})
    tile = math.prod(int(tags.get(tag, 0)) for tag in (322, 323))
    if tile > 4 * math.prod(image.size) + (1 << 20):
        raise InputError(
            f"{path} has tiles of {tile:,} pixels for a picture of {math.prod(image.size):,}; save it anew"
        )


def _check_memory(path: Path, width: int, height: int) -> None:
    needed, free = width * height * BYTES_PER_PIXEL_IN_USE, psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"{path} is {width} x {height} pixels; fitting and evaluating it takes about {needed / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB are free; make it smaller or use a machine with more memory"
        )


def _decode(image: Image.Image, path: Path) -> np.ndarray:
    """Values as saved, ``[H, W]`` or ``[H, W, C]``."""
    tags = getattr(image, "tag_v2", {})
    # A planar TIFF's tiles do not say how deep they are.
    bits = max(np.atleast_1d(tags.get(TIFF_BITS, 8)).tolist())
    is_deep = bits == 16 or any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    if bits == 16 and tags.get(TIFF_PLANES) == SEPARATE:
        raise InputError(f"{path} has its 16-bit colours in planes of their own; save it with them side by side")
    is_white_0 = tags.get(TIFF_INTERPRETATION) == WHITE_IS_0
    image.load()
    # PNG may name one colour that is transparent.
    transparent = image.info.get("transparency")
    if image.mode in ("RGB", "RGBA", "LA") and is_deep:
        # Pillow keeps 8 of the 16 bits of a colour picture.
        return _decode_16_bit_colour(path)
    if image.mode in ("1", "L") and isinstance(transparent, int):
        grey = np.array(image.convert("L"))
        level = transparent * 255 // _largest_grey(path, image)
        return np.stack([grey, np.where(grey == level, 0, 255).astype(np.uint8)], axis=-1)
    if image.mode == "RGB" and transparent is not None:
        image = image.convert("RGBA")
    elif image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode == "PA" or image.mode == "La" or image.mode == "RGBa":
        image = image.convert("RGBA")
    elif image.mode not in ("L", "LA", "RGB", "RGBA", "F") and not image.mode.startswith("I"):
        image = image.convert("RGB")
    values = np.array(image)
    if image.mode.startswith("I;16"):
        if isinstance(transparent, int):
            values = np.stack([values, np.where(values == transparent, 0, 65535).astype(values.dtype)], axis=-1)
        elif 8 < bits < 16:  # Pillow leaves them at the lower end
            values = np.rint(values * (65535 / (2**bits - 1))).astype(np.uint16)
        if is_white_0 and not isinstance(transparent, int):  # of 8 bits Pillow turns it itself
            values = 65535 - values
    if values.dtype.kind == "i":  # Pillow's mode I: 32 bits, mostly a 16-bit picture
        if values.min() < 0 or values.max() > 65535:
            raise InputError(
                f"{path} holds whole numbers from {values.min()} to {values.max()}; they must lie in 0 to 65535: save "
                "it with 8 or 16 bits"
            )
        values = values.astype(np.uint16)
    return values


# Where a PNG says how many bits a channel has.
PNG_DEPTH = 24


def _largest_grey(path: Path, image: Image.Image) -> int:
    """White in the unit of the transparent grey: Pillow spreads 2 and 4 bits over 255, but not that one."""
    if image.format != "PNG" or image.mode == "1":
        return 255
    with path.open("rb") as file:
        return 2 ** file.read(PNG_DEPTH + 1)[PNG_DEPTH] - 1


def _decode_16_bit_colour(path: Path) -> np.ndarray:
    import cv2

    values = cv2.imread(os.fspath(path), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if values is None or values.dtype != np.uint16:
        raise InputError(f"{path} has 16-bit colours that OpenCV cannot read; save it as PNG or TIFF")
    if values.ndim == 3:
        values = cv2.cvtColor(values, cv2.COLOR_BGRA2RGBA if values.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    return values


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Undo a camera's rotation: EXIF orientation 1 to 8, anything else counts as 1."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def _as_picture(values: np.ndarray, path: Path) -> Picture:
    if values.ndim == 2:
        values = values[..., None]
    if values.dtype.kind == "f":
        values = values.astype(np.float32)
        if not np.isfinite(values).all():
            raise InputError(f"{path} has {int((~np.isfinite(values)).sum())} values that are not finite; repair it")
        if values.min() < 0 or values.max() > 1:
            raise InputError(f"{path} has float values from {values.min():g} to {values.max():g}; rescale it to [0, 1]")
        peak = 1.0
    else:
        if values.dtype.itemsize == 2:
            values = np.ascontiguousarray(values.astype(np.uint16))  # native byte order
        peak = float(np.iinfo(values.dtype).max)
    if has_alpha(values.shape[-1]):
        # Colours behind alpha 0 are arbitrary: multiplied, they need not be learned.
        alpha = values[..., -1:].astype(np.float32) / peak
        colour = values[..., :-1] * alpha
        colour = colour if values.dtype.kind == "f" else np.rint(colour)
        values = np.concatenate([colour.astype(values.dtype), values[..., -1:]], axis=-1)
    return Picture(torch.from_numpy(values), peak)


def pixel_centres(index: Tensor, height: int, width: int) -> Tensor:
    """Coordinates of pixels of a picture whose longer side spans [-1, 1], centred, aspect kept, y up.

    Args:
        index: row-major pixel numbers, int64 ``[N]``.
        height: rows.
        width: columns.

    Returns:
        ``[N, 2]`` float32, ``(x, y)``; a picture's outline, not its outermost centres, lies at +-1.
    """
    step = 2 / max(height, width)
    row, column = torch.div(index, width, rounding_mode="floor"), index % width
    x = (column.float() + 0.5 - width / 2) * step
    y = (height / 2 - row.float() - 0.5) * step
    return torch.stack([x, y], dim=-1)


def half_extent(height: int, width: int) -> tuple[float, float]:
    """Half the width and half the height of the picture in coordinates: the larger is 1."""
    longer = max(height, width)
    return width / longer, height / longer


def shrink_factor(height: int, width: int, new_height: int, new_width: int) -> int:
    """Samples a side and pixel that keep a smaller rendering free of aliasing."""
    return max(1, math.ceil(height / new_height), math.ceil(width / new_width))
