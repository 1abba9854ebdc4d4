"""Adam with the betas that radiance fields of instant-ngp's lineage use; and optimizers that ask before they step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.engine.optimizers import OptimizerConfig, Optimizers
from torch import Tensor

from aire_nerfstudio.errors import InputError

# Devices of which torch's Adam has a fused form.
FUSED_ON = ("cpu", "cuda")


@dataclass
class FieldAdamConfig(OptimizerConfig):
    """Adam; by default with torch-ngp's eps and betas, where the method has none of its own."""

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
        if self.max_norm is not None and not 0 < self.max_norm < math.inf:
            raise InputError(f"the optimizer's max-norm is {self.max_norm}; it must be positive and finite, or None")
        if not 0 <= self.eps < math.inf or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(
                f"the optimizer's eps is {self.eps} and its betas {self.betas}; they must be 0 or more and in [0, 1)"
            )

    def setup(self, params: Any) -> torch.optim.Optimizer:
        """The optimizer of ``params``, fused: of small networks a step is otherwise bound by launches, or by Python."""
        self.check()
        is_fused = all(p.device.type in FUSED_ON for p in params)
        return torch.optim.Adam(params, lr=self.lr, eps=self.eps, betas=self.betas, fused=is_fused or None)


class AskingOptimizers(Optimizers):
    """nerfstudio's optimizers, with a question between backward and step.

    Args:
        config: see nerfstudio.
        param_groups: see nerfstudio.
        is_sound: asked with the parameters about to be changed, gradients there; where it says no, none is changed.
    """

    def __init__(
        self,
        config: dict[str, Any],
        param_groups: dict[str, list[Any]],
        is_sound: Callable[[Sequence[Tensor]], bool],
    ) -> None:
        super().__init__(config, param_groups)
        self._is_sound = is_sound

    def load_optimizers(self, loaded_state: dict[str, Any]) -> None:
        """See nerfstudio; Adam stays fused where it is, whatever the checkpoint's was."""
        was_fused = {
            name: [group.get("fused") for group in optimizer.param_groups]
            for name, optimizer in self.optimizers.items()
        }
        super().load_optimizers(loaded_state)
        for name, optimizer in self.optimizers.items():
            for group, is_fused in zip(optimizer.param_groups, was_fused[name], strict=True):
                if not is_fused or group.get("fused"):
                    continue
                group["fused"] = True
                for parameter in group["params"]:
                    state = optimizer.state.get(parameter)
                    if state:
                        state["step"] = state["step"].to(parameter.device, torch.float32)

    def optimizer_scaler_step_some(self, grad_scaler: Any, param_groups: list[str]) -> None:
        """See nerfstudio. A gradient scaler leaves steps out by itself, and must be asked."""
        is_sound = self._is_sound([p for name in param_groups for p in self.parameters[name]])
        if is_sound or grad_scaler.is_enabled():
            super().optimizer_scaler_step_some(grad_scaler, param_groups)
