"""Blender-format scenes, checked before use; the demo scene where no data is named."""

from __future__ import annotations

import json
import math
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from PIL import Image

from aire_nerfstudio.data.captures import check_mode
from aire_nerfstudio.data.demo_scene import demo_path, ensure_demo_scene
from aire_nerfstudio.errors import InputError, exit_on_bad_input, first_line
from aire_nerfstudio.files import OF_A_RUN, as_looked_for


@dataclass
class BlenderSceneConfig(DataParserConfig):
    """A folder in Blender's (NeRF-synthetic) format; without --data the built-in demo scene."""

    _target: type = field(default_factory=lambda: BlenderScene)
    data: Path = field(default_factory=demo_path)
    """Folder with transforms_train.json, transforms_val.json, transforms_test.json and the images."""
    half_side: float = 1.25
    """Half the side of the cube that holds the scene, in the file's units (torch-ngp: bound 1 at scale 0.8)."""

    def is_demo(self) -> bool:
        """Whether this is the built-in scene."""
        return Path(self.data) == demo_path()


class BlenderScene(DataParser):
    """Reads what :class:`BlenderSceneConfig` names. RGBA images stay RGBA; the model chooses the background."""

    config: BlenderSceneConfig

    @exit_on_bad_input
    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        if self.config.is_demo():
            ensure_demo_scene()
        scene = read_blender_split(Path(self.config.data), split)
        half = self.config.half_side
        if not (math.isfinite(half) and half > 0):
            raise InputError(f"half_side is {half}; it must be positive")
        return DataparserOutputs(
            image_filenames=scene.images,
            cameras=scene.cameras,
            alpha_color=None,
            scene_box=SceneBox(aabb=torch.tensor([[-half] * 3, [half] * 3])),
        )


@dataclass(frozen=True)
class BlenderSplit:
    """One split: image files and their cameras, in the same order."""

    images: list[Path]
    cameras: Cameras


def read_blender_split(folder: Path, split: str) -> BlenderSplit:
    """Read and check one split of a Blender-format scene.

    Args:
        folder: the scene.
        split: ``train``, ``val`` or ``test``.

    Raises:
        InputError: a missing or empty folder or file, no frames, a pose that is no finite 4 x 4 matrix, an image that
            is missing, cannot be decoded, is of a kind that nerfstudio misreads, or differs in size or alpha.
    """
    if not folder.exists():
        raise InputError(
            f"the data folder {as_looked_for(folder)} does not exist; give a Blender-format scene with --data{OF_A_RUN}"
        )
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; --data takes the folder that holds transforms_train.json")
    if not any(folder.iterdir()):
        raise InputError(f"the data folder {folder} is empty; it must hold transforms_{split}.json and images")
    path = folder / f"transforms_{split}.json"
    if not path.is_file():
        hint = ""
        if (folder / "transforms.json").is_file():
            hint = "; transforms.json is nerfstudio's format: put `nerfstudio-data --data ...` behind the other options"
        raise InputError(f"{path} does not exist; it must list the {split} views{hint}")
    try:
        meta = json.loads(path.read_text("utf8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {first_line(error)}") from error
    frames = meta.get("frames") if isinstance(meta, dict) else None
    if not isinstance(frames, list) or not frames:
        raise InputError(f"{path} has no frames; it must list at least one view under 'frames'")
    angle = meta.get("camera_angle_x")
    if not isinstance(angle, (int, float)) or isinstance(angle, bool) or not 0 < angle < math.pi:
        raise InputError(f"{path}: camera_angle_x is {angle}; it must be an angle in (0, pi) radians")

    images, poses, size, has_alpha = [], [], None, None
    for index, frame in enumerate(frames):
        where = f"{path}, frame {index}"
        poses.append(_pose(frame, where))
        image = _image_path(frame, folder, where)
        found, mode = _checked(image)
        if size is not None and found != size:
            raise InputError(
                f"{image} is {found[0]} x {found[1]} pixels and {images[0]} {size[0]} x {size[1]}; they must agree"
            )
        if has_alpha is not None and has_alpha != (mode == "RGBA"):
            raise InputError(f"{image} is {mode} and {images[0]} is not alike; all pictures must have alpha, or none")
        size, has_alpha = found, mode == "RGBA"
        images.append(image)
    assert size is not None
    width, height = size
    # nerfstudio keeps them all, as float32.
    needed, free = len(images) * width * height * 16, psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"{path}: {len(images)} images of {width} x {height} pixels take {needed / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB are free; leave some out or make them smaller"
        )
    focal = 0.5 * width / math.tan(0.5 * angle)
    cameras = Cameras(
        camera_to_worlds=torch.from_numpy(np.stack(poses)[:, :3]),
        fx=focal,
        fy=focal,
        cx=width / 2,
        cy=height / 2,
        width=width,
        height=height,
        camera_type=CameraType.PERSPECTIVE,
    )
    return BlenderSplit(images, cameras)


def _pose(frame: object, where: str) -> np.ndarray:
    """The frame's camera-to-world matrix, float32 ``[4, 4]``."""
    matrix = frame.get("transform_matrix") if isinstance(frame, dict) else None
    try:
        pose = np.array(matrix, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: transform_matrix is not a matrix of numbers") from error
    if pose.shape != (4, 4):
        raise InputError(f"{where}: transform_matrix has shape {list(pose.shape)}; it must be 4 x 4")
    if not np.isfinite(pose).all():
        raise InputError(f"{where}: transform_matrix has values that are not finite; fix or remove the frame")
    return pose


def _image_path(frame: dict, folder: Path, where: str) -> Path:
    """The frame's image; ``.png`` is added where the name has no suffix, as Blender's scenes leave it out."""
    name = frame.get("file_path")
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: file_path is {name!r}; it must name an image")
    # By its letters: a link in the folder was put there by its owner.
    root = os.path.abspath(folder)
    place = os.path.normpath(os.path.join(root, name.replace("\\", "/")))
    if not place.startswith(root + os.sep):
        raise InputError(
            f"{where}: file_path {name!r} leads out of the scene's folder; put the image, or a link to it, inside"
        )
    path = folder / os.path.relpath(place, root)
    try:
        for candidate in (path.with_name(path.name + ".png"), path):
            if candidate.is_file():
                return candidate
    except (OSError, ValueError) as error:  # too long a name, a zero byte
        raise InputError(f"{where}: file_path {name[:80]!r} cannot be a file's name ({first_line(error)})") from error
    raise InputError(f"{where}: the image {path.with_name(path.name + '.png')} does not exist")


def _checked(path: Path) -> tuple[tuple[int, int], str]:
    """Width and height of an image, and its mode, after decoding it whole."""
    try:
        with warnings.catch_warnings():
            # What is larger than Pillow thinks safe is refused, not warned of.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                size, mode = image.size, image.mode
    except Exception as error:
        raise InputError(f"{path} cannot be decoded ({first_line(error)}); replace the file") from error
    check_mode(path, mode)
    return size, mode
