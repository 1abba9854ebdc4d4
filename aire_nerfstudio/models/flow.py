"""Mean curvature flow as an adaptive sine network over space and time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer_elements import ViewerSlider
from torch import Tensor

from aire_nerfstudio.adaptation import surgery
from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.base import Probe
from aire_nerfstudio.checkpoint_file import read_checkpoint
from aire_nerfstudio.errors import InputError, first_line
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.files import as_looked_for
from aire_nerfstudio.losses import FlowWeights, flow_loss
from aire_nerfstudio.models.adaptive import PROBE_POINTS
from aire_nerfstudio.models.checkpoint_checks import check_chain
from aire_nerfstudio.models.sdf import SdfModel, SurfaceModelConfig
from aire_nerfstudio.report.portrait import Portrait

# By how much, of its scale, a shape may lie elsewhere or be larger and still be the same.
SAME_SHAPE = 0.01
OMEGAS = ("first_omega", "hidden_omega")
DEFAULT_OMEGA = 30.0


@dataclass
class FlowModelConfig(SurfaceModelConfig):
    """``f_t = alpha |grad f| div(grad f / |grad f|)`` from a signed distance on; the paper's network and schedule."""

    _target: type = field(default_factory=lambda: FlowModel)
    adaptation: AireConfig = field(
        default_factory=lambda: AireConfig(
            unit="percent", decay_start=20.0, prune_at=70.0, prune_layers=(0, 1), prune_fraction=0.25
        )
    )
    """When and how much the network changes."""
    first_omega: float | None = None  # type: ignore[assignment] # known once the model is made
    """w0 of the first layer; None: that of load_sdf, 30 without it."""
    hidden_omega: float | None = None  # type: ignore[assignment]
    """w0 of the other layers; None: likewise."""
    alpha: float = 1e-3
    """Speed of the flow: a sphere of radius r shrinks as r' = -2 alpha / r, in units of the cube [-1, 1]^3."""
    load_sdf: Path | None = None
    """A checkpoint, or a run's folder, of an aire-sdf method with the same activation: the flow starts from its
    network, whose widths and w0 it takes over. Needed for training alone."""
    data_weight: float = FlowWeights.data
    """Of the mean squared errors of f at time 0, on the surface and off it."""
    normal_weight: float = FlowWeights.normal
    """Of the mean of 1 - cos(grad f, n) on the surface at time 0."""
    flow_weight: float = FlowWeights.flow
    """Of the mean squared residual of the flow's equation."""
    time: float = 0.0
    """The moment that is rendered, scored and exported."""
    shows_error: bool = False
    """Render the distance from the surface at time 0."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a run's config.yml; before 2026-11-27 a surface's weights stood in a flow's, too, and were not read."""
        if "flow_normal_weight" in state:
            gone = ("flow_normal_weight", "surface_weight", "distance_weight", "eikonal_weight")
            state = {**state, "normal_weight": state["flow_normal_weight"]}
            state = {name: value for name, value in state.items() if name not in gone}
        self.__dict__.update(state)

    def check(self) -> None:
        """As a surface's, and what a flow cannot be."""
        super().check()
        if self.activation == "spder":
            raise InputError("a flow needs second derivatives, which SPDER's near 0 do not bound; use siren or finer")
        if self.time < 0:
            raise InputError(f"time is {self.time}; it must be 0 or more")

    def check_training(self, device_type: str) -> None:
        """As every adaptive model's; the file to start from is looked at, too."""
        super().check_training(device_type)
        if self.load_sdf is not None:
            surface_weights(self.load_sdf, self)

    def resolved(self) -> FlowModelConfig:
        """With what is taken over from a surface: its network's widths and w0, or w0's default."""
        return self.taking_over(None if self.load_sdf is None else surface_weights(self.load_sdf, self))

    def taking_over(self, start: StartingSurface | None) -> FlowModelConfig:
        """As :meth:`resolved`, of a surface that has been read."""
        if start is not None:
            return replace(self, widths=start.widths, first_omega=start.first_omega, hidden_omega=start.hidden_omega)
        first, hidden = (DEFAULT_OMEGA if w0 is None else w0 for w0 in (self.first_omega, self.hidden_omega))
        return replace(self, first_omega=first, hidden_omega=hidden)


