"""Compiled ops for processors: built when first used, loaded once, never a reason for a run to stop.

``$AIRE_OPS_FLAGS`` are given to the compiler besides ours. :mod:`.processors` says what is built for which processor
and precision, :mod:`.build` how; :mod:`.cuda` has the libraries for CUDA.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from aire_nerfstudio.ops.build import BuildError, build, compiler
from aire_nerfstudio.ops.processors import (
    CAPABILITIES,
    FLAGS,
    REDUCED,
    capability,
    is_worth_it,
    kind_for,
    matmul_precision,
    openmp,
)


@dataclass
class Build:
    """What became of a library for one kind of processor.

    Attributes:
        kind: one of :data:`CAPABILITIES` or :data:`REDUCED`.
        handle: the loaded library, None where it cannot be had.
        path: where it lies.
        reason: why it cannot be had, in a line.
    """

    kind: str
    handle: ctypes.CDLL | None = None
    path: Path | None = None
    reason: str | None = None


@dataclass
class Library:
    """One compiled library and what became of it in this process, for each kind that was asked for.

    Attributes:
        name: of the source in ``csrc/``, without suffix.
        flags: for the compiler, besides those of every library.
        has_precisions: whether it multiplies matrices, and so heeds ``torch.set_float32_matmul_precision``.
        reason: why it cannot be had at all, in a line.
    """

    name: str
    flags: tuple[str, ...] = ()
    has_precisions: bool = True
    reason: str | None = None
    _builds: dict[str, Build] = field(default_factory=dict)
    _chosen: dict[str, Build] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    def load(self) -> ctypes.CDLL | None:
        """The library of the precision in force, built if need be; None where that fails, which is said once."""
        return self.build().handle

    def build(self) -> Build:
        """What is used at the precision in force: a kind that cannot be built gives way to the exact one."""
        precision = matmul_precision() if self.has_precisions else "highest"
        if precision not in self._chosen:
            self._chosen[precision] = self._choose(precision)
        return self._chosen[precision]

    def _choose(self, precision: str) -> Build:
        try:
            exact, wanted = capability(), kind_for(precision)
        except BuildError as error:
            self._say(str(error))
            return Build("none", reason=str(error))
        if self.has_precisions and not is_worth_it(wanted):
            self._say("without AVX2 or AVX-512 PyTorch's operations are the faster ones")
            return Build("none", reason=self.reason)
        made = self._try(wanted)
        if made.handle is None and wanted != exact:
            warnings.warn(f"products stay float32: {made.reason} (python -m aire_nerfstudio.ops)", stacklevel=5)
            made = self._try(exact)
        if made.handle is None:
            self._say(made.reason or "")
        return made

    def _try(self, kind: str) -> Build:
        # Another thread, a viewer's, waits; and what is interrupted was not tried.
        with self._lock:
            if kind not in self._builds:
                made = Build(kind)
                try:
                    extra = os.environ.get("AIRE_OPS_FLAGS", "").split()
                    flags = (*FLAGS, *{**CAPABILITIES, **REDUCED}[kind], *openmp(), *self.flags, *extra)
                    made.path = build(f"{self.name}.cpp", kind, [*compiler(), *flags])
                    try:
                        made.handle = ctypes.CDLL(str(made.path))
                    except OSError:  # damaged: cut short by a full disk or a power loss
                        made.path.unlink()
                        made.path = build(f"{self.name}.cpp", kind, [*compiler(), *flags])
                        made.handle = ctypes.CDLL(str(made.path))
                except OSError as error:
                    is_of_cache = isinstance(error, (FileExistsError, PermissionError, NotADirectoryError))
                    made.reason = f"{error}; AIRE_OPS_CACHE names another folder" if is_of_cache else str(error)
                except (RuntimeError, ValueError) as error:  # no home folder; flags that are no command line
                    made.reason = str(error)
                self._builds[kind] = made
            return self._builds[kind]

    def _say(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
            warnings.warn(
                f"compiled ops are not used, PyTorch's are: {reason} (python -m aire_nerfstudio.ops)", stacklevel=6
            )

    def loaded(self) -> ctypes.CDLL:
        """The library, after :meth:`load` has said that it is there."""
        handle = self.load()
        assert handle is not None
        return handle


def is_off() -> bool:
    """Whether the environment asks for the reference (``AIRE_OPS=off``)."""
    return _is_off(os.environ.get("AIRE_OPS", "").strip().lower())


@functools.cache
def _is_off(switch: str) -> bool:
    if switch not in ("", "on", "1", "true", "yes", "off", "0", "false", "no", "reference"):
        warnings.warn(f"AIRE_OPS is {switch!r}, which is neither on nor off; compiled ops are used", stacklevel=4)
    return switch in ("off", "0", "false", "no", "reference")


SINE_NETWORK = Library("sine_network")
VALUE_GRADIENT = Library("value_gradient")
MEAN_CURVATURE = Library("mean_curvature")
# Samples are to be the same as PyTorch's to the bit.
RAY_MARCHING = Library("ray_marching", ("-ffp-contract=off",), has_precisions=False)
LIBRARIES = (SINE_NETWORK, VALUE_GRADIENT, MEAN_CURVATURE, RAY_MARCHING)
