"""Reading pictures: every kind that Pillow opens, rotations, and what is refused."""

import io
import struct
import zlib

import cv2
import numpy as np
import psutil
import pytest
import tifffile
import torch
from PIL import Image

from aire_nerfstudio.data.picture import over_background, pixel_centres, read_picture
from aire_nerfstudio.data.picture_file import write_picture
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.export.image import FORMATS, FORMATS_WITHOUT_ALPHA

H, W = 7, 5


def _random(*shape, dtype=np.uint8, seed=0):
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, size=shape, endpoint=True, dtype=dtype)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_eight_bits_are_kept(tmp_path, mode, channels):
    values = _random(H, W, *([channels] if channels > 1 else []))
    Image.fromarray(values).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert (picture.height, picture.width, picture.channels) == (H, W, channels)
    assert np.array_equal(picture.values.numpy(), values.reshape(H, W, channels))
    assert torch.allclose(picture.floats(), torch.from_numpy(values.reshape(H, W, channels) / 255).float())


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_kept(tmp_path, suffix, channels):
    values = _random(H, W, channels, dtype=np.uint16)
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), values[..., ::-1].squeeze())
    picture = read_picture(tmp_path / f"a.{suffix}")
    assert picture.peak == 65535
    assert np.array_equal(picture.values.numpy(), values)


def test_big_endian_sixteen_bits(tmp_path):
    values = _random(H, W, dtype=np.uint16)
    Image.frombytes("I;16B", (W, H), values.astype(">u2").tobytes()).save(tmp_path / "a.tif")
    assert np.array_equal(read_picture(tmp_path / "a.tif").values[..., 0].numpy(), values)


def test_a_cameras_preview_is_no_animation(tmp_path):
    image, preview = (Image.fromarray(_random(16, 16, 3, seed=i)) for i in range(2))
    image.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview])
    with Image.open(tmp_path / "a.jpg") as saved:
        assert saved.n_frames == 2
        expected = np.asarray(saved.convert("RGB"))
    assert np.array_equal(read_picture(tmp_path / "a.jpg").values.numpy(), expected)


