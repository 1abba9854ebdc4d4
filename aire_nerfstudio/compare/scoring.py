"""The same evaluation for every method: the scene's test views, rendered, timed and scored."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from PIL import Image
from torch import Tensor

from aire_nerfstudio.data.smaller_views import shrink_camera, shrink_picture
from aire_nerfstudio.models.image_metrics import image_metrics

# What methods call the colours they are judged by.
COLOURS = ("rgb", "rgb_fine", "rgb_coarse")

Keep = Callable[[str, np.ndarray], str]


@torch.no_grad()
def score(trainer: Any, count: int, longest_side: int | None, seconds: float, keep: Keep) -> dict[str, Any]:
    """Render and score test views, evenly spread.

    Args:
        trainer: nerfstudio's, after training.
        count: views at most.
        longest_side: pixels; larger views are rendered and compared smaller. None: as they are.
        seconds: after which no further view is begun; at least one is.
        keep: writes a picture under a name and tells the file's.

    Returns:
        ``views`` scored, ``scores`` of each (PSNR, SSIM, and LPIPS where its weights are), ``render_seconds`` a view,
        and file names of ``renders`` and ``truths``.
    """
    model = trainer.pipeline.model.eval()
    parser = trainer.config.pipeline.datamanager.dataparser.setup()
    test = parser.get_dataparser_outputs(split="test")
    chosen = np.linspace(0, len(test.image_filenames) - 1, min(count, len(test.image_filenames))).round().astype(int)
    rows: list[dict[str, float]] = []
    times: list[float] = []
    renders: list[str] = []
    truths: list[str] = []
    deadline = time.monotonic() + seconds
    for index in chosen.tolist():
        if rows and time.monotonic() > deadline:
            break
        camera = _camera(test.cameras, index, longest_side)
        _wait(trainer.device)
        began = time.monotonic()
        outputs = model.get_outputs_for_camera(camera.to(trainer.device))
        rgb = outputs[next(name for name in COLOURS if name in outputs)].clamp(0, 1).cpu()
        _wait(trainer.device)
        times.append(time.monotonic() - began)
        truth = read_over_white(test.image_filenames[index], rgb.shape[1], rgb.shape[0])
        rows.append(image_metrics(rgb, truth))
        renders.append(keep(f"render-{index:04d}", _bytes(rgb)))
        truths.append(keep(f"truth-{index:04d}", _bytes(truth)))
    return {
        "views": len(rows),
        "scores": rows,
        "render_seconds": float(np.median(times)),
        "renders": renders,
        "truths": truths,
    }


def read_over_white(path: Any, width: int, height: int) -> Tensor:
    """A picture of the scene over white, ``[height, width, 3]`` in [0, 1]; averaged where it is larger."""
    with Image.open(path) as file:
        pixels = torch.from_numpy(np.asarray(file.convert("RGBA"), dtype=np.float32) / 255)
    rgb = pixels[..., :3] * pixels[..., 3:] + 1 - pixels[..., 3:]
    return shrink_picture(rgb, (height, width))


def _camera(cameras: Cameras, index: int, longest_side: int | None) -> Cameras:
    camera = cameras[index : index + 1]
    shrink_camera(camera, longest_side)
    return camera


def _bytes(rgb: Tensor) -> np.ndarray:
    return (255 * rgb).round().byte().numpy()


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
