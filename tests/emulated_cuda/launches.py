"""Launches of kernels that are not torch's: Triton's through its interpreter, ours through the processor's library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# The module that the hook loaded first.
from emulated_device import alias, launch


def of_triton(interpreter: Any) -> None:
    """Let Triton's interpreter work on the device's memory itself."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    given = interpreter.GridExecutor.__call__

    def there(argument: Any) -> Any:
        if isinstance(argument, TensorDescriptor):
            rest = (argument.shape, argument.strides, argument.block_shape, argument.padding)
            return TensorDescriptor(alias(argument.base), *rest)
        return alias(argument) if isinstance(argument, torch.Tensor) else argument

    def call(self: Any, *arguments: Any, **named: Any) -> None:
        tensors = [a.base if isinstance(a, TensorDescriptor) else a for a in (*arguments, *named.values())]
        for t in tensors:
            if isinstance(t, torch.Tensor) and t.device.type != "cuda":
                raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        arguments_there, named_there = [there(a) for a in arguments], {k: there(a) for k, a in named.items()}
        launch(lambda: given(self, *arguments_there, **named_there), tensors)

    interpreter.GridExecutor.__call__ = call


def of_launches(watch: Callable[[list[Any]], None]) -> None:
    """Call ``watch`` with the tensors of each launch of a Triton kernel, which is not run."""
    global launch
    launch = lambda call, tensors=(): watch(list(tensors))  # noqa: E731


class _Library:
    """The processor's library as a CUDA library: the last argument is a stream there and a number of threads here."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._handle, name)

        def call(*arguments: Any) -> int:
            status = []
            launch(lambda: status.append(function(*arguments[:-1], type(arguments[-1])(1))))
            return status[0]

        return call


def of_rays(module: Any) -> None:
    """``CudaLibrary.load`` gives the processor's library."""
    from aire_nerfstudio.ops import backend

    def load(self: Any, device: torch.device) -> Any:
        if device.type != "cuda":
            raise RuntimeError(f"a CUDA library for {device}")
        handle = getattr(backend, self.name.upper()).load()
        return None if handle is None else _Library(handle)

    module.CudaLibrary.load = load
