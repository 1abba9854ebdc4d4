"""Every operation of torch that has a kernel for CUDA, carried out by the processor's on the same memory."""

from __future__ import annotations

import ctypes
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

# They make or look at tensors and launch nothing: torch's own code for CUDA runs.
NATIVE = {
    "aten::empty.memory_format", "aten::empty_strided", "aten::as_strided", "aten::view", "aten::_reshape_alias",
    "aten::unfold", "aten::resize_", "aten::record_stream", "aten::set_", "aten::set_.source_Storage",
    "aten::set_.source_Tensor", "aten::set_.source_Storage_storage_offset", "aten::is_set_to", "aten::is_pinned",
    "aten::_pin_memory", "aten::view_as_real", "aten::view_as_complex",
}  # fmt: skip
# Not in torch's table for CUDA, and yet they launch there.
ALSO = ("aten::copy_", "aten::convolution", "aten::convolution_backward")
# Some of their tensors may be a processor's.
INDEXED = ("aten::index.Tensor", "aten::_index_put_impl_")
MIXED = {"aten::copy_", "aten::fill_.Tensor", "aten::index_put_", *INDEXED}


class Recording:
    """What a graph holds: calls in order, and all that they touch."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []
        self.kept: list[Any] = []
        # What was there before it was written over: a capture itself changes nothing.
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []


class State:
    """What the emulated device counts, and the graph that it is recording."""

    def __init__(self) -> None:
        self.recording: Recording | None = None
        self.launches = 0
        self.waits: list[str] = []


STATE = State()


def alias(t: torch.Tensor) -> torch.Tensor:
    """A processor's tensor over the memory of an emulated one."""
    storage = t.untyped_storage()
    size = storage.nbytes()
    if size == 0:
        return torch.empty(t.shape, dtype=t.dtype)
    memory = torch.frombuffer((ctypes.c_byte * size).from_address(storage.data_ptr()), dtype=torch.uint8)
    whole = torch.empty(0, dtype=t.dtype)
    return whole.set_(memory.untyped_storage(), t.storage_offset(), t.shape, t.stride())


def launch(call: Callable[[], object], *kept: Any) -> None:
    """Make a call, and make it again in each replay of the graph that is being captured."""
    STATE.launches += 1
    call()
    if STATE.recording is not None:
        STATE.recording.calls.append(call)
        STATE.recording.kept.append(kept)


def wait(what: str) -> None:
    """Count a wait of the host for the device; CUDA refuses it while a graph is captured."""
    if STATE.recording is not None:
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing: {what}")
    STATE.waits.append(what)


