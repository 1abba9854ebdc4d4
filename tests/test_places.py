"""Where things are written, and what is left when somebody stops a run."""

import os
import signal
import time

import numpy as np
import pytest
import torch
import trimesh
from commands import run_command, start_command
from nerfstudio.engine.trainer import Trainer
from PIL import Image
from tiny import tiny_config

from aire_nerfstudio.data.demo_scene import ensure_demo_scene
from aire_nerfstudio.data.image_views import ensure_default_picture
from aire_nerfstudio.data.mesh_file import write_mesh
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.files import check_file, check_place, write_text


def test_a_link_stays_and_what_is_no_file_is_not_replaced(tmp_path):
    target, link, pipe = tmp_path / "deep" / "target.txt", tmp_path / "link.txt", tmp_path / "pipe.txt"
    target.parent.mkdir()
    link.symlink_to(target)
    os.mkfifo(pipe)
    for _ in range(2):
        write_text(link, "told")
    assert link.is_symlink()
    assert target.read_text() == "told"
    for place in (pipe, tmp_path):
        with pytest.raises(InputError, match="is no file that could be replaced"):
            write_text(place, "told")
        with pytest.raises(InputError, match="is no file that could be replaced"):
            check_place("--out", place)
    with pytest.raises(InputError, match="choose another name"):
        check_place("--out", tmp_path / ("a" * 300))
    target.chmod(0o600)
    write_text(target, "told")
    assert target.stat().st_mode & 0o777 == 0o600
    before = os.umask(0o027)
    write_text(target.with_name("new.txt"), "told")
    assert os.umask(before) == 0o027
    assert target.with_name("new.txt").stat().st_mode & 0o777 == 0o640
    target.with_name("new.txt").unlink()
    assert pipe.is_fifo()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deep", "link.txt", "pipe.txt", "target.txt"]


def test_a_place_is_judged_by_what_is_there(tmp_path):
    (tmp_path / "file").write_text("x")
    check_place("--out", tmp_path / "new" / "newer" / "a.png")
    check_place("--out", tmp_path / "file")  # would be replaced
    check_place("--out", tmp_path, is_folder=True)
    check_place("--out", tmp_path / "new", is_folder=True)
    for place, is_folder in ((tmp_path / "file", True), (tmp_path / "file" / "a.png", False)):
        with pytest.raises(InputError, match=r"--out .*file is no folder that can be written to"):
            check_place("--out", place, is_folder)


def test_coordinates_far_away_are_warned_of_but_in_obj(tmp_path):
    ball = trimesh.creation.icosphere(subdivisions=2)
    far = np.array([5e5, 4.5e6, 100])
    for kind in ("ply", "stl", "glb"):
        with pytest.warns(UserWarning, match=rf"exact to 0\.3 in {kind.upper()}.*OBJ holds all digits"):
            write_mesh(ball.vertices + far, ball.faces, ball.vertices, tmp_path / f"far.{kind}")
    write_mesh(ball.vertices + far, ball.faces, ball.vertices, tmp_path / "far.obj")
    write_mesh(ball.vertices + 50, ball.faces, ball.vertices, tmp_path / "near.ply")
    read = trimesh.load(tmp_path / "far.obj", process=False)
    assert np.allclose(read.vertices - far, ball.vertices, atol=1e-6)


@pytest.mark.parametrize("size", [1e-9, 1e-6, 1.0, 1e6])
def test_coordinates_in_obj_are_as_exact_as_the_shape_is_large(size, tmp_path):
    ball = trimesh.creation.icosphere(2, radius=size)
    write_mesh(ball.vertices, ball.faces, ball.vertices / size, tmp_path / "ball.obj")
    there = trimesh.load(tmp_path / "ball.obj", process=False)
    assert np.abs(there.vertices - ball.vertices).max() <= 1e-8 * size


def test_a_file_that_cannot_be_read_is_said_so(tmp_path, monkeypatch):
    for path, said in ((tmp_path / "none", "does not exist"), (tmp_path, "is a folder"), (tmp_path / "e", "is empty")):
        (tmp_path / "e").touch()
        with pytest.raises(InputError, match=said):
            check_file(path, "the shape", "give one")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is no file"):
        check_file(tmp_path / "pipe", "the shape", "give one")
    with pytest.raises(InputError, match=r"cannot be read.*File name too long"):
        check_file(tmp_path / ("a" * 300), "the shape", "give one")

    def forbidden(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "open", forbidden)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\); give one"):
        check_file(tmp_path / "e", "the shape", "give one")


