"""The compiled ray ops for the device that the tensors are on, and their call."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from aire_nerfstudio.ops import backend, cuda
from aire_nerfstudio.ops.arguments import are_plain, is_transformed, pointer

Argument = Tensor | None | int | float


@dataclass(frozen=True)
class RayLibrary:
    """A loaded library and where it is to run.

    Attributes:
        handle: the library.
        device: of the tensors.
    """

    handle: ctypes.CDLL
    device: torch.device

    def call(self, name: str, *arguments: Argument) -> None:
        """Call ``name``: integers are 64 bits wide, floats 32, tensors go as pointers to contiguous memory.

        Raises:
            RuntimeError: CUDA reports an error.
        """
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                queue = torch.cuda.current_stream(self.device).cuda_stream
                status = getattr(self.handle, name)(*map(_as_c, arguments), ctypes.c_int64(queue))
        else:
            status = getattr(self.handle, name)(*map(_as_c, arguments), ctypes.c_int64(torch.get_num_threads()))
        if status != 0:
            self.handle.aire_error.restype = ctypes.c_char_p
            raise RuntimeError(f"{name} failed on {self.device}: {self.handle.aire_error(status).decode()}")


def ray_library(*tensors: Tensor) -> RayLibrary | None:
    """The library for these tensors, or None where PyTorch's operations are to be used.

    It takes tensors on one device, a processor or CUDA, whose floating-point numbers are float32.
    """
    device = tensors[0].device
    if device.type not in ("cpu", "cuda") or is_transformed():
        return None
    if any(t.device != device or (t.is_floating_point() and t.dtype != torch.float32) for t in tensors):
        return None
    if device.type == "cpu" and not are_plain(*tensors):
        return None
    handle = backend.RAY_MARCHING.load() if device.type == "cpu" else cuda.RAY_MARCHING.load(device)
    return None if handle is None else RayLibrary(handle, device)


def has_shapes(*pairs: tuple[Tensor, tuple[int, ...]]) -> bool:
    """Whether each tensor has the shape that a library takes for granted; PyTorch says what is wrong with others."""
    return all(tuple(tensor.shape) == shape for tensor, shape in pairs)


def _as_c(value: Argument) -> ctypes._SimpleCData:
    if value is None or isinstance(value, Tensor):
        assert value is None or value.is_contiguous()
        return pointer(value)
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int64(value)
