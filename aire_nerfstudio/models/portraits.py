"""Pictures of a model for its run's report."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils import colormaps
from torch import Tensor

from aire_nerfstudio.data.smaller_views import shrink_camera, shrink_picture
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
    # Of the loader's own: it gets new sizes, and those of the dataset stay.
    shrink_camera(camera, longest_side)
    size = (int(camera.height.flatten()[0]), int(camera.width.flatten()[0]))
    return camera, {**batch, "image": shrink_picture(image, size)}


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
