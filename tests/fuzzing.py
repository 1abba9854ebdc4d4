"""Inputs that nobody meant: each reader either accepts them or refuses in one line.

A target takes a random source and a folder, makes an input, and hands it to the reader. Whatever it raises beside
``InputError`` is a crash. ``scripts/fuzz.py`` runs them for minutes; ``tests/test_fuzz.py`` a few of each.
"""

import contextlib
import io
import json
import math
import pickle
import random
import warnings
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.variants import Variant, make_strategy, starting_widths
from aire_nerfstudio.checkpoint_file import read_checkpoint
from aire_nerfstudio.data.blender_scene import read_blender_split
from aire_nerfstudio.data.picture import read_picture
from aire_nerfstudio.data.surface import read_surface
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.inspection import _parts, executed_by, inspect
from aire_nerfstudio.report.facts import read_run

ODD = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 10**9, -(10**9), 2**63, 10**400, 0.5, 1e-300, 1e308, -0.0),
    *(math.nan, math.inf, -math.inf, "", "x", "../x", "/", "a" * 300, "\x00", [], {}, [[]], [None], {"a": 1}, (1, 2)),
]


# --- making inputs ----------------------------------------------------------------------------------------------------


def spoil_bytes(draw, data):
    """Some bytes changed, cut, repeated, or put elsewhere."""
    data = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4, 16])):
        if not data:
            break
        at, kind = draw.randrange(len(data)), draw.randrange(6)
        if kind == 0:
            data[at] = draw.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at : at + 4] = draw.choice([b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff", b"\x00\x00\x00\x80"])
        elif kind == 4:
            data[at:at] = data[at : at + draw.randrange(1, 64)]
        else:
            del data[at : at + draw.randrange(1, 64)]
    return bytes(data)


def spoil_text(draw, text):
    """A number or a word changed for another."""
    words = text.split(" ")
    for _ in range(draw.choice([1, 1, 2, 5])):
        at = draw.randrange(len(words))
        words[at] = draw.choice(["nan", "inf", "-1", "1e400", "99999999999", "", "x", "\n", "0", "3.5", "2147483648"])
    return " ".join(words)


def spoil_data(draw, value, odd=ODD):
    """One node of a nest of dictionaries and lists changed, left out, or doubled."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        if draw.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: spoil_data(draw, value[key], odd)}
    if isinstance(value, list | tuple) and value and draw.random() < 0.85:
        at = draw.randrange(len(value))
        if draw.random() < 0.1:
            return [*value[:at], *value[at + 1 :]]
        return [*value[:at], spoil_data(draw, value[at], odd), *value[at + 1 :]]
    if isinstance(value, torch.Tensor) and draw.random() < 0.7:
        return draw.choice(
            [value.double(), value.flatten(), value[..., :0] if value.dim() else value, value * math.nan]
        )
    return draw.choice(odd)


# --- targets ----------------------------------------------------------------------------------------------------------


def picture(draw, folder):
    """PNG, JPEG, GIF, BMP or TIFF with spoiled bytes."""
    kind, mode = draw.choice(["PNG", "JPEG", "GIF", "BMP", "TIFF"]), draw.choice(["RGB", "L", "RGBA", "P"])
    if kind == "JPEG" and mode in ("RGBA", "P"):
        mode = "RGB"
    buffer = io.BytesIO()
    pixels = np.random.default_rng(draw.randrange(99)).integers(0, 255, (9, 11, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    path = folder / f"picture.{kind.lower()}"
    path.write_bytes(spoil_bytes(draw, buffer.getvalue()))
    read = read_picture(path)
    assert torch.isfinite(read.floats()).all()
    assert read.floats().min() >= 0


def shape(draw, folder):
    """PLY, OBJ, STL, OFF or XYZ with spoiled numbers or bytes."""
    import trimesh

    mesh = trimesh.creation.icosphere(subdivisions=1)
    suffix = draw.choice(["ply", "obj", "stl", "off", "xyz"])
    path = folder / f"shape.{suffix}"
    if suffix == "xyz":
        data = "\n".join(" ".join(f"{x:.4f}" for x in (*p, *p)) for p in mesh.vertices).encode()
    elif suffix == "ply":
        data = mesh.export(file_type="ply", encoding=draw.choice(["ascii", "binary_little_endian"]))
    else:
        data = mesh.export(file_type=suffix)
    data = data.encode() if isinstance(data, str) else data
    if draw.random() < 0.5 and b"\x00" not in data:
        path.write_text(spoil_text(draw, data.decode()))
    else:
        path.write_bytes(spoil_bytes(draw, data))
    read = read_surface(path)
    assert np.isfinite(read.points).all()
    assert np.abs(read.points).max() <= 1


def transforms(draw, folder):
    """A Blender-format scene whose JSON has an odd node, or spoiled bytes."""
    (folder / "train").mkdir(exist_ok=True)
    Image.fromarray(np.zeros((4, 5, 4), np.uint8)).save(folder / "train" / "r_0.png")
    frame = {"file_path": "./train/r_0", "rotation": 0.1, "transform_matrix": np.eye(4).tolist()}
    good = {"camera_angle_x": 0.7, "frames": [frame, dict(frame)]}
    path = folder / "transforms_train.json"
    if draw.random() < 0.8:
        for _ in range(draw.choice([1, 1, 2])):
            good = spoil_data(draw, good)
        path.write_text(json.dumps(good, default=str))
    else:
        path.write_bytes(spoil_bytes(draw, json.dumps(good).encode()))
    split = read_blender_split(folder, "train")
    assert torch.isfinite(split.cameras.camera_to_worlds).all()


def _good_checkpoint(folder):
    """A small run's folder, made once a process."""
    if "run" not in _made:
        from tiny import checkpoints, tiny_config, train

        config = tiny_config("image", folder / "good")
        with contextlib.redirect_stdout(io.StringIO()):
            train(config)
        last = checkpoints(config)[-1]
        _made.update(run=config, bytes=last.read_bytes(), data=torch.load(last, weights_only=True))
        _made["config"] = (config.get_base_dir() / "config.yml").read_text()
    return _made


_made: dict = {}


def checkpoint(draw, folder):
    """A run's folder whose checkpoint has spoiled bytes, or an odd entry; every reader is asked."""
    good = _good_checkpoint(folder)
    models = folder / "fuzzed" / "nerfstudio_models"
    models.mkdir(parents=True, exist_ok=True)
    path = models / "step-000000047.ckpt"
    if draw.random() < 0.5:
        path.write_bytes(spoil_bytes(draw, good["bytes"]))
    else:
        torch.save(spoil_data(draw, good["data"]), path, pickle_protocol=2)
    readers = [
        read_checkpoint,
        lambda p: _parts(inspect(p)),
        lambda p: read_run(p.parent.parent),
        lambda p: _resume(p, good["run"]),
    ]
    accepted, refusals = 0, []
    for read in readers:
        try:
            read(path)
            accepted += 1
        except InputError as error:
            refusals.append(error)
    if not accepted:
        raise refusals[0]


def _resume(path, config):
    """What ``ns-train --load-dir`` does, up to the first step."""
    import copy

    config = copy.deepcopy(config)
    config.load_dir, config.load_step, config.max_num_iterations = path.parent, 47, 60
    config.timestamp, config.vis = "resumed", "tensorboard"
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
        trainer.pipeline.model.before_step(48)


def configuration(draw, folder):
    """A config.yml with spoiled bytes, for ``aire-inspect``."""
    path = folder / "config.yml"
    path.write_bytes(spoil_bytes(draw, _good_checkpoint(folder)["config"].encode()))
    executed_by(path)


def schedule(draw, folder):
    """Options of the schedule as the command line may give them."""
    odd = [0, 1, -1, 2, 5, 99, 10**9, 0.5, 0.999, 1.5, 100.0, 101.0, math.nan, math.inf, -0.0, None]
    config = AireConfig(
        unit=draw.choice(["steps", "percent", "epochs"]), densify_at=10, densify_count=3, decay_start=20, prune_at=60
    )
    names = [f.name for f in fields(AireConfig)]
    for _ in range(draw.choice([1, 2, 3, 5])):
        name = draw.choice(names)
        now = getattr(config, name)
        if isinstance(now, str):
            value = draw.choice(["", "l1", "l2", "taylor", "activation", "steps", "epochs", "threshold", "none", "x"])
        elif isinstance(now, tuple) or name == "prune_counts":
            value = tuple(draw.choice([0, 1, 2, -1, 7, 40]) for _ in range(draw.randrange(4)))
        else:
            value = draw.choice(odd)
        config = replace(config, **{name: value})
    variant = draw.choice([*Variant.__args__, "unknown"])
    total, epoch = draw.choice([1, 2, 60, 100]), draw.choice([1, 3, 1000])
    widths = starting_widths(variant, config, (12, 10), 2, 4)
    network = SineMLP(2, widths, 3, "siren", 10.0, 10.0)
    groups = network.neuron_groups("network")
    strategy = make_strategy(variant, config, (12, 10), 2, 3, 4, 10.0)
    state = strategy.init_state(groups, epoch, total)
    for event in strategy.plan(state, widths):
        assert 0 <= event.step <= total, event


TARGETS = {f.__name__: f for f in (picture, shape, transforms, checkpoint, configuration, schedule)}


def run_one(name, seed, folder):
    """One execution: ``accepted`` or ``refused``.

    Raises:
        Exception: a crash; or AssertionError, an input that should not have been accepted, or a refusal of two lines.
    """
    line, code = None, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TARGETS[name](random.Random(f"{name}-{seed}"), Path(folder))
    except SystemExit as end:  # of a command; an InputError, too
        code = str(end.code)
    except InputError as error:
        line = str(error)
    except pickle.PicklingError:  # our own spoiled value, not the reader's
        return "accepted"
    if code is not None:
        assert code.startswith("error: "), f"no line of ours: {code}"
        line = code
    assert line is None or "\n" not in line, f"two lines: {line!r}"
    return "accepted" if line is None else "refused"
