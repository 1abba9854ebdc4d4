"""What a run learned as a function, for programs without nerfstudio and without the data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aire_nerfstudio.checkpoint_file import read_checkpoint
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.sine_mlp import SineMLP, widths_in
from aire_nerfstudio.report.facts import STATE_KEY, TASKS, checkpoint_named

# What evaluation takes first: the weights' average, where the run has one.
PLACES = ("_model.field_average.", "_model.field.")


@dataclass(frozen=True)
class LearnedFunction:
    """The network of a run, as it is evaluated, and the coordinates that it is asked in.

    Attributes:
        task: ``image``, ``surface`` or ``flow``.
        network: on the CPU, in evaluation mode; takes the cube's coordinates (:meth:`inputs`).
        centre: of a surface's file, in its units, float64 ``[3]``; zeros of an image.
        scale: the file's units to one of the cube; 1 of an image.
    """

    task: str
    network: SineMLP
    centre: Tensor
    scale: float

    def inputs(self, points: Tensor) -> Tensor:
        """What the network takes for ``points``, of its own type and on its device.

        Args:
            points: image: ``[N, 2]``, x to the right and y **up**, the picture's longer side from -1 to 1, its outline
                (not the outermost pixels' centres) at the ends. Surface: ``[N, 3]`` in the file's units. Flow:
                ``[N, 4]``, the same and the time.

        Raises:
            InputError: another number of coordinates.
        """
        d = self.network.affines()[0].weight.shape[1]
        if points.dim() != 2 or points.shape[1] != d:
            raise InputError(f"points are {list(points.shape)}; a learned {self.task} takes [N, {d}]")
        if self.task != "image":
            space = (points[:, :3].double() - self.centre.to(points.device)) / self.scale
            points = torch.cat([space, points[:, 3:].double()], -1)
        return points.to(self.network.affines()[0].weight)

    def __call__(self, points: Tensor) -> Tensor:
        """The value at ``points`` (as :meth:`inputs` takes them); gradients reach them.

        Returns:
            Image: ``[N, C]`` in [0, 1], colours multiplied by alpha where there is one. Surface and flow: signed
            distances ``[N]`` in the file's units, negative inside.
        """
        y = self.network(self.inputs(points))
        return ((y + 1) / 2).clamp(0, 1) if self.task == "image" else self.scale * y.squeeze(-1)


def load_network(run: Path | str) -> LearnedFunction:
    """Read what a run learned from its checkpoint; nothing of the run is executed.

    Args:
        run: a run's folder, whose last checkpoint is taken, its ``config.yml``, or a ``step-*.ckpt``.

    Raises:
        InputError: there is no checkpoint, or it is not of an image, a surface or a flow.
    """
    path = checkpoint_named(Path(run))
    saved = read_checkpoint(path)["pipeline"]
    prefix = next((place for place in PLACES if f"{place}layers.0.weight" in saved), None)
    if prefix is None or STATE_KEY not in saved:
        raise InputError(f"{path} is of no image, surface or flow of this package, which load_network reads")
    weights = {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}
    settings = saved[STATE_KEY]["settings"]
    d, out = weights["layers.0.weight"].shape[1], list(weights.values())[-1].shape[0]
    network = SineMLP(
        d, widths_in(weights), out, settings["activation"], settings["first_omega"], settings["hidden_omega"]
    )
    network.load_state_dict(weights)
    centre = saved.get("_model.centre", torch.zeros(3, dtype=torch.float64))
    scale = float(saved.get("_model.scale", 1.0))
    return LearnedFunction(TASKS[d], network.eval().requires_grad_(False), centre, scale)
