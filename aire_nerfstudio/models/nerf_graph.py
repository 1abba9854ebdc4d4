"""A NeRF's training step as a CUDA graph: memory for a fixed number of samples, all random numbers drawn outside."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from aire_nerfstudio.data.perspective_rays import PerspectiveRays
from aire_nerfstudio.data.rays_manager import RaysDataManager
from aire_nerfstudio.distributed import share, shared_rand
from aire_nerfstudio.models.nerf_rendering import density_at
from aire_nerfstudio.ops.occupancy import Occupancy
from aire_nerfstudio.ops.padded_samples import early_stop_padded, march_rays_padded, reached_padded

if TYPE_CHECKING:
    from aire_nerfstudio.models.nerf import NerfModel


class NerfGraph:
    """What a captured step of a NeRF gets and does.

    Args:
        model: whose step it is.
    """

    def __init__(self, model: NerfModel) -> None:
        self._model = model
        # The data manager's; none where its rays are nerfstudio's own.
        self._ray_generator: PerspectiveRays | None = None

    def revision(self) -> Hashable:
        """Changes with how many samples a graph has memory for, and with whose cameras it knows."""
        counts = self._model.sample_counts
        assert counts.sizes is not None
        sizes = counts.sizes if counts.stops_early else counts.sizes[:1]
        return sizes, counts.stops_early, self._model.is_contracted, self._ray_generator

    def batch(self, datamanager: Any, step: int) -> dict[str, Tensor] | None:
        """Pixels or rays, all that a step draws at random, and the grid; None where memory for samples is unknown."""
        if self._model.sample_counts.sizes is None:
            return None
        generator = getattr(datamanager, "train_ray_generator", None)
        self._ray_generator = None
        if isinstance(datamanager, RaysDataManager) and isinstance(generator, PerspectiveRays):
            generator.prepare()
            self._ray_generator = generator
            pixels = datamanager.next_pixels(step)
            given = {"indices": share(pixels["indices"])}
        else:
            rays, pixels = datamanager.next_train(step)
            names = ("origins", "directions", "nears", "fars")
            given = {name: share(getattr(rays, name)) for name in names if getattr(rays, name) is not None}
        given["image"] = share(pixels["image"])
        given = {name: value.to(self._model.device) for name, value in given.items()}
        image = given["image"]
        self._model.sample_counts.fit(len(image) * self._model.config.max_steps_per_ray)
        given["jitter"] = shared_rand(len(image), device=image.device)
        if self._model.background.is_random(image):
            given["background"] = shared_rand(len(image), 3, device=image.device)
        return given | {"grid": self._model.grid.occupancy.bits}

    def outputs(self, batch: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """As in training without a graph; ``complete []`` tells for how many rays there was memory."""
        model = self._model
        field, config, met = model.field, model.config, model.sample_counts
        assert met.sizes is not None
        generator = self._ray_generator
        lines = generator.lines(batch["indices"]) if generator is not None else (batch["origins"], batch["directions"])
        blank = torch.zeros_like(lines[0][..., :1])
        rays = RayBundle(*lines, blank, nears=batch.get("nears"), fars=batch.get("fars"))
        origins, directions, near, far = model.rays_in_cube(field, rays)
        n_rays, (most_marched, most_reached), epsilon = len(origins), met.sizes, config.early_stop_epsilon
        grid = Occupancy(model.grid.occupied, model.grid.is_contracted, batch["grid"])
        scene = (origins, directions, near, far, grid, model.step_length)
        marched = march_rays_padded(*scene, most_marched, batch["jitter"], config.cone_angle)
        used = marched
        if met.stops_early:
            density = density_at(field, origins, directions)
            used = early_stop_padded(marched, n_rays, density, epsilon, most_reached)
        outputs, sigma = model.composited(field, used.samples, origins, directions, far)
        total = used.total if met.stops_early else reached_padded(marched, n_rays, sigma, epsilon).sum()
        met.note(marched.total, total)
        outputs["accumulation"] = outputs["accumulation"][:, None]
        outputs |= {"num_samples": used.total, "complete": used.complete}
        if "background" in batch:
            outputs["background"] = batch["background"]
        return outputs, {"image": batch["image"]}
