"""Rays and pixels of a batch: nerfstudio's, in fewer operations, and on a GPU without a wait."""

import argparse
import json
import math
import random
import re
import shutil

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.pixel_samplers import (
    PairPixelSampler,
    PairPixelSamplerConfig,
    PatchPixelSampler,
    PixelSamplerConfig,
)
from nerfstudio.model_components.ray_generators import RayGenerator
from PIL import Image

from aire_nerfstudio.data import perspective_rays
from aire_nerfstudio.data.blender_scene import BlenderSceneConfig
from aire_nerfstudio.data.captures import reading
from aire_nerfstudio.data.perspective_rays import PerspectiveRays, suits
from aire_nerfstudio.data.rays_manager import RaysDataManagerConfig, ResidentPixelSampler
from aire_nerfstudio.errors import exit_on_bad_input

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def _cameras(count=3, number=torch.float32, **others):
    poses = torch.linalg.qr(torch.randn(count, 3, 3))[0]
    drawn = {"fx": 30 + torch.rand(count, 1), "fy": 50 + torch.rand(count, 1), "cy": 4 + torch.rand(count, 1)}
    sizes = {"cx": 9.5, **{name: value.to(number) for name, value in drawn.items()}}
    return Cameras(torch.cat([poses, torch.randn(count, 3, 1)], -1), **sizes, width=19, height=7, **others)


def _indices(count, cameras):
    sizes = torch.tensor([len(cameras), 7, 19])
    return (torch.rand(count, 3) * sizes).long()


PHONE = torch.tensor([0.06, -0.08, 0, 0, -0.001, 0.0002])
DISTORTIONS = {
    "none": None,
    "zero": torch.zeros(6),
    "of one kind": PHONE,
    "of each": torch.stack([PHONE, 3 * PHONE, torch.zeros(6)]),
    "strong": torch.tensor([0.3, 0.2, -0.1, 0.05, 0.02, -0.03]),
}


