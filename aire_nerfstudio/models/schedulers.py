"""Learning-rate decay whose state is plain Python numbers, so that checkpoints load with ``weights_only=True``."""

from __future__ import annotations

from dataclasses import dataclass, field

from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from aire_nerfstudio.errors import InputError


@dataclass
class ExponentialDecayConfig(SchedulerConfig):
    """Exponential decay from the optimizer's rate to ``final_ratio`` of it."""

    _target: type = field(default_factory=lambda: ExponentialDecay)
    final_ratio: float = 0.1
    """Rate at the end over rate at the beginning, in (0, 1]."""
    max_steps: int | None = None
    """Steps until the end; None: the length of the run."""


class ExponentialDecay(Scheduler):
    """``lr(step) = lr_0 * final_ratio^min(step / max_steps, 1)``."""

    config: ExponentialDecayConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LRScheduler:
        """The scheduler of ``optimizer``; its factors are Python floats."""
        ratio, max_steps = float(self.config.final_ratio), self.config.max_steps
        if not 0 < ratio <= 1:
            raise InputError(f"scheduler final_ratio is {ratio}; it must lie in (0, 1]")
        if max_steps is None or max_steps < 1:
            raise InputError(f"scheduler max_steps is {max_steps}; it must be at least 1")
        return LambdaLR(optimizer, lambda step: ratio ** min(step / max_steps, 1.0))
