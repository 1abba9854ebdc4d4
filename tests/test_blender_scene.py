"""The demo scene is consistent, and every bad scene is refused in one line that names file and fix."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from aire_nerfstudio.data.blender_scene import read_blender_split
from aire_nerfstudio.data.demo_scene import SPLITS, bunny_path, ensure_demo_scene
from aire_nerfstudio.errors import InputError


def _rays(cameras, index, pixels):
    """Origins and directions through pixel centres, by the pinhole formula alone."""
    pose = cameras.camera_to_worlds[index].double().numpy()
    x = (pixels[:, 1] + 0.5 - cameras.cx[index].item()) / cameras.fx[index].item()
    y = -(pixels[:, 0] + 0.5 - cameras.cy[index].item()) / cameras.fy[index].item()
    directions = np.stack([x, y, -np.ones_like(x)], -1) @ pose[:, :3].T
    return np.broadcast_to(pose[:, 3], directions.shape), directions


def test_demo_views_agree_with_their_cameras(demo):
    """Where alpha is full, the ray through the pixel meets the bunny; where it is empty, it does not."""
    import trimesh

    mesh = trimesh.load_mesh(bunny_path())
    vertices = np.asarray(mesh.vertices)[:, [0, 2, 1]] * np.array([1.0, -1.0, 1.0])
    vertices -= (vertices.max(0) + vertices.min(0)) / 2
    vertices /= np.abs(vertices).max()
    mesh = trimesh.Trimesh(vertices, mesh.faces, process=False)
    for split, count in SPLITS.items():
        scene = read_blender_split(demo, split)
        assert len(scene.images) == count
        alpha = np.asarray(Image.open(scene.images[count // 2]))[..., 3]
        pixels = np.argwhere(np.ones_like(alpha))[::31]
        hits = mesh.ray.intersects_any(*_rays(scene.cameras, count // 2, pixels))
        values = alpha[pixels[:, 0], pixels[:, 1]]
        assert hits[values == 255].all()
        assert not hits[values == 0].any()
        assert (values == 255).sum() > 50


def test_demo_fits_its_frames_and_is_made_once(demo):
    for path in sorted((demo / "train").glob("*.png")):
        alpha = np.asarray(Image.open(path))[..., 3]
        border = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
        assert not border.any(), f"{path} is cut off"
    before = (demo / "transforms_test.json").stat().st_mtime_ns
    assert ensure_demo_scene() == demo
    assert (demo / "transforms_test.json").stat().st_mtime_ns == before
    assert not [p for p in demo.parent.iterdir() if p.name.startswith(".")]


def test_lego_reads_as_the_benchmark_defines_it(lego):
    train, test = read_blender_split(lego, "train"), read_blender_split(lego, "test")
    assert (len(train.images), len(test.images)) == (25, 75)
    angle = json.loads((lego / "transforms_train.json").read_text())["camera_angle_x"]
    assert train.cameras.fx[0].item() == pytest.approx(100 / math.tan(angle / 2))


@pytest.fixture
def scene(tmp_path):
    """A sound two-view scene to be damaged."""
    Image.fromarray(np.full((6, 5, 4), 128, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((6, 5, 4), 128, np.uint8)).save(tmp_path / "b.png")
    frames = [{"file_path": f"./{n}", "transform_matrix": torch.eye(4).tolist()} for n in ("a", "b.png")]
    (tmp_path / "transforms_train.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": frames}))
    return tmp_path


def _edit(scene, change):
    path = scene / "transforms_train.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def test_a_small_scene_with_odd_sides_reads(scene):
    split = read_blender_split(scene, "train")
    assert [p.name for p in split.images] == ["a.png", "b.png"]
    assert (split.cameras.height[0].item(), split.cameras.width[0].item()) == (6, 5)
    assert (split.cameras.cx[0].item(), split.cameras.cy[0].item()) == (2.5, 3.0)


DAMAGES = {
    "does not exist; give": lambda s: shutil.rmtree(s),
    "is empty": lambda s: [p.unlink() for p in s.iterdir()],
    "has no frames": lambda s: _edit(s, lambda m: m.update(frames=[])),
    "under 'frames'": lambda s: _edit(s, lambda m: m.pop("frames")),
    "camera_angle_x is None": lambda s: _edit(s, lambda m: m.pop("camera_angle_x")),
    "camera_angle_x is 7": lambda s: _edit(s, lambda m: m.update(camera_angle_x=7)),
    "frame 1: transform_matrix has values that are not finite": lambda s: _edit(
        s, lambda m: m["frames"][1]["transform_matrix"][0].__setitem__(3, float("nan"))
    ),
    "must be 4 x 4": lambda s: _edit(s, lambda m: m["frames"][0].update(transform_matrix=[[1, 2], [3, 4]])),
    "is not a matrix": lambda s: _edit(s, lambda m: m["frames"][0].update(transform_matrix="identity")),
    "file_path is None": lambda s: _edit(s, lambda m: m["frames"][0].pop("file_path")),
    "c.png does not exist": lambda s: _edit(s, lambda m: m["frames"][0].update(file_path="c")),
    "cannot be decoded": lambda s: (s / "a.png").write_bytes((s / "a.png").read_bytes()[:40]),
    "is a picture of mode P": lambda s: Image.new("P", (5, 6)).save(s / "b.png"),
    "is a picture of mode I;16": lambda s: Image.new("I;16", (5, 6)).save(s / "b.png"),
    "is a picture of mode 1": lambda s: Image.new("1", (5, 6)).save(s / "b.png"),
    "all pictures must have alpha, or none": lambda s: Image.new("RGB", (5, 6)).save(s / "b.png"),
    "they must agree": lambda s: Image.new("RGBA", (9, 9)).save(s / "b.png"),
    "is not valid JSON": lambda s: (s / "transforms_train.json").write_text("{"),
    "nerfstudio's format": lambda s: (s / "transforms_train.json").rename(s / "transforms.json"),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_scene_is_refused_in_one_line(scene, message):
    DAMAGES[message](scene)
    with pytest.raises(InputError) as caught:
        read_blender_split(scene, "train")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_in_place_of_the_folder(scene):
    with pytest.raises(InputError, match="is a file"):
        read_blender_split(scene / "a.png", "train")
