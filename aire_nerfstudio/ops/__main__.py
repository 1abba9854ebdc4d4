"""``python -m aire_nerfstudio.ops``: what is built, for which device, and if not, why."""

from __future__ import annotations

import warnings

import torch

from aire_nerfstudio.ops import cuda
from aire_nerfstudio.ops.backend import LIBRARIES, Build, is_off
from aire_nerfstudio.ops.build import cache_folder
from aire_nerfstudio.ops.triton_network import missing

# What CUDA sources are compiled for where there is no device to ask: Hopper.
WITHOUT_DEVICE = (9, 0)


def main() -> None:
    """Print the status of every compiled library, building what is not there yet."""
    warnings.simplefilter("ignore")
    try:
        place = f"builds in {cache_folder()}"
    except RuntimeError as error:  # no home folder
        place = f"no place for builds ({error}; AIRE_OPS_CACHE names one)"
    print(f"torch {torch.__version__}, processor {torch.backends.cpu.get_cpu_capability()}, {place}")
    if is_off():
        print("AIRE_OPS is off: PyTorch's operations are used")
    for precision in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(precision)
        print(f'torch.set_float32_matmul_precision("{precision}"):')
        for library in LIBRARIES:
            if library.has_precisions:
                _say(library.name, library.build())
    print("whatever the precision:")
    for library in LIBRARIES:
        if not library.has_precisions:
            _say(library.name, library.build())
    _say_cuda()


def _say_cuda() -> None:
    print("CUDA:")
    lacks = missing()
    print("  networks at medium: by Triton" if lacks is None else f"  networks at medium: by PyTorch, since {lacks}")
    if torch.cuda.is_available():
        for library in cuda.LIBRARIES:
            _say(library.name, library.build(torch.cuda.get_device_capability()))
        return
    for library in cuda.LIBRARIES:
        try:
            path = library.compile(WITHOUT_DEVICE)
            print(
                f"  {library.name}: there is no device; compiled for SM_{WITHOUT_DEVICE[0]}{WITHOUT_DEVICE[1]}, {path}"
            )
        except (OSError, RuntimeError) as error:
            print(f"  {library.name}: there is no device, and it could not be compiled: {error}")


def _say(name: str, made: Build) -> None:
    if made.handle is not None:
        print(f"  {name}: built for {made.kind}, {made.path}")
    else:
        print(f"  {name}: not built, PyTorch's operations are used: {made.reason}")


if __name__ == "__main__":
    main()