@pytest.mark.parametrize("count", [0, 1, 257])
@pytest.mark.parametrize("distortion", DISTORTIONS)
@pytest.mark.parametrize("number", [torch.float32, torch.float64])
@pytest.mark.parametrize("fits", [True, False])
def test_rays_are_nerfstudios_to_the_bit(count, distortion, number, fits, monkeypatch):
    monkeypatch.setattr(perspective_rays, "CHUNK", 50)
    monkeypatch.setattr(perspective_rays, "MOST_PIXELS", 3 * 8 * 20 if fits else 19)
    cameras = _cameras(distortion_params=DISTORTIONS[distortion], number=number)
    assert suits(cameras)
    indices = _indices(count, cameras)
    generator = PerspectiveRays(cameras)
    assert generator.table is None
    ours, theirs = generator(indices), RayGenerator(cameras)(indices)
    assert (generator.table is not None) == (fits and distortion not in ("none", "zero"))
    for name in ("origins", "directions", "pixel_area", "camera_indices"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a.dtype == b.dtype
        assert torch.equal(a, b), name
    assert torch.equal(ours.metadata["directions_norm"], theirs.metadata["directions_norm"])
    assert ours.times is theirs.times is None
    for a, name in zip(generator.lines(indices), ("origins", "directions"), strict=True):
        assert torch.equal(a, getattr(theirs, name)), name


def test_cameras_of_one_kind_share_a_table_and_sizes_may_differ():
    """As of a phone, whose pictures lie, and one of which stands."""
    cameras = _cameras(4, distortion_params=PHONE)
    for name in ("fx", "fy", "cx", "cy", "height", "width"):
        values = getattr(cameras, name).clone()
        values[1:] = values[1].clone()
        setattr(cameras, name, values)
    cameras.height[2], cameras.width[2] = 19, 7
    generator = PerspectiveRays(cameras)
    generator.prepare()
    assert generator.table.shape == (2, 20, 20, 2, 3)
    indices = torch.tensor([[0, 6, 18], [2, 18, 6], [3, 0, 0]])
    assert torch.equal(generator(indices).directions, RayGenerator(cameras)(indices).directions)


@pytest.mark.parametrize(
    "others",
    [
        {"camera_type": CameraType.FISHEYE},
        {"times": torch.zeros(3, 1)},
        {"metadata": {"some": torch.zeros(3, 1)}},
    ],
    ids=["fisheye", "with times", "with metadata"],
)
def test_other_cameras_are_left_to_nerfstudio(others):
    assert not suits(_cameras(**others))


def _manager(kind, device="cpu", **others):
    random.seed(5)
    settings = {"dataparser": BlenderSceneConfig(), "train_num_rays_per_batch": 301, "eval_num_rays_per_batch": 77}
    return kind(**{**settings, **others}).setup(device=device, test_mode="val")


def test_on_a_processor_batches_are_nerfstudios():
    ours, theirs = _manager(RaysDataManagerConfig), _manager(VanillaDataManagerConfig)
    assert isinstance(ours.train_ray_generator, PerspectiveRays)
    for draw in ("next_train", "next_eval"):
        found = []
        for manager in (ours, theirs):
            torch.manual_seed(9)
            random.seed(9)
            found.append([getattr(manager, draw)(step) for step in range(2)])
        for (rays, batch), (other_rays, other_batch) in zip(*found, strict=True):
            assert torch.equal(rays.directions, other_rays.directions)
            assert batch.keys() == other_batch.keys()
            assert all(torch.equal(batch[key], other_batch[key]) for key in batch)


@NEEDS_CUDA
def test_on_a_gpu_pictures_are_there_and_drawn_there():
    manager = _manager(RaysDataManagerConfig, "cuda")
    pictures = manager.train_image_dataloader.cached_collated_batch["image"]
    assert pictures.is_cuda
    rays, batch = manager.next_train(0)
    assert batch["image"].is_cuda
    assert rays.directions.is_cuda
    assert rays.directions.shape == (301, 3)
    camera, row, column = batch["indices"].unbind(-1)
    which = manager.train_image_dataloader.cached_collated_batch["image_idx"]
    place = (which[None] == camera[:, None]).float().argmax(1)
    assert torch.equal(batch["image"], pictures[place, row, column])
    assert torch.equal(rays.camera_indices[:, 0], camera)
    assert not _manager(RaysDataManagerConfig, "cuda", images_on_gpu=False).next_train(0)[1]["image"].is_cuda


@pytest.fixture
def masked(tmp_path):
    """A capture of four pictures, of whose pixels the left half counts."""
    left = np.zeros((12, 16), dtype=np.uint8)
    left[:, :8] = 255
    Image.fromarray(left).save(tmp_path / "mask.png")
    frames = []
    for number in range(4):
        Image.fromarray(np.full((12, 16, 3), 40 * number, dtype=np.uint8)).save(tmp_path / f"{number}.png")
        pose = np.eye(4)
        pose[:3, 3] = number, 0, 3
        frames.append({"file_path": f"{number}.png", "mask_path": "mask.png", "transform_matrix": pose.tolist()})
    camera = {"fl_x": 20.0, "fl_y": 20.0, "cx": 8.0, "cy": 6.0, "w": 16, "h": 12}
    (tmp_path / "transforms.json").write_text(json.dumps({**camera, "frames": frames}))
    return NerfstudioDataParserConfig(data=tmp_path, eval_mode="all")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
@pytest.mark.parametrize("resident", [None, False])
def test_masks_hold_on_a_gpu_too(masked, device, resident):
    manager = _manager(RaysDataManagerConfig, device, dataparser=masked, images_on_gpu=resident)
    column = manager.next_train(0)[1]["indices"][:, 2]
    assert len(column) == 301
    assert int(column.max()) < 8


@NEEDS_CUDA
def test_where_pictures_are_does_not_change_what_is_drawn(monkeypatch):
    drawn = []
    for resident in (True, False):
        manager = _manager(RaysDataManagerConfig, "cuda", images_on_gpu=resident)
        torch.manual_seed(1)
        rays, batch = manager.next_train(0)
        drawn.append((rays.directions, batch["indices"], batch["image"].cuda()))
    for a, b in zip(*drawn, strict=True):
        assert torch.equal(a, b)


def test_patches_and_chosen_samplers_are_nerfstudios():
    assert isinstance(_manager(RaysDataManagerConfig, patch_size=4).train_pixel_sampler, PatchPixelSampler)
    sampler = PairPixelSamplerConfig()
    assert isinstance(_manager(RaysDataManagerConfig, pixel_sampler=sampler).train_pixel_sampler, PairPixelSampler)
    assert isinstance(_manager(RaysDataManagerConfig).train_pixel_sampler, ResidentPixelSampler)


@NEEDS_CUDA
def test_a_sampler_takes_pictures_of_any_size():
    sampler = ResidentPixelSampler(PixelSamplerConfig(), "cuda", num_rays_per_batch=40)
    for count, side in ((3, 16), (1, 4), (2, 9)):
        batch = {
            "image": torch.rand(count, side, side, 3, device="cuda"),
            "image_idx": torch.arange(count, device="cuda"),
        }
        assert sampler.sample(batch)["image"].shape == (40, 3)


@NEEDS_CUDA
def test_every_pixel_is_drawn_as_often():
    manager = _manager(RaysDataManagerConfig, "cuda")
    pictures = manager.train_image_dataloader.cached_collated_batch["image"]
    drawn = torch.cat([manager.next_train(step)[1]["indices"].cpu() for step in range(100)])
    for values, limit in zip(drawn.unbind(-1), pictures.shape[:3], strict=True):
        assert 0 <= int(values.min()) <= int(values.max()) < limit
        assert abs(float(values.float().mean()) / (limit - 1) - 0.5) < 0.02


@NEEDS_CUDA
def test_large_pictures_stay_where_they_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (1 << 20, 1 << 30))
    assert not _manager(RaysDataManagerConfig, "cuda").next_train(0)[1]["image"].is_cuda


