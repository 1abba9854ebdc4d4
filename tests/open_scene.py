"""A scene without bounds, computed: a chequered ball and box on endless ground, hills of balls far away, a sky."""

import json
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image

# Centre, radius and colour of balls; the first stands where the cameras look.
BALLS = [
    ((0.0, 0.0, 0.0), 0.45, (0.85, 0.3, 0.2)),
    ((4.0, 1.0, 0.3), 1.0, (0.2, 0.5, 0.9)),
    ((-3.0, 5.0, 0.8), 1.6, (0.95, 0.8, 0.2)),
    ((-14.0, -6.0, 1.0), 3.0, (0.3, 0.7, 0.4)),
    ((8.0, -25.0, 2.0), 6.0, (0.6, 0.3, 0.7)),
]
GROUND, FIELD_OF_VIEW = -0.45, math.radians(70.0)


def write_open_scene(folder, side=64, train=48, test=8):
    """A folder in nerfstudio's format, ``transforms.json`` and PNG without alpha; every seventh view is for tests."""
    folder = Path(folder)
    (folder / "images").mkdir(parents=True)
    count, frames, names = train + test, [], {"train": [], "test": []}
    for index in range(count):
        pose = _pose(index, count)
        name = f"images/frame_{index:03d}.png"
        Image.fromarray(_render(pose, side)).save(folder / name)
        frames.append({"file_path": name, "transform_matrix": pose.tolist()})
        names["test" if index % (count // test) == 3 else "train"].append(name)
    focal = 0.5 * side / math.tan(0.5 * FIELD_OF_VIEW)
    meta = {
        "camera_model": "OPENCV",
        "fl_x": focal,
        "fl_y": focal,
        "cx": side / 2,
        "cy": side / 2,
        "w": side,
        "h": side,
    }
    names["val"] = names["test"]
    meta |= {"frames": frames, **{f"{split}_filenames": chosen for split, chosen in names.items()}}
    (folder / "transforms.json").write_text(json.dumps(meta, indent=1))
    return folder


def _pose(index, count):
    """On a circle around the first ball, a little up and down, looking at it."""
    angle, height = 2 * math.pi * index / count, 0.35 + 0.25 * math.sin(2.3 * index)
    eye = np.array([1.6 * math.cos(angle), 1.6 * math.sin(angle), height])
    backward = eye / np.linalg.norm(eye)
    right = np.cross([0.0, 0.0, 1.0], backward)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(backward, right), backward, eye
    return pose


def _render(pose, side, samples=3):
    fine = side * samples
    focal = 0.5 * fine / math.tan(0.5 * FIELD_OF_VIEW)
    pixel = (np.arange(fine) + 0.5 - 0.5 * fine) / focal
    x, y = np.meshgrid(pixel, -pixel)
    directions = np.stack([x, y, -np.ones_like(x)], -1).reshape(-1, 3) @ pose[:3, :3].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    colours = _trace(np.broadcast_to(pose[:3, 3], directions.shape), directions)
    image = colours.reshape(side, samples, side, samples, 3).mean((1, 3))
    return (255 * image.clip(0, 1) + 0.5).astype(np.uint8)


def _trace(origins, directions):
    sky = np.array([0.75, 0.85, 0.95]) - np.clip(directions[:, 2:], 0, 1) * np.array([0.5, 0.4, 0.15])
    nearest, colours = np.full(len(origins), np.inf), sky
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (GROUND - origins[:, 2]) / directions[:, 2]
    is_met = (distance > 0) & np.isfinite(distance)
    place = origins[is_met] + distance[is_met, None] * directions[is_met]
    # Squares that grow with the distance from the middle, so that none is smaller than a pixel for long.
    scale = np.maximum(0.5, 0.25 * np.linalg.norm(place[:, :2], axis=-1))
    ring = 2.0 ** np.floor(np.log2(scale))
    tile = np.floor(place[:, :2] / ring[:, None]).astype(int).sum(-1) % 2
    haze = np.clip(distance[is_met] / 60, 0, 1)[:, None]
    ground = np.where(tile[:, None] == 0, [0.42, 0.4, 0.36], [0.62, 0.6, 0.52])
    colours[is_met], nearest[is_met] = (1 - haze) * ground + haze * np.array([0.75, 0.85, 0.95]), distance[is_met]
    light = np.array([0.5, -0.4, 0.77])
    for centre, radius, colour in BALLS:
        towards = origins - np.array(centre)
        half, rest = (towards * directions).sum(-1), (towards**2).sum(-1) - radius**2
        root = half**2 - rest
        distance = np.where(root > 0, -half - np.sqrt(np.maximum(root, 0)), np.inf)
        is_met = (distance > 0) & (distance < nearest)
        normal = (towards[is_met] + distance[is_met, None] * directions[is_met]) / radius
        stripes = 0.8 + 0.2 * np.sign(np.sin(7 * normal[:, 2:]))
        shade = 0.45 + 0.55 * np.clip((normal * light).sum(-1, keepdims=True), 0, 1)
        colours[is_met], nearest[is_met] = np.array(colour) * stripes * shade, distance[is_met]
    return colours


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: give the folder to write the scene into: python tests/open_scene.py FOLDER")
    write_open_scene(sys.argv[1], side=96, train=56)
