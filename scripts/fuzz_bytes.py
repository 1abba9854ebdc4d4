"""Let atheris (``pip install atheris``), which sees the branches that an input takes, look for bytes that trip readers.

``python scripts/fuzz_bytes.py --minutes 2``: each target in a process of its own, from one good file; prints
executions, and the branches that the inputs kept reach. ``structure`` is a checkpoint's ``data.pkl``, ``archive`` the
whole file. A crash is whatever is no ``InputError``, 10 seconds or 2.5 GB; its input is kept in ``--crashes``. Exit
status 1 after one.
"""

import argparse
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
SEEDED = ("structure", "archive", "configuration", "sessions", "transforms", "shape")
INSTRUMENTED = ["aire_nerfstudio", "pickle", "zipfile", "yaml", "json", "trimesh.exchange.ply"]


def _good(folder):
    """One good input a target, as files in a folder each."""
    import zipfile

    import torch

    tensors = {"_model.field.a.weight": torch.arange(6.0).reshape(2, 3), "_model.field.a.bias": torch.ones(2)}
    state = {"step": 7, "history": [{"step": 3, "event": "prune"}], "settings": {"first_omega": 30.0}, "flag": True}
    saved = {"step": 7, "pipeline": {**tensors, "_model._extra_state": state}, "optimizers": {}}
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    with zipfile.ZipFile(io.BytesIO(buffer.getvalue())) as archive:
        structure = archive.read("archive/data.pkl")
        parts = {name: archive.read(name) for name in archive.namelist() if not name.endswith("data.pkl")}
    frame = {"file_path": "./train/r_0", "transform_matrix": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]]}
    ply = b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    ply += b"element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"
    kinds = {"command": "ns-train", "started": "now", "device": "cpu", "matmul_precision": "high", "system": "x"}
    session = {**kinds, "python": "3", "torch": "2", "packages": {}, "seconds": 1.0}
    session |= {"from_step": 0, "to_step": 4, "threads": 1, "seed": 1}
    inputs = {
        "structure": structure,
        "archive": buffer.getvalue(),
        "configuration": b"!!python/object:nerfstudio.X\na: &id !!python/tuple [1, 2]\nb: *id\n",
        "sessions": json.dumps([session]).encode(),
        "transforms": json.dumps({"camera_angle_x": 0.7, "frames": [frame]}).encode(),
        "shape": ply,
    }
    for name, data in inputs.items():
        (folder / name).mkdir()
        (folder / name / "good").write_bytes(data)
    return parts


def _targets(folder, parts):
    """What is done with bytes, by name."""
    import zipfile

    from PIL import Image

    from aire_nerfstudio.checkpoint_file import read_checkpoint
    from aire_nerfstudio.data.blender_scene import read_blender_split
    from aire_nerfstudio.data.surface import read_surface
    from aire_nerfstudio.inspection import _parts, executed_by, inspect
    from aire_nerfstudio.sessions import read_sessions

    (folder / "scene" / "train").mkdir(parents=True)
    Image.new("RGBA", (5, 4)).save(folder / "scene" / "train" / "r_0.png")

    def given(data, name):
        path = folder / name
        path.write_bytes(data)
        return path

    def structure(data):
        path = folder / "step-000000007.ckpt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            for name, part in parts.items():
                archive.writestr(name, part)
        _parts(inspect(path))

    return {
        "structure": structure,
        "archive": lambda data: read_checkpoint(given(data, "step-000000001.ckpt")),
        "configuration": lambda data: executed_by(given(data, "config.yml")),
        "sessions": lambda data: read_sessions(given(data, "run.json").parent),
        "transforms": lambda data: read_blender_split(given(data, "scene/transforms_train.json").parent, "train"),
        "shape": lambda data: read_surface(given(data, "shape.ply")),
    }


def _fuzz(name, options):
    """One target, in this process, which ends with it."""
    import atheris

    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as top:
        folder = Path(top)
        with atheris.instrument_imports(include=INSTRUMENTED):
            from aire_nerfstudio.errors import InputError

            target = _targets(folder, _good(folder))[name]

        def one(data):
            try:
                target(data)
            except InputError as error:
                if "\n" in str(error):
                    raise AssertionError(f"two lines: {str(error)!r}") from error

        atheris.Setup([sys.argv[0], *options, str(folder / name)], one)
        atheris.Fuzz()


def main():
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1, help="for each target")
    parser.add_argument("--only", choices=SEEDED)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--crashes", type=Path, default=Path("crashes"), help="folder for inputs that crash")
    parser.add_argument("--inner", help=argparse.SUPPRESS)
    given, rest = parser.parse_known_args()
    if given.minutes <= 0 or (rest and not given.inner):
        parser.error(f"unknown: {' '.join(rest)}" if rest else "--minutes must be above 0")
    if importlib.util.find_spec("atheris") is None:
        sys.exit("error: atheris is not installed; pip install atheris")
    if given.inner:
        return _fuzz(given.inner, rest)
    crashed = 0
    print("| target | executions | branches reached, at first and in the end | crashes |\n|---|---|---|---|")
    for name in [given.only] if given.only else SEEDED:
        given.crashes.mkdir(exist_ok=True)
        limits = [f"-max_total_time={round(60 * given.minutes)}", "-timeout=10", "-rss_limit_mb=2500", "-max_len=4096"]
        limits += [f"-seed={given.seed}", f"-artifact_prefix={given.crashes}/{name}-"]
        command = [sys.executable, __file__, "--inner", name, *limits]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        reached = [int(n) for n in re.findall(r"\bcov: (\d+)", said)] or [0]
        runs = re.findall(r"^Done (\d+) runs|^#(\d+)\s", said, re.M)
        count = max((int(a or b) for a, b in runs), default=0)
        print(f"| {name} | {count:,} | {reached[0]:,}, {reached[-1]:,} | {int(done.returncode != 0)} |", flush=True)
        if done.returncode != 0:
            crashed = 1
            print(said[-3000:], file=sys.stderr)
    return crashed


if __name__ == "__main__":
    sys.exit(main())