class FlowModel(SdfModel):
    """``(x, y, z, t) -> f``, whose level set 0 at time t is the surface then."""

    config: FlowModelConfig
    dims = 4
    network_name = "flow"
    reported = ("shows_parts",)

    def populate_modules(self) -> None:
        """Make the network; take over that of a surface where one is given."""
        # Weights of a trained flow are in its checkpoint, widths and w0 in its config.yml.
        config = self.config
        start = None
        if config.load_sdf is not None and self.metadata().get("is_training", True):
            start = surface_weights(config.load_sdf, config)
        if start is not None or config.first_omega is None or config.hidden_omega is None:
            known = config.resolved() if start is None else config.taking_over(start)
            config.widths, config.first_omega, config.hidden_omega = known.widths, known.first_omega, known.hidden_omega
        self.duration = float(self.metadata().get("duration", 0.2))
        if not 0 <= config.time <= self.duration:
            raise InputError(f"time is {config.time}; it must lie in [0, {self.duration}]")
        if start is not None:
            self._check_shape(start)
        super().populate_modules()
        if start is not None:
            CONSOLE.print(
                f"Starting from the surface of {config.load_sdf}: widths {list(start.widths)}, w0 "
                f"{start.first_omega:g} and {start.hidden_omega:g}",
                markup=False, soft_wrap=True,
            )  # fmt: skip
            weights = start.weights
            if self.config.variant not in ("large", "aire", "aire_early", "aire_rounds", "weight_decay", "no_decay"):
                raise InputError(f"the variant {self.config.variant} starts at another size; it cannot load an SDF")
            for module in (self.field, *([] if self.field_average is None else [self.field_average])):
                for name, parameter in module.named_parameters():
                    surgery.resize_to(parameter, weights[name].shape)
                module.load_state_dict(weights)
        self.time_slider = self._slider(config.time)

    def _slider(self, moment: float) -> ViewerSlider:
        step = self.duration / 100
        return ViewerSlider("Time", moment, 0.0, self.duration, step, hint="Moment of the flow")

    def __getstate__(self) -> dict[str, Any]:
        """Of the slider, the moment."""
        return {**super().__getstate__(), "time_slider": self.time}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.time_slider = self._slider(state["time_slider"])

    def _check_shape(self, start: StartingSurface) -> None:
        """Refuse the network of another shape: it would be pulled away from itself."""
        surface, config = self.metadata()["surface"], self.config
        if not is_same_place(start.centre, start.scale, surface.centre, surface.scale):
            theirs, ours = (
                f"centre {np.round(shape.centre, 6).tolist()}, scale {shape.scale:.6g}" for shape in (start, surface)
            )
            raise InputError(
                f"load_sdf {config.load_sdf} was trained on a shape of another place or size than --data names "
                f"({theirs}; here {ours}); train it on this one"
            )

    @property
    def time(self) -> float:
        """The moment that is shown, in [0, duration]; while a camera of another looks, its own."""
        asked = getattr(self._rendering, "moment", None)
        return float(self.time_slider.value) if asked is None else asked

    @time.setter
    def time(self, moment: float) -> None:
        if not 0 <= moment <= self.duration:
            raise InputError(f"time is {moment}; it must lie in [0, {self.duration}]")
        self.time_slider.value = moment

    def _moment(self) -> float:
        return self.time

    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """See nerfstudio; at the camera's time where it has one: in [0, 1], the share of the flow's duration.

        ``render_time`` of a camera path comes here so.

        Raises:
            InputError: the time is out of range.
        """
        self._rendering.moment = _moment_of(camera, self.duration)
        try:
            return super().get_outputs_for_camera(camera, obb_box)
        finally:
            self._rendering.moment = None

    def network_inputs(self, points: Tensor) -> Tensor:
        """Points at the moment that is shown, ``[N, 4]``."""
        return torch.nn.functional.pad(points, (0, 1), value=self.time)

    def without_data(self) -> dict[str, Any]:
        """As a surface's, and how long it flows; what it began from is in its weights."""
        return {**super().without_data(), "duration": self.duration, "is_training": False}

    def probe(self) -> Probe:
        """Outputs at points near and off the surface, at random times."""

        def outputs() -> list[Tensor]:
            assert self._training_points is not None
            batch = self._training_points(self.adaptation.step)
            points = torch.cat([batch.on[: PROBE_POINTS // 2], batch.off[: PROBE_POINTS // 2]])
            times = self.duration * torch.rand(len(points), 1, device=points.device)
            return self.field.layer_outputs(torch.cat([points, times], dim=1))

        return Probe(outputs)

    def portraits(self, datamanager: Any, count: int, longest_side: int | None) -> list[Portrait]:
        """One view at the beginning, the middle and the end of the flow."""
        shown, made = self.time, []
        try:
            for moment in (0.0, self.duration / 2, self.duration):
                self.time = moment
                for portrait in super().portraits(datamanager, 1, longest_side):
                    # The truth is that of time 0.
                    scores = portrait.scores if moment == 0 else {}
                    made.append(replace(portrait, title=f"time {moment:g}, {portrait.title}", scores=scores))
        finally:
            self.time = shown
        return made

    # --- training --------------------------------------------------------------------------------------------------

    def point_loss(self, network: SineMLP, points: Tensor, normals: Tensor, distances: Tensor) -> dict[str, Tensor]:
        """The surface at time 0 and the flow's equation: see :func:`~aire_nerfstudio.losses.flow_loss`."""
        config = self.config
        weights = FlowWeights(config.data_weight, config.normal_weight, config.flow_weight)
        return flow_loss(network, points, normals, distances, config.alpha, weights)


def _moment_of(camera: Cameras, duration: float) -> float | None:
    """The moment at which a camera sees; None: at that of the slider."""
    if camera.times is None:
        return None
    share = float(camera.times.flatten()[0])
    if not 0 <= share <= 1:
        raise InputError(f"the camera's time is {share}; it must lie in [0, 1], the share of the flow's duration")
    # The viewer's cameras, which alone are numbered, are all at time 0.
    if share == 0 and "cam_idx" in (camera.metadata or {}):
        return None
    return share * duration


def is_same_place(centre: np.ndarray, scale: float, other_centre: np.ndarray, other_scale: float) -> bool:
    """Whether two shapes, with their cubes' middles ``[3]`` and sizes in the file's units, may be one."""
    moved = float(np.abs(centre - other_centre).max()) / other_scale
    return moved < SAME_SHAPE and abs(scale / other_scale - 1) < SAME_SHAPE


class StartingSurface(NamedTuple):
    """A learned surface: its network's weights by name, its w0, and where its shape lies (``data.surface.Surface``)."""

    weights: dict[str, Tensor]
    first_omega: float
    hidden_omega: float
    centre: np.ndarray
    scale: float

    @property
    def widths(self) -> tuple[int, ...]:
        """Of its sine layers."""
        return tuple(self.weights[f"layers.{index}.weight"].shape[0] for index in range(len(self.weights) // 2 - 1))


def surface_weights(source: Path, config: FlowModelConfig) -> StartingSurface:
    """The network of a surface as one of space-time: its first layer gets a column of zeros for the time.

    Args:
        source: a checkpoint file, or a run's folder, of which the last checkpoint is taken.
        config: activation, and w0 where it is given, that must be the same.

    Raises:
        InputError: no such checkpoint, of another method, or of another activation or w0.
    """
    path = source
    if source.is_dir():
        found = sorted((source / "nerfstudio_models").glob("step-*.ckpt")) or sorted(source.glob("step-*.ckpt"))
        if not found:
            raise InputError(f"load_sdf {source} holds no step-*.ckpt; give a run's folder or a checkpoint")
        path = found[-1]
    if not path.is_file():
        raise InputError(
            f"load_sdf {as_looked_for(path)} does not exist; give a run's folder or a checkpoint (a run that "
            "is resumed needs none: leave it out)"
        )
    try:
        state = read_checkpoint(path)["pipeline"]
        settings = dict(state["_model._extra_state"]["settings"])
    except Exception as error:
        raise InputError(f"load_sdf {path} is no checkpoint of an aire-sdf method ({first_line(error)})") from error
    prefix = (
        "_model.field_average." if any(key.startswith("_model.field_average.") for key in state) else "_model.field."
    )
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    first = weights.get("layers.0.weight")
    is_surface = isinstance(first, Tensor) and first.dim() == 2 and first.shape[1] == 3
    is_surface = is_surface and {"_model.centre", "_model.scale"} <= state.keys()
    if not is_surface or set(weights) != {
        f"layers.{i}.{kind}" for i in range(len(weights) // 2) for kind in ("weight", "bias")
    }:
        raise InputError(f"load_sdf {path} is of another method; an aire-sdf run is needed")
    check_chain(weights, "layers", len(weights) // 2, 3, 1)
    assert first is not None
    for name in ("activation", *OMEGAS):
        theirs, wanted = settings.get(name), getattr(config, name)
        if theirs != wanted and wanted is not None:
            raise InputError(
                f"load_sdf {path} was trained with {name} {theirs} and the flow has {wanted}; "
                f"set --pipeline.model.{name.replace('_', '-')} {theirs}"
            )
    first_omega, hidden_omega = (_omega(path, settings, name) for name in OMEGAS)
    weights["layers.0.weight"] = torch.nn.functional.pad(first, (0, 1))
    centre, scale = state["_model.centre"].double().numpy(), float(state["_model.scale"])
    return StartingSurface(weights, first_omega, hidden_omega, centre, scale)


def _omega(path: Path, settings: Mapping[str, Any], name: str) -> float:
    value = settings.get(name)
    if not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise InputError(f"load_sdf {path} has the {name} {value}; it is damaged")
    return float(value)
