"""What is behind a radiance field: of a fixed colour in evaluation, often drawn at random in training."""

from __future__ import annotations

from typing import Literal

import torch
from nerfstudio.model_components import renderers
from torch import Tensor

from aire_nerfstudio.distributed import shared_rand

BackgroundColour = Literal["white", "black", "random"]


def seen_behind(colour: Tensor) -> Tensor:
    """The background ``[..., 3]`` of a rendered view: ``colour``, or what viewer or ns-render ask for in its place."""
    asked = renderers.BACKGROUND_COLOR_OVERRIDE
    return colour if asked is None else asked.to(colour).expand_as(colour)


def without_background(rgb: Tensor, accumulation: Tensor, background: Tensor) -> Tensor:
    """Colours ``[..., 3]`` that were seen over a background, and their opacity: ``[..., 4]``."""
    colour = rgb - background * (1 - accumulation)
    return torch.cat([(colour / accumulation.clamp_min(1e-3)).clamp(0, 1), accumulation], -1)


class Background:
    """The colour behind the scene.

    Args:
        colour: ``random`` is drawn anew for each ray in training, and black in evaluation.
    """

    def __init__(self, colour: BackgroundColour) -> None:
        self._colour = colour

    def fixed(self, like: Tensor) -> Tensor:
        """The colour in evaluation, broadcast to ``like [..., 3]``."""
        return torch.ones_like(like) if self._colour == "white" else torch.zeros_like(like)

    def shown(self, like: Tensor) -> Tensor:
        """The colour behind a rendered view, broadcast to ``like [..., 3]``."""
        return seen_behind(self.fixed(like))

    def is_random(self, image: Tensor) -> bool:
        """Whether training draws it: as configured, and for pictures ``[..., 4]`` with alpha, whatever it is."""
        return image.shape[-1] == 4 or self._colour == "random"

    def behind(self, outputs: dict[str, Tensor], image: Tensor) -> Tensor:
        """The colours ``[..., 3]`` behind rendered rays in training; those of ``outputs`` where it has some."""
        rgb = outputs["rgb"]
        if not self.is_random(image):
            return self.fixed(rgb)
        if "background" in outputs:
            return outputs["background"]
        return shared_rand(*rgb.shape, device=rgb.device)

    def compare(self, outputs: dict[str, Tensor], image: Tensor, is_training: bool) -> tuple[Tensor, Tensor]:
        """Prediction and truth ``[..., 3]`` over the same background.

        Args:
            outputs: in training ``rgb`` is without a background and comes with ``accumulation``; else it is over
                :meth:`fixed`.
            image: ``[..., 3]`` or, with alpha, ``[..., 4]``.
            is_training: which of the two.
        """
        rgb, truth = outputs["rgb"], image[..., :3]
        colour = self.behind(outputs, image) if is_training else self.fixed(truth)
        if image.shape[-1] == 4:
            truth = truth * image[..., 3:] + colour * (1 - image[..., 3:])
        if is_training:
            rgb = rgb + colour * (1 - outputs["accumulation"])
        return rgb, truth