def test_size_is_judged_by_memory_not_by_pillow(tmp_path, monkeypatch):
    _save(tmp_path / "a.png", _random(30, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_picture(tmp_path / "a.png").height == 30
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_are_multiplied_by_alpha(tmp_path, dtype):
    top = np.iinfo(dtype).max
    values = _random(H, W, 4, dtype=dtype)
    values[0, 0], values[0, 1] = (top, top, top, 0), (top, 0, 0, top)
    cv2.imwrite(str(tmp_path / "a.png"), cv2.cvtColor(values, cv2.COLOR_RGBA2BGRA))
    got = read_picture(tmp_path / "a.png").floats()
    alpha = values[..., 3:] / top
    assert np.allclose(got.numpy(), np.concatenate([values[..., :3] / top * alpha, alpha], -1), atol=0.6 / top)
    assert over_background(got, 1.0)[0, 0].tolist() == [1, 1, 1]
    assert over_background(got, 0.0)[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("mode", ["1", "P", "LA", "CMYK", "YCbCr", "F"])
def test_other_modes_look_as_pillow_shows_them(tmp_path, mode):
    image = Image.fromarray(_random(H, W, 3)).convert("L" if mode == "F" else mode)
    if mode == "F":
        image = Image.fromarray(np.asarray(image).astype(np.float32) / 255)
    suffix = "tif" if mode in ("CMYK", "YCbCr", "F") else "png"
    image.save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as back:
        scale = 1 if mode == "F" else 1 / 255
        shown = np.asarray(back if mode == "F" else back.convert("RGB"), dtype=np.float64) * scale
    got = over_background(read_picture(tmp_path / f"a.{suffix}").floats(), 1.0).numpy()
    assert np.allclose(got, shown.reshape(H, W, -1), atol=1e-6)


def test_palette_with_transparency(tmp_path):
    image = Image.fromarray(_random(H, W, 3)).convert("P")
    image.save(tmp_path / "a.png", transparency=image.getpixel((2, 3)))
    picture = read_picture(tmp_path / "a.png")
    assert picture.channels == 4
    assert picture.values[3, 2].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_equals_pillows(tmp_path, orientation):
    from PIL import ImageOps

    image = Image.fromarray(_random(H, W, 3))
    exif = Image.Exif()
    exif[274] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as saved:
        expected = np.asarray(ImageOps.exif_transpose(saved))
    assert np.array_equal(read_picture(tmp_path / "a.png").values.numpy(), expected)


def _save(path, array, **kwargs):
    Image.fromarray(array).save(path, **kwargs)


def _animated(path):
    frames = [Image.fromarray(_random(8, 8, seed=i)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def _truncated(path):
    file = io.BytesIO()
    Image.fromarray(_random(64, 64, 3)).save(file, "PNG")
    path.write_bytes(file.getvalue()[:2000])


def _with_nan(path):
    values = np.full((8, 8), 0.5, np.float32)
    values[2, 3] = np.nan
    _save(path, values)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("none.png", lambda p: None, "does not exist"),
        ("folder", lambda p: p.mkdir(), "is a folder"),
        ("empty.png", lambda p: p.write_bytes(b""), "is empty"),
        ("text.png", lambda p: p.write_text("hello"), "no picture that Pillow can open"),
        ("truncated.png", _truncated, "cannot be decoded"),
        ("animated.gif", _animated, "has 3 frames"),
        ("dot.png", lambda p: _save(p, _random(1, 1)), "is 1 x 1 pixels"),
        ("line.png", lambda p: _save(p, _random(1, 90)), "is 90 x 1 pixels"),
        ("nan.tif", _with_nan, "has 1 values that are not finite"),
        ("range.tif", lambda p: _save(p, np.full((8, 8), 3, np.float32)), "rescale it to [0, 1]"),
    ],
)
def test_bad_pictures_are_refused_in_one_line(tmp_path, name, make, message):
    path = tmp_path / name
    make(path)
    with pytest.raises(InputError) as caught:
        read_picture(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_picture_too_large_for_the_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    _save(tmp_path / "large.png", np.zeros((10_000, 10_000), np.uint8))
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=2**31))
    monkeypatch.setattr("aire_nerfstudio.data.picture._decode", None)
    with pytest.raises(InputError, match=r"takes about 12\.1 GiB and 2\.0 GiB are free"):
        read_picture(tmp_path / "large.png")


def test_pixel_centres_keep_the_aspect():
    points = pixel_centres(torch.arange(H * W), H, W).view(H, W, 2)
    assert points[0, 0].tolist() == pytest.approx([-(W - 1) / H, (H - 1) / H])
    assert points[H - 1, W - 1].tolist() == pytest.approx([(W - 1) / H, -(H - 1) / H])
    assert torch.allclose(points[:, 1:, 0] - points[:, :-1, 0], torch.tensor(2 / H))
    assert torch.allclose(points.mean((0, 1)), torch.zeros(2), atol=1e-6)


def _png(path, depth, colour_type, rows, transparent):
    """A PNG by hand, since Pillow writes no transparent colour of 16 bits."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def packed(row):
        if depth >= 8:
            return np.asarray(row, dtype=np.uint8 if depth == 8 else ">u2").tobytes()
        bits = (np.asarray(row).reshape(-1, 1) >> np.arange(depth)[::-1]) & 1
        return np.packbits(bits.astype(np.uint8)).tobytes()

    lines = b"".join(b"\0" + packed(row) for row in rows)
    size = struct.pack(">IIBBBBB", len(rows[0]), len(rows), depth, colour_type, 0, 0, 0)
    named = b"".join(struct.pack(">H", value) for value in transparent)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"tRNS", named) + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )  # fmt: skip
    return path


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_colour_that_a_png_names_is_transparent(tmp_path, depth, channels):
    peak = 2**depth - 1
    values = np.arange(20 * 12 * channels).reshape(20, 12, channels) * 7 % peak + 1
    values[3, 4] = values[8, 9] = 5
    is_gone = (values == 5).all(-1)
    path = _png(tmp_path / "a.png", depth, 0 if channels == 1 else 2, values, [5] * channels)
    picture = read_picture(path)
    assert picture.values.shape == (20, 12, channels + 1)
    assert picture.peak == peak
    assert np.array_equal(picture.values[..., -1].numpy() == 0, is_gone)
    assert np.array_equal(picture.values[..., :-1].numpy(), values * ~is_gone[..., None])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
def test_rotated_tiffs_are_what_was_saved(tmp_path, orientation, compression, mode):
    """Not held against Pillow's own: of uncompressed files it gives rows of a wrong length."""
    values = _random(H, W, {"RGB": 3, "RGBA": 4}.get(mode, 1), dtype=np.uint16 if mode == "I;16" else np.uint8)
    if mode == "RGBA":
        values[..., 3] = 255
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(values.squeeze()).save(tmp_path / "a.tif", compression=compression, exif=exif)
    upright = {
        1: values, 2: values[:, ::-1], 3: values[::-1, ::-1], 4: values[::-1], 5: values.swapaxes(0, 1),
        6: np.rot90(values, -1), 7: np.rot90(values, 2).swapaxes(0, 1), 8: np.rot90(values),
    }[orientation]  # fmt: skip
    assert np.array_equal(read_picture(tmp_path / "a.tif").values.numpy(), upright)


def test_twelve_bits_span_what_sixteen_do(tmp_path):
    """A ramp of 12-bit values, two in three bytes."""
    ramp = np.tile(np.linspace(0, 4095, 40).astype(int), (20, 1))
    first, second = ramp[:, ::2], ramp[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8).tobytes()
    tags = {
        256: 40, 257: 20, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 20, 279: len(packed),
    }  # fmt: skip
    directory = struct.pack("<H", len(tags))
    for tag, value in tags.items():
        directory += struct.pack("<HHIHH", tag, 3, 1, value, 0)
    file = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory + b"\0" * 4
    (tmp_path / "a.tif").write_bytes(file)
    values = read_picture(tmp_path / "a.tif").floats()[..., 0].numpy()
    assert np.allclose(values, ramp / 4095, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_transparent_grey_of_few_bits(tmp_path, depth):
    values = np.arange(20 * 13).reshape(20, 13) * 7 // 3 % 2**depth
    path = _png(tmp_path / "a.png", depth, 0, values, [1])
    picture = read_picture(path)
    assert (picture.values.shape, picture.peak) == ((20, 13, 2), 255)
    assert np.array_equal(picture.values[..., 1].numpy() == 0, values == 1)
    white = 255 // (2**depth - 1)
    assert np.array_equal(picture.values[..., 0].numpy(), white * values * (values != 1))


def test_a_tiff_may_begin_with_white_and_not_lie_in_planes(tmp_path):
    deep = (np.arange(20 * 12).reshape(20, 12) * 271 % 65536).astype(np.uint16)
    tifffile.imwrite(tmp_path / "black.tif", deep, photometric="minisblack")
    tifffile.imwrite(tmp_path / "white.tif", 65535 - deep, photometric="miniswhite")
    for name in ("black", "white"):
        assert np.array_equal(read_picture(tmp_path / f"{name}.tif").values[..., 0].numpy(), deep)
    colours = np.stack([deep, deep // 2, deep // 3])
    tifffile.imwrite(tmp_path / "planes.tif", colours, photometric="rgb", planarconfig="separate")
    with pytest.raises(InputError, match="in planes of their own"):
        read_picture(tmp_path / "planes.tif")
    tifffile.imwrite(tmp_path / "together.tif", colours.transpose(1, 2, 0), photometric="rgb")
    picture = read_picture(tmp_path / "together.tif")
    assert picture.peak == 65535
    assert np.array_equal(picture.values.numpy(), colours.transpose(1, 2, 0))
    tifffile.imwrite(tmp_path / "below.tif", deep.astype(np.int16) - 40, photometric="minisblack")
    with pytest.raises(InputError, match="must lie in 0 to 65535"):
        read_picture(tmp_path / "below.tif")


@pytest.mark.parametrize(
    ("suffix", "channels"), [(s, c) for s in FORMATS for c in range(1, 5) if c % 2 or s not in FORMATS_WITHOUT_ALPHA]
)
def test_formats_of_exports_keep_size_and_values(tmp_path, suffix, channels):
    x, y = torch.meshgrid(torch.linspace(0, 1, 30), torch.linspace(0, 1, 20), indexing="xy")
    alpha = 0.5 + 0.5 * y
    values = torch.stack(
        {1: [x], 2: [x * alpha, alpha], 3: [x, y, 1 - x], 4: [x * alpha, y * alpha, 0 * x, alpha]}[channels], -1
    )
    write_picture(values, tmp_path / f"a{suffix}", 8)
    found = read_picture(tmp_path / f"a{suffix}").floats()
    wanted = values if found.shape[-1] == channels else values[..., (0, 0, 0, 1)[: found.shape[-1]]]
    assert found.shape == wanted.shape
    assert (found - wanted).abs().mean() < 0.015
