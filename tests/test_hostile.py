"""Files from a stranger: refused in one line, nothing executed, little time and memory taken."""

import builtins
import json
import os
import pickle
import re
import resource
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from commands import fork, run_command
from PIL import Image
from tiny import checkpoints, load, tiny_config, train

from aire_nerfstudio.checkpoint_file import read_checkpoint
from aire_nerfstudio.data.blender_scene import read_blender_split
from aire_nerfstudio.data.picture import read_picture
from aire_nerfstudio.data.surface import read_surface
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.inspection import executed_by, inspect, is_known
from aire_nerfstudio.models.flow import FlowModelConfig, surface_weights

# Of the processor, whatever else the machine does.
MOST_SECONDS, MOST_MIB = 10, 300


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with its configuration: (folder, checkpoint)."""
    config = tiny_config("image", tmp_path_factory.mktemp("run"))
    train(config)
    return config.get_base_dir(), checkpoints(config)[-1]


def refused(read, path, tmp_path):
    """The line with which ``read(path)`` refuses, after a look at what that took in a process of its own."""
    answer = tmp_path / "answer.json"
    process = fork(_read, read, str(path), str(answer))
    process.join(60)
    process.kill()
    assert process.exitcode == 0, f"exit status {process.exitcode}"
    said = json.loads(answer.read_text())
    assert said["kind"] == "InputError", said
    assert "\n" not in said["line"]
    assert said["seconds"] < MOST_SECONDS, said
    assert said["mib"] < MOST_MIB, said
    print(f"{Path(path).name}: {said['seconds']:.3f} s, {said['mib']:.0f} MiB: {said['line']}")
    return said["line"]


def _read(read, path, answer):
    before, began = _peak(), time.process_time()
    try:
        read(Path(path))
        kind, line = "none", "accepted"
    except BaseException as error:
        kind, line = type(error).__name__, str(error)
    seconds, mib = time.process_time() - began, _peak() - before
    Path(answer).write_text(json.dumps({"kind": kind, "line": line, "seconds": seconds, "mib": mib}))


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- checkpoints ------------------------------------------------------------------------------------------------------


class Payload:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _with_structure(path, checkpoint, structure, compression=zipfile.ZIP_STORED):
    """A copy of a checkpoint whose ``data.pkl`` is another."""
    with zipfile.ZipFile(checkpoint) as old, zipfile.ZipFile(path, "w", compression) as new:
        for part in old.infolist():
            content = structure if part.filename.endswith("data.pkl") else old.read(part)
            new.writestr(part.filename, content)


def _checkpoint(kind, path, good, touched):
    if kind == "payload":
        _with_structure(path, good, pickle.dumps({"step": 1, "pipeline": Payload(os.system, f"touch {touched}")}, 2))
    elif kind == "memory":
        _with_structure(path, good, pickle.dumps({"step": 1, "pipeline": Payload(bytearray, 10**11)}, 2))
    elif kind == "newer pickle":
        _with_structure(path, good, pickle.dumps({"step": 1, "pipeline": Payload(eval, "1")}, 4))
    elif kind == "bare pickle":
        path.write_bytes(pickle.dumps(Payload(os.system, f"touch {touched}")))
    elif kind == "compressed":
        _with_structure(path, good, b"\x80\x02" + b"0" * 10**9, zipfile.ZIP_DEFLATED)
    elif kind == "expanded":
        torch.save({"step": 1, "pipeline": {"_model.field.weight": torch.zeros(1).expand(10**6, 10**5)}}, path)
    elif kind == "outside":
        path.write_bytes(good.read_bytes())
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("../../evil", b"x")
    elif kind == "another case":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.PKL", pickle.dumps({"step": 1, "pipeline": Payload(bytearray, 10**9)}, 2))
            archive.writestr("archive/zz.pkl", pickle.dumps({"step": 1, "pipeline": {}}, 2))
    elif kind == "two files in one":
        torch.save({"step": 1, "pipeline": {}}, path, _use_new_zipfile_serialization=False)
        inner = path.with_suffix(".zip")
        with zipfile.ZipFile(inner, "w") as archive:
            archive.writestr("a/data.pkl", pickle.dumps({"step": 1, "pipeline": {}}, 2))
        path.write_bytes(path.read_bytes() + inner.read_bytes())
        inner.unlink()
    elif kind == "endless key":
        doubled = b"".join(bytes([ord("q"), 0, ord("h"), 0, 0x86]) for _ in range(60))
        _with_structure(path, good, b"\x80\x02}K\x01" + doubled + b"K\x01s.")
    elif kind == "many sets":
        _with_structure(path, good, b"\x80\x02](" + b"\x8f" * 900_000 + b"e.")
    elif kind == "shown again and again":
        tensor = torch.zeros(10_000)
        torch.save({"step": 1, "pipeline": {str(i): tensor for i in range(5000)}}, path)
    elif kind == "nested":
        nest = 1
        for _ in range(60):
            nest = [nest, nest]
        torch.save({"step": 1, "pipeline": {"a": nest}}, path)
    elif kind == "too many numbers":
        torch.save({"step": 1, "pipeline": {"a": torch.zeros(1)}}, path)
        with zipfile.ZipFile(path) as archive:
            structure = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
        forged = structure
        at = forged.index(b"X\x03\x00\x00\x00cpu")
        at = forged.index(b"K\x01", at)
        source = path.with_suffix(".whole")
        path.rename(source)
        _with_structure(path, source, forged[:at] + b"J\x00\x00\x10\x00" + forged[at + 2 :])
        source.unlink()
    elif kind == "counted twice":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", pickle.dumps({}, 2))
            archive.writestr("a/data/0", bytes(10**5))
            archive.filelist += [archive.filelist[1]] * 10**4


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("payload", r"holds more than plain data .*asks for posix\.system"),
        ("memory", r"holds more than plain data .*asks for \w+\.bytearray"),
        ("newer pickle", "holds more than plain data .*makes objects"),
        ("bare pickle", "is truncated or not a checkpoint"),
        ("compressed", "is compressed"),
        ("expanded", r"a tensor of shape \[1000000, 100000\] has 4 bytes"),
        ("outside", "names files outside itself"),
        ("counted twice", "claims more bytes than it has"),
        ("another case", "two parts of one name|has no structure of a checkpoint|not a nerfstudio checkpoint"),
        ("two files in one", "something before its archive"),
        ("endless key", "a key that is a tuple"),
        ("many sets", "makes objects"),
        ("shown again and again", "larger inside than outside"),
        ("nested", "larger inside than outside"),
        ("too many numbers", "have 4 bytes, not those that it says"),
    ],
)
def test_hostile_checkpoints_are_refused_by_every_reader(kind, said, run, tmp_path):
    _, good = run
    touched, path = tmp_path / "touched", tmp_path / "nerfstudio_models" / "step-000000047.ckpt"
    path.parent.mkdir()
    _checkpoint(kind, path, good, touched)
    line = refused(read_checkpoint, path, tmp_path)
    assert re.search(said, line), line
    assert refused(inspect, path, tmp_path) == line
    assert not touched.exists()


def test_the_commands_refuse_a_hostile_checkpoint(run, tmp_path):
    _, good = run
    touched, models = tmp_path / "touched", tmp_path / "run" / "nerfstudio_models"
    models.mkdir(parents=True)
    path = models / "step-000000047.ckpt"
    _checkpoint("payload", path, good, touched)
    before = path.read_bytes()
    for command in (
        ["aire-inspect", models.parent],
        ["aire-report", models.parent, "--no-pictures"],
        ["ns-train", "aire-flow-siren", "--vis", "tensorboard", "--pipeline.model.load-sdf", path],
        ["ns-train", "aire-image-siren", "--vis", "tensorboard", "--load-dir", models, "--max-num-iterations", "99"],
    ):
        done = run_command(*command, cwd=tmp_path)
        assert done.returncode == 1, (command, done.stderr[-500:])
        lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, (command, done.stderr[-1500:])
        assert "more than plain data" in lines[0], lines
        assert "Traceback" not in done.stderr
    assert not touched.exists()
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_ns_eval_names_a_damaged_checkpoint_in_one_line(tmp_path):
    config = tiny_config("image", tmp_path / "outputs")
    train(config)
    last = checkpoints(config)[-1]
    last.write_bytes(last.read_bytes()[:5000])
    # A name that sorts last and is not what nerfstudio would open.
    other = last.with_name("step-9.ckpt")
    other.write_bytes(last.read_bytes())
    done = run_command("ns-eval", "--load-config", config.get_base_dir() / "config.yml", cwd=tmp_path)
    assert done.returncode == 1
    assert "holds step-9.ckpt, no checkpoint's name" in done.stderr
    other.unlink()
    for command in (["ns-eval"], ["ns-render", "interpolate"], ["aire-export", "image"]):
        options = ["--load-config", config.get_base_dir() / "config.yml", "--output-path", tmp_path / "out.png"]
        done = run_command(*command, *options, cwd=tmp_path)
        assert done.returncode == 1, done.stderr[-500:]
        assert f"error: checkpoint {last} is truncated or not a checkpoint" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p["_model.field.layers.1.weight"].fill_(float("nan")), "has values that are not finite"),
        (lambda p: p.update({"_model.field.layers.1.weight": torch.zeros(7, 99)}), "does not fit the layer before"),
        (lambda p: p.update({"_model.field.layers.2.bias": torch.zeros(9)}), "does not fit the layer before"),
        (lambda p: p.update({"_model.field.layers.0.weight": "text"}), "does not fit the layer before"),
        (lambda p: p["_model._extra_state"].pop("rng"), "rng is not there; this package writes a dict"),
        (lambda p: p["_model._extra_state"]["rng"].pop("torch"), "random generators cannot be restored"),
        (lambda p: p["_model._extra_state"].update(strategy={}), "entries that this package does not write"),
        (lambda p: p["_model._extra_state"].update(version=99), "version 99; this package reads version 2"),
        (lambda p: p["_model._extra_state"].update(history=5), "history is int; this package writes a list"),
        (lambda p: p.pop("_model._extra_state"), "belongs to another method"),
    ],
)
def test_entries_that_make_no_training_are_named(change, said, run, tmp_path):
    _, good = run
    state = load(good)
    change(state["pipeline"])
    models = tmp_path / "models"
    models.mkdir()
    torch.save(state, models / good.name)
    config = tiny_config("image", tmp_path / "runs", max_num_iterations=60)
    config.load_dir = models
    with pytest.raises(SystemExit, match=said):
        train(config)
    assert not (tmp_path / "runs").exists()


def test_inspect_shows_what_a_configuration_would_run_and_runs_nothing(run, tmp_path):
    folder, good = run
    models = tmp_path / "nerfstudio_models"
    models.mkdir()
    (models / good.name).write_bytes(good.read_bytes())
    touched = tmp_path / "touched"
    text = (folder / "config.yml").read_text()
    assert inspect(folder).unknown() == []
    (tmp_path / "config.yml").write_text(f"{text}evil: !!python/object/apply:os.system ['touch {touched}']\n")
    found = inspect(tmp_path)
    assert found.unknown() == ["os.system()"]
    done = run_command("aire-inspect", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "would run os.system()" in done.stdout
    alone = run_command("aire-inspect", good.name, cwd=models)
    assert "would run os.system()" in alone.stdout
    assert not touched.exists()
    told = json.loads(run_command("aire-inspect", folder, "--json", cwd=tmp_path).stdout)
    assert [(layer["inputs"], layer["outputs"]) for layer in told["layers"]] == [(2, 11), (11, 7), (7, 3)]
    assert [event["event"] for event in told["state"]["history"]] == ["densify", "decay", "prune"]
    assert told["config_unknown"] == []


def test_inspect_prints_no_commands_to_the_terminal(run, tmp_path):
    _, good = run
    state = load(good)
    state["pipeline"]["_model._extra_state"]["history"][0]["event"] = "\x1b]0;evil\x07[red]x"
    state["pipeline"]["_model._extra_state"]["variant"] = "\x1b[2J"
    torch.save(state, tmp_path / good.name)
    done = run_command("aire-inspect", tmp_path / good.name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "?]0;evil?" in done.stdout
    assert "?[2J" in done.stdout


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("nerfstudio.configs.base_config.ViewerConfig", True),
        ("torch.optim.adam.Adam", True),
        ("pathlib.PosixPath()", True),
        ("pathlib._local.PosixPath()", True),
        ("pathlib._local.Path.unlink()", False),
        ("nerfstudio.utils.writer.EventName()", True),
        ("os.system()", False),
        ("builtins.eval", False),
        ("nerfstudio.utils.scripts.run_command()", False),
        ("nerfstudio.utils.scripts.run_command", False),
        ("nerfstudio_evil.X", False),
        ("torch.load()", False),
        ("torch.hub.load", False),
        ("subprocess.Popen()", False),
        ("pathlib.Path.unlink()", False),
    ],
)
def test_names_that_configurations_hold(name, known):
    assert is_known(name) is known


def test_a_surface_to_flow_from_is_checked(tmp_path):
    config = tiny_config("sdf", tmp_path / "sdf", model={"activation": "siren", "ema_decay": 0.0})
    train(config)
    state = load(checkpoints(config)[-1])
    for change, said in (
        ({"_model.field.layers.0.weight": torch.zeros(9000, 3)}, "does not fit the layer before"),
        ({"_model.field.layers.1.bias": torch.full((7,), torch.nan)}, "not finite"),
        ({"_model.field.layers.0.weight": "x"}, "is of another method"),
    ):
        path = tmp_path / "changed.ckpt"
        torch.save({**state, "pipeline": {**state["pipeline"], **change}}, path)
        with pytest.raises(InputError, match=said):
            surface_weights(path, FlowModelConfig(first_omega=20.0, hidden_omega=10.0))


def test_error_lines_are_lines():
    said = str(InputError("a\x1b[2J\nb\x07"))
    assert said == "a?[2J?b?"


def test_configurations_that_are_none_are_refused(tmp_path):
    path = tmp_path / "config.yml"
    for text in ("a: [", "\x00", "a: b: c"):
        path.write_text(text)
        with pytest.raises(InputError, match="is no YAML"):
            executed_by(path)
    path.write_text("[" * 20_000)
    with pytest.raises(InputError, match="deep"):
        executed_by(path)
    path.write_bytes(b"x" * (1 << 23))
    with pytest.raises(InputError, match="no configuration has"):
        executed_by(path)


# --- pictures, shapes, scenes -----------------------------------------------------------------------------------------


def _png(path, width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def test_a_png_that_claims_to_be_huge(tmp_path):
    path = tmp_path / "huge.png"
    _png(path, 100_000, 100_000)
    assert "100000 x 100000 pixels; fitting and evaluating it takes about" in refused(read_picture, path, tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ascii.ply", "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
         "element face 2147483648\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"),
        ("binary.ply", "ply\nformat binary_little_endian 1.0\nelement vertex 2147483648\nproperty double x\n"
         "property double y\nproperty double z\nend_header\n" + "x" * 300),
        ("indented.ply", "ply\nformat ascii 1.0\n element vertex 99999999\nproperty float x\nend_header\n0\n"),
        ("wordy.ply", "ply\nformat ascii 1.0\n" + "comment x\n" * 9000 + "element vertex 9\nend_header\n"),
        ("negative.ply", "ply\nformat ascii 1.0\nelement vertex -5\nproperty float x\nend_header\n0\n"),
        ("many.off", "OFF\n2147483648 2147483648 0\n0 0 0\n"),
        ("many.stl", "x" * 80 + "\x7f\x7f\x7f\x7f" + "y" * 500),
    ],
)  # fmt: skip
def test_a_shape_that_claims_to_be_huge(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content.encode("latin1"))
    line = refused(read_surface, path, tmp_path)
    assert str(path) in line


def test_a_shape_opens_no_other_file(tmp_path):
    """An OBJ may name materials, those textures, by any path."""
    (tmp_path / "in").mkdir()
    _png(tmp_path / "texture.png", 60_000, 60_000)
    (tmp_path / "evil.mtl").write_text("newmtl m\nmap_Kd ../texture.png\n")
    path = tmp_path / "in" / "shape.obj"
    corners = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\n"
    path.write_text(
        f"mtllib ../evil.mtl\n{corners}vt 0 0\nusemtl m\nf 1/1 3/1 2/1\nf 1/1 2/1 4/1\nf 1/1 4/1 3/1\nf 2/1 3/1 4/1\n"
    )
    opened = []
    original = builtins.open

    def watching(file, *args, **kwargs):
        opened.append(str(file))
        return original(file, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", watching)
        surface = read_surface(path)
    assert trimesh.Trimesh(surface.vertices, surface.faces, process=False).is_watertight
    assert not any("evil" in name or "texture" in name for name in opened)


def _scene(tmp_path, file_path):
    folder = tmp_path / "scene"
    (folder / "train").mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(folder / "train" / "r_0.png")
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(tmp_path / "secret.png")
    frame = {"file_path": file_path, "transform_matrix": np.eye(4).tolist()}
    (folder / "transforms_train.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": [frame]}))
    return folder


@pytest.mark.parametrize("place", ["../secret", "./train/../../secret", "/etc/passwd", "..", ".", "/", "train/../.."])
def test_paths_that_lead_out_of_a_scene_are_refused(place, tmp_path):
    folder = _scene(tmp_path, place)
    with pytest.raises(InputError, match="leads out of the scene's folder"):
        read_blender_split(folder, "train")


@pytest.mark.parametrize("place", ["./train/r_0", "train/r_0.png", "train/../train/r_0", "train//r_0", ".\\train\\r_0"])
def test_paths_inside_a_scene_are_read(place, tmp_path):
    assert len(read_blender_split(_scene(tmp_path, place), "train").images) == 1


def test_an_absolute_path_into_the_scene_is_read(tmp_path):
    assert len(read_blender_split(_scene(tmp_path, str(tmp_path / "scene" / "train" / "r_0")), "train").images) == 1


@pytest.mark.parametrize("place", ["x" * 5000, "train/\x00"])
def test_names_that_no_file_can_have(place, tmp_path):
    with pytest.raises(InputError, match=r"cannot be a file's name|does not exist"):
        read_blender_split(_scene(tmp_path, place), "train")


def test_a_link_in_a_scene_is_its_owners(tmp_path):
    folder = _scene(tmp_path, "train/elsewhere")
    (folder / "train" / "elsewhere.png").symlink_to(tmp_path / "secret.png")
    assert len(read_blender_split(folder, "train").images) == 1


def test_a_scene_with_a_huge_picture_or_endless_brackets(tmp_path):
    folder = _scene(tmp_path, "train/huge")
    _png(folder / "train" / "huge.png", 100_000, 100_000)
    assert "cannot be decoded" in refused(_train_split, folder, tmp_path)
    _png(folder / "train" / "huge.png", 11_000, 11_000)  # Pillow would only warn of it
    assert "cannot be decoded" in refused(_train_split, folder, tmp_path)
    (folder / "transforms_train.json").write_text("[" * 100_000)
    assert "is not valid JSON" in refused(_train_split, folder, tmp_path)


def _train_split(folder):
    return read_blender_split(folder, "train")
