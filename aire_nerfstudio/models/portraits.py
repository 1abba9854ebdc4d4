"""Pictures of a model for its run's report."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils import colormaps
from torch import Tensor

from aire_nerfstudio.models.part_views import PartViews
from aire_nerfstudio.report.portrait import Portrait

PART_CAPTIONS = {
    "important": "strong neurons alone",
    "unimportant": "weak neurons alone",
    "frequency": "driving frequency",
}
# The difference that is drawn in full colour.
DIFFERENCE_SHOWN = 0.2


@torch.no_grad()
def portraits(model: PartViews, datamanager: Any, count: int, longest_side: int | None) -> list[Portrait]:
    """Evaluation views, evenly spread: truth, render, their difference, what else the task shows; scores of each.

    Args:
        model: in any mode; left as it was.
        datamanager: whose evaluation views are taken.
        count: how many at most.
        longest_side: pixels; larger views are made smaller. None: as they are.

    Returns:
        As many as there are, the first with what strong and weak neurons give.
    """
    was_training, showed = model.training, {name: getattr(model.config, name) for name in model.reported}
    loader = datamanager.fixed_indices_eval_dataloader
    wanted = set(np.linspace(0, len(loader) - 1, min(count, len(loader))).round().astype(int).tolist())
    made: list[Portrait] = []
    try:
        model.eval()
        for index, (camera, batch) in enumerate(loader):
            if index not in wanted:
                continue
            for name in model.reported:
                setattr(model.config, name, not made)
            camera, batch = _smaller(camera, batch, longest_side)
            outputs = model.get_outputs_for_camera(camera.to(model.device))
            scores, images = model.get_image_metrics_and_images(outputs, batch)
            size = f"{int(camera.width.flatten()[0])} x {int(camera.height.flatten()[0])}"
            pictures = _pictures(outputs, images, model.extra_pictures(outputs))
            made.append(Portrait(f"view {index}, {size}", pictures, {k: float(v) for k, v in scores.items()}))
    finally:
        for name, value in showed.items():
            setattr(model.config, name, value)
        model.train(was_training)
    return made


def _smaller(camera: Cameras, batch: dict[str, Any], longest_side: int | None) -> tuple[Cameras, dict[str, Any]]:
    """Camera and truth at a smaller size, if they are larger than asked for."""
    image = batch["image"]
    height, width = image.shape[:2]
    if longest_side is None or max(height, width) <= longest_side:
        return camera, batch
    # Of the loader's own: rescaling gives it new sizes and leaves those of the dataset.
    camera.rescale_output_resolution(longest_side / max(height, width), "ceil")
    size = (int(camera.height.flatten()[0]), int(camera.width.flatten()[0]))
    return camera, {**batch, "image": _averaged(image, size)}


def _averaged(image: Tensor, size: tuple[int, int]) -> Tensor:
    """``[H, W, C]`` as means over the pixels of a smaller one; colours count by their alpha."""
    alpha = image[..., 3:]
    weighted = torch.cat([image[..., :3] * alpha, alpha], -1) if alpha.shape[-1] else image
    mean = torch.nn.functional.interpolate(weighted.permute(2, 0, 1)[None], size, mode="area")[0].permute(1, 2, 0)
    if alpha.shape[-1]:
        mean = torch.cat([mean[..., :3] / mean[..., 3:].clamp_min(1e-6), mean[..., 3:]], -1)
    return mean


def _pictures(outputs: dict[str, Tensor], images: dict[str, Tensor], extra: dict[str, Tensor]) -> dict[str, np.ndarray]:
    truth, render = images["img"].chunk(2, dim=1)
    difference = (truth - render).abs().mean(-1, keepdim=True) / DIFFERENCE_SHOWN
    shown = {
        "truth": truth,
        "render": render,
        f"difference (full colour: {DIFFERENCE_SHOWN})": colormaps.apply_colormap(difference.clamp(0, 1)),
        **extra,
    }
    for name, caption in PART_CAPTIONS.items():
        if name in outputs:
            picture = outputs[name]
            shown[caption] = colormaps.apply_colormap(picture) if picture.shape[-1] == 1 else picture
    return {caption: _bytes(picture) for caption, picture in shown.items()}


def _bytes(picture: Tensor) -> np.ndarray:
    if picture.shape[-1] == 1:
        picture = picture.expand(*picture.shape[:-1], 3)
    return (255 * picture.detach().clamp(0, 1)).round().byte().cpu().numpy()
