"""Adam with the betas that radiance fields of instant-ngp's lineage use."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.engine.optimizers import OptimizerConfig

from aire_nerfstudio.errors import InputError


@dataclass
class FieldAdamConfig(OptimizerConfig):
    """Adam, betas (0.9, 0.99), eps 1e-15: torch-ngp's settings."""

    _target: type = field(default_factory=lambda: torch.optim.Adam)
    lr: float = 2e-4
    """Learning rate at the start."""
    eps: float = 1e-15
    """Term added to the denominator."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the first and second moment."""

    def check(self) -> None:
        """Refuse what no training can use.

        Raises:
            InputError: naming it.
        """
        if not 0 < self.lr < math.inf:
            raise InputError(f"the optimizer's lr is {self.lr}; it must be positive and finite")
        if not 0 <= self.eps < math.inf or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(
                f"the optimizer's eps is {self.eps} and its betas {self.betas}; they must be 0 or more and in [0, 1)"
            )

    def setup(self, params: Any) -> torch.optim.Optimizer:
        """The optimizer of ``params``; fused on CUDA, where a step is otherwise bound by kernel launches."""
        self.check()
        is_fused = all(p.is_cuda for p in params)
        return torch.optim.Adam(params, lr=self.lr, eps=self.eps, betas=self.betas, fused=is_fused or None)