@pytest.mark.parametrize("make", [ensure_demo_scene, ensure_default_picture])
def test_a_cache_that_cannot_be_written_is_named(make, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("AIRE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"AIRE_CACHE.* or give --data"):
        make()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def run(tmp_path):
    Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3)).save(tmp_path / "photo.png")
    return [
        *("ns-train", "aire-image-siren", "--data", "photo.png", "--timestamp", "run", "--machine.device-type", "cpu"),
        *("--pipeline.model.widths", "8", "8", "--logging.local-writer.enable", "False"),
    ]


FOLDER = "outputs/photo/aire-image-siren/run/nerfstudio_models"


def test_another_run_is_not_written_over(run, tmp_path):
    run = [*run, "--vis", "tensorboard", "--report", "False"]
    assert run_command(*run, "--max-num-iterations", "20", cwd=tmp_path).returncode == 0
    (checkpoint,) = (tmp_path / FOLDER).iterdir()
    before = checkpoint.read_bytes()
    done = run_command(*run, "--max-num-iterations", "30", cwd=tmp_path)
    assert done.returncode == 1
    said = "".join(done.stderr.split())
    assert f"holdsthecheckpointsofanotherrun,whichwouldbewrittenover;goonwith--load-dir{FOLDER}" in said
    assert checkpoint.read_bytes() == before
    assert run_command(*run, "--max-num-iterations", "30", "--load-dir", FOLDER, cwd=tmp_path).returncode == 0
    assert [p.name for p in (tmp_path / FOLDER).iterdir()] == ["step-000000029.ckpt"]


def _until(what, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="commands are started afresh where there is CUDA")
def test_ctrl_c_says_how_to_go_on(run, tmp_path):
    out, err = tmp_path / "out", tmp_path / "err"
    options = ["--vis", "tensorboard", "--max-num-iterations", "100000000", "--steps-per-save", "50"]
    process = start_command(*run, *options, cwd=tmp_path, out=out, err=err)
    try:
        _until(lambda: list((tmp_path / FOLDER).glob("step-*.ckpt")))
        os.kill(process.pid, signal.SIGINT)
        process.wait(60)
    finally:
        process.end()
    assert process.poll() == 130
    said = err.read_text()
    assert "Traceback" not in said + out.read_text()
    assert "error: interrupted in iteration" in said
    assert f"go on with --load-dir {FOLDER}" in said
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="commands are started afresh where there is CUDA")
def test_ctrl_c_leaves_a_finished_run_whose_viewer_goes_on(run, tmp_path):
    out, err = tmp_path / "out", tmp_path / "err"
    port = str(20_000 + os.getpid() % 20_000)
    options = ["--vis", "viewer", "--max-num-iterations", "20", "--viewer.websocket-port", port]
    process = start_command(*run, *options, cwd=tmp_path, out=out, err=err)
    try:
        _until(lambda: out.exists() and "Use ctrl+c to quit" in out.read_text())
        os.kill(process.pid, signal.SIGINT)
        process.wait(60)
    finally:
        process.end()
    assert process.poll() == 0
    assert "Traceback" not in err.read_text() + out.read_text()
    assert (tmp_path / FOLDER).parent.joinpath("report.html").is_file()


def test_ctrl_c_before_training_began_ends_in_a_line_too(tmp_path, monkeypatch, capsys):
    config = tiny_config("image", tmp_path)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "setup", interrupted)
    with pytest.raises(SystemExit) as ended:
        config.setup().setup()
    assert ended.value.code == 130
    assert "error: interrupted before training began; no checkpoint was written yet" in capsys.readouterr().err


def test_another_runs_checkpoint_does_not_open_this_folder(run, tmp_path):
    run = [*run, "--vis", "tensorboard", "--report", "False", "--max-num-iterations", "20"]
    assert run_command(*run, cwd=tmp_path).returncode == 0
    assert run_command(*run, "--timestamp", "other", cwd=tmp_path).returncode == 0
    before = (tmp_path / FOLDER / "step-000000019.ckpt").read_bytes()
    other = FOLDER.replace("/run/", "/other/")
    done = run_command(*run, "--load-dir", other, "--max-num-iterations", "30", cwd=tmp_path)
    assert done.returncode == 1
    assert "checkpoints of another run" in " ".join(done.stderr.split())
    assert (tmp_path / FOLDER / "step-000000019.ckpt").read_bytes() == before
