"""Makes the CUDA device of this Python process an emulated one: see ``emulated_cuda/__init__.py``."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path


def _load(name):
    if f"emulated_{name}" in sys.modules:
        return sys.modules[f"emulated_{name}"]
    path = Path(__file__).resolve().parent.parent / f"{name}.py"
    specification = importlib.util.spec_from_file_location(f"emulated_{name}", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def _torch(_):
    device = _load("device")
    device.LIBRARY = device.install()


def _triton(module):
    _load("launches").of_triton(module)


def _rays(module):
    _load("launches").of_rays(module)


AFTER = {"torch": _torch, "triton.runtime.interpreter": _triton, "aire_nerfstudio.ops.cuda": _rays}


class _Finder:
    """Calls a function of :data:`AFTER` once its module has been imported."""

    def find_spec(self, name, path=None, target=None):
        after = AFTER.get(name)
        if after is None:
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path, target)
        if found is None:
            return None
        execute = found.loader.exec_module

        def exec_module(module):
            execute(module)
            after(module)

        found.loader.exec_module = exec_module
        return found


sys.meta_path.insert(0, _Finder())
