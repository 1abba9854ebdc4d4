"""Settings that all adaptive models share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import psutil
import torch
from nerfstudio.models.base_model import ModelConfig

from aire_nerfstudio.adaptation.aire_config import BYTES_PER_PARAMETER, AireConfig
from aire_nerfstudio.adaptation.aire_config import check as check_schedule
from aire_nerfstudio.adaptation.variants import Variant
from aire_nerfstudio.errors import InputError

# Settings of any task that count something, and the least they can be; and those that must be above 0.
LEAST = {
    **dict.fromkeys(("widths", "density_widths", "colour_widths", "n_features", "grid_every", "max_steps_per_ray"), 1),
    **{
        "eval_num_rays_per_chunk": 1,
        "ema_every": 1,
        "grid_resolution": 1,
        "lattice_limit": 1,
        "grid_warmup": 0,
        "eval_resolution": 2,
    },
}
POSITIVE = ("first_omega", "hidden_omega", "first_bias_scale", "density_threshold", "alpha")


@dataclass
class AdaptiveModelConfig(ModelConfig):
    """Settings that all adaptive models share."""

    variant: Variant = "aire"
    """aire; aire_early, with all moments in the first third of the run; aire_rounds, which adds more and removes in
    rounds from all layers, to the same number of parameters; aire's ablations weight_decay and no_decay;
    large: the starting network, never changed; small: the final size from the start; and the baselines depgraph, rigl
    (sparse, not smaller) and zell (a lattice of frequencies)."""
    adaptation: AireConfig = field(default_factory=AireConfig)
    """When and how much the network changes."""
    lattice_limit: int | None = None
    """Largest frequency of the variant zell's lattice; None: 19 in two dimensions, 4 in three."""
    cuda_graph: bool = False
    """Whether a step, the optimizer's update among it, is one CUDA graph: on CUDA launching kernels of a small network
    takes longer than running them. With --steps-per-iteration, nerfstudio's own work is left out as well."""
    ema_decay: float = 0.95
    """Decay of the weight average used for evaluation and rendering, in [0, 1); 0: no average."""
    ema_every: int | None = None
    """Optimizer steps between two updates of the weight average; None: 1/1500 of the run, the paper's epoch."""
    shows_parts: bool = False
    """Render also what the strong neurons alone give (important), what the weak ones give (unimportant), and the mean
    input frequency that drives each point (frequency, a share of the largest); three times the work. The viewer's
    panel switches it."""
    enable_collider: bool = False
    """Not supported: where rays begin and end is the model's own."""
    collider_params: dict[str, float] | None = None
    """Not supported."""

    def check(self) -> None:
        """Refuse numbers that mean nothing for any data, before data are read and distances computed.

        Raises:
            InputError: naming the first one.
        """
        for name, value in vars(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise InputError(f"{name} is {value}; it must be finite")
            if isinstance(value, tuple) and name in LEAST and not value:
                raise InputError(f"{name} is empty; give at least one number")
            least = LEAST.get(name)
            if least is not None and value is not None and min(numbers) < least:
                raise InputError(f"{name} is {value}; it must be at least {least}")
            if name.endswith("_weight") and value < 0:
                raise InputError(f"{name} is {value}; it must be 0 or more")
            if name.endswith("widths") and isinstance(value, tuple):
                _check_memory(name, value)
            if name in POSITIVE and value is not None and value <= 0:
                raise InputError(f"{name} is {value}; it must be positive")
        if self.enable_collider:
            raise InputError(
                "enable_collider is True; these models find where rays begin and end themselves: leave it out"
            )
        for name in ("prompt", "loss_coefficients"):
            if getattr(self, name) != getattr(ModelConfig(), name):
                raise InputError(f"{name} is {getattr(self, name)}, which these models do not heed; leave it out")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay is {self.ema_decay}; it must lie in [0, 1)")
        check_schedule(self.adaptation)

    def resolved(self) -> AdaptiveModelConfig:
        """With what is left to other files, for a run's ``config.yml``: evaluations do without them."""
        return self

    def check_training(self, device_type: str) -> None:
        """Refuse what training cannot do here; what was trained elsewhere may be evaluated all the same.

        Args:
            device_type: ``cpu`` or ``cuda``, of the training.

        Raises:
            InputError: saying what.
        """
        if self.cuda_graph and not torch.cuda.is_available():
            raise InputError("cuda_graph is True, and there is no CUDA device; leave it out")
        if self.cuda_graph and device_type != "cuda":
            raise InputError(f"cuda_graph is True and --machine.device-type is {device_type}; leave one of them out")


def _check_memory(name: str, widths: tuple[int, ...]) -> None:
    """Refuse a network that does not fit into memory with its gradients and Adam's moments."""
    needed = 4 * BYTES_PER_PARAMETER * sum(a * b for a, b in pairwise((1, *widths, 1)))
    free = psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"{name} are {list(widths)}, which take {needed / 2**30:,.1f} GiB to train, and {free / 2**30:.1f} GiB are "
            "free; give smaller ones"
        )
