"""One contestant in a process of its own: ``python -m aire_nerfstudio.compare.trial TRIAL.json``.

Trained through nerfstudio's own entry point under a clock, then rendered and scored by the same code as all others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from aire_nerfstudio.files import write_text
from aire_nerfstudio.processes import end_with_parent


@dataclass
class Trial:
    """What to do.

    Attributes:
        command: arguments of ``ns-train``.
        folder: for everything that is written.
        device: ``cpu`` or ``cuda``.
        steps: of the training.
        seconds: after which it stops, whatever is left; None: no clock.
        views: evaluation views to render; 0: none, the speed alone is wanted.
        longest_side: of those, in pixels; None: as they are.
        render_seconds: after which no further view is begun.
        circumstances: what else a result depends on: the scene's files, versions, the device.
    """

    command: list[str]
    folder: str
    device: str
    steps: int
    seconds: float | None
    views: int
    longest_side: int | None
    render_seconds: float
    circumstances: dict[str, str]

    @property
    def result_path(self) -> Path:
        """Where the outcome is written."""
        return Path(self.folder) / "result.json"


class Clock:
    """Stops nerfstudio's trainer in time and counts what it did."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.trainer: Any = None
        self.began = self.ended = 0.0
        self.moments: list[float] = []

    def install(self) -> None:
        """Wrap nerfstudio's trainer; methods with a trainer of their own call it."""
        from nerfstudio.engine.trainer import Trainer

        from aire_nerfstudio.models.trainer import AdaptiveTrainer

        clock, train, after, step = self, Trainer.train, Trainer._after_train, Trainer.train_iteration
        own_step = AdaptiveTrainer._train_step

        def timed_train(trainer: Any) -> None:
            clock.trainer, clock.began = trainer, time.monotonic()
            if clock.seconds is not None:
                timer = threading.Timer(clock.seconds, lambda: setattr(trainer, "stop_training", True))
                timer.daemon = True
                timer.start()
            train(trainer)

        def timed_step(trainer: Any, number: int) -> Any:
            outputs = step(trainer, number)
            if not isinstance(trainer, AdaptiveTrainer):
                clock.moments.append(time.monotonic())
            return outputs

        # Ours makes several in an iteration, and those that are CUDA graphs without nerfstudio's.
        def timed_own_step(trainer: Any, *arguments: Any, **options: Any) -> Any:
            outputs = own_step(trainer, *arguments, **options)
            clock.moments.append(time.monotonic())
            return outputs

        def timed_after(trainer: Any) -> None:
            clock.ended = time.monotonic()
            after(trainer)

        Trainer.train, Trainer.train_iteration, Trainer._after_train = timed_train, timed_step, timed_after  # type: ignore[assignment, method-assign]
        AdaptiveTrainer._train_step = timed_own_step  # type: ignore[assignment, method-assign]

    def rate(self) -> float:
        """Steps a second in the last third: before it, ops are compiled and occupancy grids filled."""
        first = 2 * len(self.moments) // 3  # of optimizer steps, whose number an iteration may hold several of
        if len(self.moments) - first < 2:
            return len(self.moments) / max(self.ended - self.began, 1e-9)
        return (len(self.moments) - 1 - first) / (self.moments[-1] - self.moments[first])


@contextlib.contextmanager
def without_lpips_weights() -> Iterator[None]:
    """Let methods be made that ask for LPIPS in their constructors, where its weights are not on this machine."""
    from torch import nn
    from torchmetrics.image import lpip

    hub = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch")) / "hub" / "checkpoints"
    if any(hub.glob("alexnet-owt-*.pth")):
        yield
        return

    class Absent(nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()

        def forward(self, *images: Any) -> Any:
            return torch.tensor(math.nan)

    real = lpip.LearnedPerceptualImagePatchSimilarity
    lpip.LearnedPerceptualImagePatchSimilarity = Absent  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        lpip.LearnedPerceptualImagePatchSimilarity = real  # type: ignore[misc]


def run(trial: Trial) -> dict[str, Any]:
    """Train, render, score."""
    clock = Clock(trial.seconds)
    folder = Path(trial.folder)
    far = str(10**9)
    method, *rest = trial.command
    sys.argv = [
        *("ns-train", method, "--output-dir", str(folder), "--experiment-name", "run", "--timestamp", "run"),
        *(
            "--vis",
            "tensorboard",
            "--viewer.quit-on-train-completion",
            "True",
            "--max-num-iterations",
            str(trial.steps),
        ),
        *("--steps-per-eval-batch", far, "--steps-per-eval-image", far, "--steps-per-eval-all-images", far),
        *("--steps-per-save", far, "--machine.device-type", trial.device),
        *("--logging.local-writer.enable", "False", "--logging.profiler", "none"),
        *(["--report", "False"] if method.startswith("aire-") else []),
        *rest,
    ]
    with without_lpips_weights():
        from nerfstudio.scripts import train as ns_train

        clock.install()
        ns_train.entrypoint()
    from aire_nerfstudio.compare.scoring import score

    trainer = clock.trainer
    if trainer.training_state != "completed":
        raise RuntimeError("error: the training was interrupted")
    each = getattr(trainer.config, "steps_per_iteration", 1)
    trained = [p for p in trainer.pipeline.model.parameters() if p.requires_grad]
    checkpoints = sorted(trainer.checkpoint_dir.glob("*.ckpt"))
    outcome: dict[str, Any] = {
        "steps": len(clock.moments),
        "iterations": len(clock.moments) // each,
        "seconds": clock.ended - clock.began,
        "rate": clock.rate() / each,
        "parameters": sum(p.numel() for p in trained),
        "weight_bytes": sum(p.numel() * p.element_size() for p in trained),
        "checkpoint_bytes": checkpoints[-1].stat().st_size if checkpoints else None,
        "memory": peak_memory(trial.device),
    }
    if trial.views:
        outcome |= score(trainer, trial.views, trial.longest_side, trial.render_seconds, _keeper(folder))
    return outcome


def peak_memory(device: str) -> int:
    """Bytes: on a CPU the highest resident size of this process and what those it started hold now; on CUDA torch's."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    own = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = 0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # gone since it was listed
            children += child.memory_info().rss
    return own + children


def _keeper(folder: Path) -> Any:
    def keep(name: str, picture: np.ndarray) -> str:
        path = folder / f"{name}.png"
        Image.fromarray(picture).save(path)
        return path.name

    return keep


def main() -> None:
    """Do the trial that a file describes and write its outcome beside it."""
    end_with_parent()
    trial = Trial(**json.loads(Path(sys.argv[1]).read_text()))
    outcome = run(trial)
    write_text(trial.result_path, json.dumps({"trial": dataclasses.asdict(trial), **outcome}, indent=1))


if __name__ == "__main__":
    main()
