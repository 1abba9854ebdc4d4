"""``python -m aire_nerfstudio.ops``: what is built, for which processor, and if not, why."""

from __future__ import annotations

import warnings

import torch

from aire_nerfstudio.ops.backend import LIBRARIES, cache_folder, capability, is_off


def main() -> None:
    """Print the status of every compiled library, building what is not there yet."""
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, processor {torch.backends.cpu.get_cpu_capability()}, builds in {cache_folder()}")
    if is_off():
        print("AIRE_OPS is off: PyTorch's operations are used")
    for library in LIBRARIES:
        if library.load() is not None:
            print(f"{library.name}: built for {capability()}, {library.path}")
        else:
            print(f"{library.name}: not built, PyTorch's operations are used: {library.reason}")
    print("CUDA: no compiled ops yet; PyTorch's operations are used there")


if __name__ == "__main__":
    main()
