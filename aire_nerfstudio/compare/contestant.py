"""Which methods take part, and the options that a scene and a machine ask of them."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.machine import machine

# Methods whose kernels exist for CUDA alone, and why.
NEEDS_CUDA = {
    "instant-ngp": "it marches with nerfacc's CUDA kernels",
    "instant-ngp-bounded": "it marches with nerfacc's CUDA kernels",
    "splatfacto": "it rasterises with gsplat's CUDA kernels",
    "splatfacto-big": "it rasterises with gsplat's CUDA kernels",
    "nerfacto-big": "its networks are tiny-cuda-nn's",
    "nerfacto-huge": "its networks are tiny-cuda-nn's",
}
# What nerfstudio's own benchmark on Blender scenes sets: a bounded scene on white, without per-image appearance.
BOUNDED_NERFACTO = (
    "--pipeline.model.background-color white --pipeline.model.proposal-initial-sampler uniform "
    "--pipeline.model.near-plane 2 --pipeline.model.far-plane 6 --pipeline.model.camera-optimizer.mode off "
    "--pipeline.model.use-average-appearance-embedding False --pipeline.model.distortion-loss-mult 0 "
    "--pipeline.model.disable-scene-contraction True"
)
ON_BLENDER = {
    "nerfacto": BOUNDED_NERFACTO,
    "nerfacto-big": BOUNDED_NERFACTO,
    "nerfacto-huge": BOUNDED_NERFACTO,
    "instant-ngp": "--pipeline.model.background-color white",
    "instant-ngp-bounded": "--pipeline.model.background-color white",
    "splatfacto": "--pipeline.model.background-color white",
    "splatfacto-big": "--pipeline.model.background-color white",
}
# Sizes of scripts/lego_cpu.sh: the paper's would see few steps on a CPU.
ON_CPU = (
    "--pipeline.datamanager.train-num-rays-per-batch 1024 --optimizers.fields.optimizer.lr 1e-3 "
    "--pipeline.model.density-widths 96 96 96 --pipeline.model.colour-widths 64 64 --pipeline.model.n-features 48 "
    "--pipeline.model.hidden-omega 20 --pipeline.model.grid-resolution 96 --pipeline.model.max-steps-per-ray 320 "
    "--pipeline.model.grid-decay 0.8"
)
NERF_METHODS = ("aire-siren", "aire-finer", "aire-spder")
# What names a scene's format, and the dataparser that reads it.
FORMATS = {"transforms_train.json": "blender-data", "transforms.json": "nerfstudio-data"}


@dataclass(frozen=True)
class Contestant:
    """A method with its options.

    Attributes:
        label: its name in the tables.
        method: as ``ns-train`` knows it.
        options: for ``ns-train``, given by whoever compares.
    """

    label: str
    method: str
    options: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether the method's schedule spans the run, so that a time must first become a number of steps."""
        return self.method in NERF_METHODS

    def command(self, scene: Path, device: str) -> list[str]:
        """Arguments of ``ns-train``: method, options, and how the scene is read."""
        parser = scene_format(scene)
        preset = ON_BLENDER.get(self.method, "") if parser == "blender-data" else ""
        if self.is_ours and device == "cpu":
            preset = ON_CPU  # what is given comes later and wins
        words = [self.method, *shlex.split(preset), *self.options]
        if self.is_ours and parser == "blender-data":
            return [*words, "--data", str(scene)]
        return [*words, parser, "--data", str(scene)]

    def obstacle(self, device: str) -> str | None:
        """Why it cannot run on this device, where that is known beforehand."""
        if device == "cpu" and self.method in NEEDS_CUDA:
            return f"needs CUDA: {NEEDS_CUDA[self.method]}"
        return None


def contestant(text: str, known: set[str]) -> Contestant:
    """Read ``METHOD``, ``METHOD --OPTIONS ...`` or ``LABEL=METHOD --OPTIONS ...``.

    Raises:
        InputError: a method that nerfstudio does not know.
    """
    label, equals, rest = text.partition("=")
    if not equals or "--" in label:
        label, rest = text, text
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise InputError(f"--methods {text!r} cannot be read ({error}); mind its quotes") from error
    if not words or not label.strip():
        raise InputError(
            f"--methods {text!r}: name a method, such as aire-siren, or a label and a method: big=aire-siren"
        )
    label, method = label.strip(), words[0]
    if method not in known:
        raise InputError(f"--methods {text!r}: nerfstudio knows no method {method!r}; ns-train --help lists them")
    return Contestant(label, method, tuple(words[1:]))


def scene_format(scene: Path) -> str:
    """The dataparser that reads a scene.

    Raises:
        InputError: neither of the formats.
    """
    for name, parser in FORMATS.items():
        if (scene / name).is_file():
            return parser
    raise InputError(
        f"--data {scene} holds neither {' nor '.join(FORMATS)}; give a scene in Blender's or nerfstudio's format"
    )


def circumstances(scene: Path, device: str, results: Sequence[Path] = ()) -> dict[str, str]:
    """What a result depends on beside its command: the scene's files (without results), versions, device."""
    seen = hashlib.sha256()
    for path in sorted(scene.glob("transforms*.json")):
        seen.update(path.read_bytes())
    left_out = [folder.resolve() for folder in results]
    for path in sorted(p for p in scene.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg")):
        if not path.is_file() or any(path.resolve().is_relative_to(folder) for folder in left_out):
            continue
        status = path.stat()
        seen.update(f"{path.relative_to(scene)} {status.st_size} {status.st_mtime_ns}".encode())
    versions = {name: metadata.version(name) for name in ("aire-nerfstudio", "nerfstudio")}
    return {"scene": seen.hexdigest(), **versions, **machine(device)}


def device_here() -> str:
    """``cuda`` where there is one, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"
