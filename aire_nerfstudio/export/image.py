"""``aire-export image``: the picture that a run learned, at any resolution."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.export.files import bar, config_of, load_model
from aire_nerfstudio.files import check_place

FORMATS_OF_16_BITS = (".png", ".tif", ".tiff")
FORMATS_WITHOUT_ALPHA = (".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".pnm")
# Those that keep size and colours; JPEG, WebP and JPEG 2000 as well as their compression lets them.
FORMATS = (*FORMATS_OF_16_BITS, *FORMATS_WITHOUT_ALPHA, ".webp", ".jp2", ".tga")
# A value while it is written: as rendered, and in the file's type; with alpha, colours divided by it as well.
BYTES_PER_VALUE, BYTES_PER_VALUE_WITH_ALPHA = 13, 20


@dataclass
class ExportImage:
    """Write the picture that an aire-image run learned, at any resolution."""

    load_config: Path
    """The run's folder, or its config.yml."""
    output_path: Path
    """File to write; its suffix chooses the format."""
    size: tuple[int, int] | None = None
    """Width and height in pixels; None: those of the training picture. The whole picture is stretched over them."""
    scale: float = 1.0
    """Factor on the training picture's width and height; used where size is not given."""
    bits: Literal[8, 16] = 8
    """Depth of each channel; 16 needs PNG or TIFF."""
    quiet: bool = False
    """Print errors only."""

    def main(self) -> None:
        """Render and write."""
        self.load_config = config_of(self.load_config)
        suffix = self.output_path.suffix.lower()
        if suffix not in FORMATS:
            raise InputError(f"--output-path {self.output_path}: {suffix!r} is none of {', '.join(FORMATS)}; use .png")
        check_place("--output-path", self.output_path)
        if self.bits == 16 and suffix not in FORMATS_OF_16_BITS:
            raise InputError(f"--bits 16 with {suffix!r}; 16 bits go into {', '.join(FORMATS_OF_16_BITS)}")
        if not 0 < self.scale < float("inf"):
            raise InputError(f"--scale is {self.scale}; it must be positive")
        if self.size is not None and self.scale != 1:
            raise InputError(
                f"--size {self.size[0]} {self.size[1]} and --scale {self.scale} are both given; leave one out"
            )
        if self.size is not None and min(self.size) < 1:
            raise InputError(f"--size is {self.size[0]} {self.size[1]}; both must be at least 1")
        # Only now: nerfstudio takes seconds to import, and what was wrong so far is said without it.
        from aire_nerfstudio.data.picture import has_alpha
        from aire_nerfstudio.data.picture_file import write_picture
        from aire_nerfstudio.models.image import ImageModel

        model = load_model(self.load_config, ImageModel, "image", "aire-image")
        height, width = model.picture_size
        if self.size is not None:
            new_width, new_height = self.size
        else:
            new_width, new_height = (max(1, round(self.scale * side)) for side in (width, height))
        a_value = BYTES_PER_VALUE_WITH_ALPHA if has_alpha(model.channels) else BYTES_PER_VALUE
        needed, free = a_value * new_width * new_height * model.channels, psutil.virtual_memory().available
        if needed > free:
            raise InputError(
                f"a picture of {new_width} x {new_height} takes about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} "
                "GiB are free; take a smaller --size or --scale"
            )
        if has_alpha(model.channels) and suffix in FORMATS_WITHOUT_ALPHA:
            raise InputError(f"the picture has transparency, which {suffix!r} cannot hold; use .png")
        model.eval()
        with bar("picture", self.quiet) as progress:
            values = model.render_picture(new_height, new_width, progress)
        write_picture(values, self.output_path, self.bits)
        if not self.quiet:
            print(
                f"wrote {self.output_path}: {new_width} x {new_height}, {self.bits} bits, {values.shape[-1]} channels"
            )