def _describe(folder, text):
    (folder / "transforms.json").write_text(text)


def _change(at, **values):
    """Camera or frames of a capture made other ones; values of ``frame`` are the third's."""
    path = at / "transforms.json"
    described = json.loads(path.read_text())
    described["frames"][2] |= values.pop("frame", {})
    path.write_text(json.dumps(described | values))


NO_POSE = [[math.nan] * 4] * 4
SPOILED = {
    "no folder": (shutil.rmtree, r"cannot read .*AssertionError: Data directory .* does not exist"),
    "no description": (lambda at: (at / "transforms.json").unlink(), r"cannot read .*transforms\.json"),
    "cut off": (lambda at: _describe(at, '{"frames": ['), r"cannot read .*JSONDecodeError"),
    "no frames": (lambda at: _describe(at, '{"fl_x": 20.0}'), r"cannot read .*KeyError: 'frames'"),
    "no matrix": (lambda at: _change(at, frame={"transform_matrix": None}), r"cannot read "),
    "no pose": (lambda at: _change(at, frame={"transform_matrix": NO_POSE}), r"camera \d .* pose that is not finite"),
    "no focal length": (lambda at: _change(at, fl_x=0.0), r"camera 0 .* focal lengths \[0\.0, 20\.0\]; mend"),
    "swapped": (lambda at: _change(at, w=12, h=16), r"0\.png is 16 x 12 pixels and .* w x h 12 x 16"),
    "a picture missing": (lambda at: (at / "2.png").unlink(), r"1 of the 4 pictures .* not there, .*2\.png; add"),
    "a picture that is none": (lambda at: (at / "1.png").write_text("no"), r"1\.png cannot be opened .*Unidentified"),
    "a folder for a picture": (lambda at: ((at / "3.png").unlink(), (at / "3.png").mkdir()), r"1 of the 4 .*3\.png"),
    "all hidden": (lambda at: Image.new("L", (16, 12)).save(at / "mask.png"), r"masks leave fewer pixels than the 999"),
}


def _first_batch(parser):
    manager = RaysDataManagerConfig(dataparser=parser, train_num_rays_per_batch=999).setup(device="cpu")
    return exit_on_bad_input(manager.next_train)(0)


@pytest.mark.parametrize("how", SPOILED)
def test_a_capture_that_cannot_be_read_is_refused_in_a_line(masked, tmp_path, how):
    spoil, said = SPOILED[how]
    spoil(tmp_path)
    with pytest.raises(SystemExit) as refused:
        _first_batch(masked)
    message = str(refused.value)
    assert re.search(said, message), message
    assert "\n" not in message


def test_a_picture_larger_than_pillow_thinks_safe_is_refused_in_a_line(masked, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(
        SystemExit, match=r"NerfstudioDataParser cannot read .*: DecompressionBombError: .*mend the data"
    ):
        _first_batch(masked)
    # The parser looks at the first alone, where no factor is named.
    masked.downscale_factor = 1
    with pytest.raises(SystemExit, match=r"0\.png cannot be opened as a picture \(DecompressionBombError.*mend it"):
        _first_batch(masked)


def test_without_pictures_none_are_missed(masked, tmp_path):
    """ns-render opens none; of resized ones sizes differ from the cameras'."""
    _change(tmp_path, w=12, h=16)
    (tmp_path / "2.png").unlink()
    assert RaysDataManagerConfig(dataparser=masked).setup(device="cpu", test_mode="inference").train_dataset
    RaysDataManagerConfig(dataparser=masked, camera_res_scale_factor=0.5)._target._check(
        argparse.Namespace(test_mode="val", config=argparse.Namespace(camera_res_scale_factor=0.5)),
        argparse.Namespace(image_filenames=[tmp_path / "1.png"], cameras=_cameras()),
    )


def test_what_does_not_come_from_the_data_is_not_taken_for_it():
    with pytest.raises(ValueError, match=r"^ours$"), reading(None, "folder"):
        raise ValueError("ours")
    # A mistake of our own parser is one, though nerfstudio calls it.
    parser = BlenderSceneConfig().setup()
    parser._generate_dataparser_outputs = lambda split: None.nothing
    with pytest.raises(AttributeError, match=r"nothing"), reading(None, "folder"):
        parser.get_dataparser_outputs("train")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_want_of_memory_is_no_fault_of_the_pictures(masked, monkeypatch, error):
    def opened(self, index):
        raise error("no memory")

    monkeypatch.setattr(InputDataset, "get_numpy_image", opened)
    with pytest.raises(error, match=r"no memory"):
        RaysDataManagerConfig(dataparser=masked).setup(device="cpu")
