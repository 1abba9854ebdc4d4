"""What the processor can do, and the compiler's flags that use it.

How exact products are is torch's own setting, ``torch.set_float32_matmul_precision``: ``highest`` (torch's default) is
float32; ``high`` takes each number as two bfloat16 numbers, three products for one, with a relative error below 2^-16,
where the processor has a tile unit (AMX); ``medium`` takes it as one, there and where it has AVX512-BF16. A processor
without them computes in float32 whatever the setting.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from aire_nerfstudio.ops.build import BuildError

FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-fno-math-errno", "-fPIC", "-shared")
_AVX512 = ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma")
_AMX = (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16")
# What the processor can do, as torch names it, and the flags that use it.
CAPABILITIES = {"AVX512": _AVX512, "AVX2": ("-mavx2", "-mfma"), "DEFAULT": ()}
# Kinds whose products are not float32's, and their flags; the number of bfloat16 terms is in them.
REDUCED = {
    "AMX_BF16X3": (*_AMX, "-DAIRE_BF16_TERMS=2"),
    "AMX_BF16": (*_AMX, "-DAIRE_BF16_TERMS=1"),
    "AVX512_BF16": (*_AVX512, "-mavx512bf16", "-DAIRE_BF16_TERMS=1"),
}


def capability() -> str:
    """``AVX512``, ``AVX2`` or ``DEFAULT``: what torch found, or ``AIRE_OPS_CAPABILITY`` if that is less."""
    found = torch.backends.cpu.get_cpu_capability()
    order = list(CAPABILITIES)
    best = next((name for name in order if found.startswith(name)), "DEFAULT")
    asked = (os.environ.get("AIRE_OPS_CAPABILITY") or best).upper()
    if asked not in order:
        raise BuildError(f"AIRE_OPS_CAPABILITY is {asked}; choose one of {', '.join(order)}")
    return order[max(order.index(best), order.index(asked))]


def is_worth_it(kind: str) -> bool:
    """Whether a library that multiplies matrices is faster than PyTorch: plain vectors are not, and sines one by one.

    ``AIRE_OPS_CAPABILITY=default`` takes it all the same.
    """
    return kind != "DEFAULT" or os.environ.get("AIRE_OPS_CAPABILITY", "").upper() == "DEFAULT"


def kind_for(precision: str) -> str:
    """Which kind serves a precision of ``torch.set_float32_matmul_precision`` on this processor.

    Args:
        precision: ``highest``, ``high`` or ``medium``.

    Raises:
        BuildError: ``AIRE_OPS_CAPABILITY`` names none.
    """
    exact = capability()
    if precision == "highest" or exact != "AVX512":
        return exact
    if _has("_is_amx_tile_supported") and _has("_is_avx512_bf16_supported") and _has("_init_amx"):
        return "AMX_BF16X3" if precision == "high" else "AMX_BF16"
    # Three products at twice the rate would be no gain.
    return "AVX512_BF16" if precision == "medium" and _has("_is_avx512_bf16_supported") else exact


def matmul_precision() -> str:
    """``torch.get_float32_matmul_precision``; ``highest`` where torch's newer settings by backend forbid to ask."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "highest"


def _has(question: str) -> bool:
    """What torch says of the processor; no where it does not know the question."""
    ask = getattr(torch.cpu, question, None)
    return ask is not None and bool(ask())


def openmp() -> tuple[str, ...]:
    """Link torch's own OpenMP: a second one would have threads of its own, which wait where ours work."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        return (f"-Wl,-rpath,{path.parent}", f"-L{path.parent}", f"-l:{path.name}")
    return ()