class Kernel:
    """What runs for ``aten::operation.overload`` on the emulated device.

    Raises:
        AttributeError: Python knows no such operation.
    """

    def __init__(self, name: str) -> None:
        base, _, overload = name.removeprefix("aten::").partition(".")
        self.name = name
        self.operation = getattr(getattr(torch.ops.aten, base), overload or "default")
        self.arguments = self.operation._schema.arguments
        tags = self.operation.tags
        self.is_pointwise = torch.Tag.pointwise in tags
        dynamic = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
        self.has_unknown_size = bool(dynamic & set(tags)) and name not in INDEXED
        self.generator_at = next((i for i, a in enumerate(self.arguments) if "Generator" in str(a.type)), None)
        self.writes = {i for i, a in enumerate(self.arguments) if a.alias_info is not None and a.alias_info.is_write}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The operation on the device's tensors, ``args`` and ``kwargs`` as torch's dispatcher gives them."""
        aliases: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def to_processor(x: Any) -> Any:
            if isinstance(x, torch.device):
                return torch.device("cpu")
            if isinstance(x, torch.Tensor) and x.device.type == "cuda":
                return aliases.setdefault(id(x), (alias(x), x))[0]
            if isinstance(x, torch.Tensor):
                self._check(x)
            return x

        if self.name in INDEXED and args[0].device.type == "cpu":
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        positional = list(tree_map(to_processor, args))
        named = dict(tree_map(to_processor, kwargs))
        named.pop("pin_memory", None)
        self._numbers_to_tensors(positional, any(a.is_floating_point() for a, _ in aliases.values()))
        self._generator_to_processor(positional, named)
        self._waits(args, positional)
        shapes = {key: (a.shape, a.stride()) for key, (a, _) in aliases.items()}
        given = {id(a): x for a, x in aliases.values()}
        STATE.launches += 1
        if STATE.recording is not None:
            self._remember(STATE.recording, positional, named)
        results = self.operation(*positional, **named)
        for key, (a, x) in aliases.items():
            if shapes[key] != (a.shape, a.stride()):
                # Given as out= and made larger: the alias has memory of its own now.
                x.resize_(a.shape)
                there = alias(x)
                there.copy_(a)
                positional, named = tree_map(lambda y, a=a, there=there: there if y is a else y, (positional, named))
        made: list[torch.Tensor] = []

        def to_device(y: Any) -> Any:
            if not isinstance(y, torch.Tensor) or id(y) in given:
                return given.get(id(y), y)
            out = torch.empty_strided(y.shape, y.stride(), dtype=y.dtype, device="cuda")
            alias(out).copy_(y)
            made.append(out)
            return out

        returned = tree_map(to_device, results)
        if STATE.recording is not None:
            self._record(STATE.recording, positional, named, made, (args, kwargs))
        return returned

    def _check(self, x: torch.Tensor) -> None:
        if self.name in MIXED or (x.dim() == 0 and self.is_pointwise):
            return
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {self.name} got one on cuda:0 and one of shape "
            f"{tuple(x.shape)} on {x.device}"
        )

    def _numbers_to_tensors(self, positional: list[Any], is_floating: bool) -> None:
        """Numbers come as such where the operation takes a tensor."""
        for at, value in enumerate(positional):
            if isinstance(value, (bool, int, float)) and str(self.arguments[at].type) == "Tensor":
                exact = torch.float64 if isinstance(value, float) and is_floating else None
                positional[at] = torch.tensor(value, dtype=exact)

    def _generator_to_processor(self, positional: list[Any], named: dict[str, Any]) -> None:
        """A generator of the processor from seed and offset of the device's, which moves on."""
        if self.generator_at is None:
            return
        if STATE.recording is not None:
            raise RuntimeError(f"{self.name}: random numbers in graphs are not emulated")
        place = self.arguments[self.generator_at].name
        is_positional = self.generator_at < len(positional)
        theirs = positional[self.generator_at] if is_positional else named.get(place)
        theirs = torch.cuda.default_generators[0] if theirs is None else theirs
        if theirs.device.type != "cuda":
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{theirs.device}'")
        seed = (theirs.initial_seed() * 1_000_003 + theirs.get_offset()) % (1 << 62)
        theirs.set_offset(theirs.get_offset() + 4)
        if is_positional:
            positional[self.generator_at] = torch.Generator().manual_seed(seed)
        else:
            named[place] = torch.Generator().manual_seed(seed)

    def _waits(self, args: tuple[Any, ...], positional: list[Any]) -> None:
        """Count the call where the host has to wait: for a size, or for a copy."""
        if self.has_unknown_size:
            wait(self.name)
        masks = (torch.bool, torch.uint8)
        if self.name in INDEXED and any(i is not None and i.dtype in masks for i in positional[1]):
            wait(f"{self.name} with a mask")
        if self.name in INDEXED and any(i is not None and i.device.type == "cpu" and i.dim() for i in args[1]):
            wait(f"{self.name} with indices of the host")
        if self.name == "aten::copy_" and args[0].device != args[1].device:
            host = args[0] if args[0].device.type == "cpu" else args[1]
            if not (len(args) > 2 and args[2] and host.is_pinned()):
                wait(f"copy from {args[1].device} to {args[0].device}")

    def _remember(self, recording: Recording, positional: list[Any], named: dict[str, Any]) -> None:
        """Keep what this call is about to write over."""
        values = (positional[i] if i < len(positional) else named.get(self.arguments[i].name) for i in self.writes)
        written = [a for a in tree_leaves(list(values)) if isinstance(a, torch.Tensor) and a.numel()]
        recording.before += [(a, a.clone()) for a in written]

    def _record(
        self, recording: Recording, positional: list[Any], named: dict[str, Any], made: list[torch.Tensor], kept: Any
    ) -> None:
        changed = {id(a) for a in tree_leaves((positional, named)) if isinstance(a, torch.Tensor)}

        def replay() -> None:
            results = tree_leaves(self.operation(*positional, **named))
            fresh = [y for y in results if isinstance(y, torch.Tensor) and id(y) not in changed]
            for out, y in zip(made, fresh, strict=True):
                alias(out).copy_(y)

        recording.calls.append(replay)
        recording.kept.append((kept, made))


class CUDAGraph:
    """``torch.cuda.CUDAGraph``: records the calls between begin and end, and makes them again."""

    def __init__(self, keep_graph: bool = False, **_: Any) -> None:
        self._recording = Recording()

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global", **_: Any) -> None:
        """See torch."""
        if STATE.recording is not None:
            raise RuntimeError("CUDA error: a graph is being captured already")
        STATE.recording = self._recording = Recording()

    def capture_end(self) -> None:
        """See torch."""
        STATE.recording = None
        for place, value in reversed(self._recording.before):
            place.copy_(value)
        self._recording.before.clear()

    def replay(self) -> None:
        """See torch."""
        STATE.launches += 1
        for call in self._recording.calls:
            call()

    def reset(self) -> None:
        """See torch."""
        self._recording = Recording()

    def pool(self) -> tuple[int, int]:
        """See torch."""
        return (0, 0)


def _waiting(function: Callable[..., None]) -> Callable[..., None]:
    """A function that waits for the device, counted."""

    def call(*args: Any, **kwargs: Any) -> None:
        wait(function.__qualname__)
        function(*args, **kwargs)

    return call


def install() -> torch.library.Library:
    """Put the kernels in place in this process; they are there as long as what is returned."""
    library = torch.library.Library("aten", "IMPL", "CUDA")
    # torch 2.6 has no such argument, and asks nothing.
    can_say = "allow_override" in inspect.signature(library.impl).parameters
    options = {"allow_override": True} if can_say else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in torch._C._dispatch_get_all_op_names():
            is_there = name.startswith("aten::") and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
            if name in NATIVE or not (is_there or name in ALSO):
                continue
            try:
                library.impl(name.removeprefix("aten::"), Kernel(name), **options)
            except AttributeError:
                continue
    torch.cuda.CUDAGraph = torch.cuda.graphs.CUDAGraph = CUDAGraph
    torch.cuda.is_current_stream_capturing = lambda: STATE.recording is not None
    torch.cuda.graphs.is_current_stream_capturing = torch.cuda.is_current_stream_capturing
    for place, name in (
        (torch.cuda, "synchronize"),
        (torch.cuda.Stream, "synchronize"),
        (torch.cuda.Event, "synchronize"),
    ):
        setattr(place, name, _waiting(getattr(place, name)))
    # It would generate code for the device.
    torch.compile = lambda model=None, **_: model if model is not None else lambda function: function
    return library
