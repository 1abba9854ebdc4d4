"""Imports go one way, and only the outer rooms know nerfstudio."""

import ast
import subprocess
import sys
from pathlib import Path

import aire_nerfstudio

ROOT = Path(aire_nerfstudio.__file__).parent.parent
# Each room may import itself and those before it.
ROOMS = """
errors files shapes distributed notices processes checkpoint_file ops fields losses adaptation record analysis data
machine sessions report viewer models export summary inspection reproduce bench compare nerfbaselines method_configs
commands
"""
WITHOUT = """
errors files shapes distributed processes checkpoint_file ops losses adaptation record analysis machine sessions summary
inspection reproduce bench
"""
ORDER, WITHOUT_NERFSTUDIO = ROOMS.split(), set(WITHOUT.split())


def _sources():
    for path in [*(ROOT / "aire_nerfstudio").rglob("*.py"), *(ROOT / "method_configs").rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        room = parts[0] if parts[0] == "method_configs" else parts[1]
        if room != "__init__":
            yield path, room


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def test_every_room_is_in_the_order():
    assert {room for _, room in _sources()} == set(ORDER)


def test_imports_go_one_way():
    for path, room in _sources():
        for name in _imports(path):
            if name.startswith("aire_nerfstudio."):
                imported = name.split(".")[1]
                assert ORDER.index(imported) <= ORDER.index(room), f"{path.name} in {room} imports {name}"


def test_the_core_does_not_know_nerfstudio():
    for path, room in _sources():
        if room in WITHOUT_NERFSTUDIO or (room == "fields" and path.name != "radiance_field.py"):
            assert not any(name.startswith("nerfstudio") for name in _imports(path)), path


def test_registering_the_methods_imports_nothing_heavy():
    """Every ns- command imports every registered method: one that fails or is slow harms all of them.

    They are not installed here, so that looking for one fails as well.
    """
    code = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "from importlib.metadata import entry_points\n"
        "heavy = {'open3d', 'pymeshlab', 'trimesh', 'tinycudann', 'skimage', 'embreex', 'torch_pruning', 'igl'}\n"
        "find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *rest: None if name in heavy else find(name, *rest)\n"
        "loaded = [e.load() for e in entry_points(group='nerfstudio.method_configs') if e.module.startswith('aire_')]\n"
        "assert len(loaded) >= 3, loaded\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
