"""Reading a checkpoint without trusting it: nothing of it is executed, and it takes about twice its size of memory.

``torch.load(weights_only=True)`` runs no code either, but a hostile file can ask it for any amount of memory or time:
by a compressed archive, by ``bytearray(10**12)``, by keys that are nested tuples, by tensors larger than their data;
and it finds the archive's parts in another way than whoever looks at them before. So the file is read here, once.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aire_nerfstudio.errors import InputError, first_line
from aire_nerfstudio.files import as_looked_for

# Bytes of the structure around the tensors; ours have less than a tenth.
LARGEST_STRUCTURE = 1 << 20
# Entries of the whole nest, shared ones counted each time, and its depth.
MOST_ENTRIES, DEEPEST = 1_000_000, 100
DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint's tensors, on the CPU, and plain data.

    Args:
        path: written by nerfstudio's trainer or ours.

    Raises:
        InputError: missing, truncated, holding more than plain data, made to take more memory than its size, or not a
            nerfstudio checkpoint.
    """
    if not path.is_file():
        raise InputError(f"checkpoint {as_looked_for(path)} does not exist; give a step-*.ckpt of a run")
    try:
        with zipfile.ZipFile(path) as archive:
            saved = _Reader(*_parts(path, archive)).load()
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} holds more than plain data and is not loaded ({first_line(error)}); it was written by "
            "another method or is damaged"
        ) from error
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"checkpoint {path} is truncated or not a checkpoint ({first_line(error)}); give a run's step-*.ckpt, an "
            "earlier one where this is damaged"
        ) from error
    _check_size(path, saved)
    if not isinstance(saved, dict) or not isinstance(saved.get("pipeline"), dict) or not _is_count(saved.get("step")):
        raise InputError(f"checkpoint {path} is not a nerfstudio checkpoint: it has no 'pipeline' and 'step'")
    if not all(isinstance(key, str) for key in saved["pipeline"]):
        raise InputError(f"checkpoint {path} is not a nerfstudio checkpoint: names in 'pipeline' are no text")
    return saved


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _parts(path: Path, archive: zipfile.ZipFile) -> tuple[bytes, zipfile.ZipFile, str]:
    """The structure, and where the tensors' data are; refuses what torch does not write."""
    parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise InputError(f"checkpoint {path} is compressed, which torch does not do; it is not loaded")
    if sum(part.file_size for part in parts) > path.stat().st_size:
        raise InputError(f"checkpoint {path} claims more bytes than it has; it is not loaded")
    if any(part.filename.startswith("/") or ".." in Path(part.filename).parts for part in parts):
        raise InputError(f"checkpoint {path} names files outside itself; it is not loaded")
    if len({part.filename.lower() for part in parts}) < len(parts):
        raise InputError(f"checkpoint {path} has two parts of one name; it is not loaded")
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise InputError(f"checkpoint {path} has something before its archive; it is not loaded")
    structures = [part for part in parts if re.fullmatch(r"[^/]+/data\.pkl", part.filename)]
    if len(structures) != 1 or structures[0].file_size > LARGEST_STRUCTURE:
        raise InputError(f"checkpoint {path} has no structure of a checkpoint (one data.pkl); it is not loaded")
    folder = structures[0].filename.split("/")[0]
    names = {part.filename for part in parts}
    order = archive.read(f"{folder}/byteorder") if f"{folder}/byteorder" in names else b"little"
    if order.decode("ascii", "replace") != sys.byteorder:
        raise InputError(f"checkpoint {path} was written on a machine of another byte order; it is not loaded")
    return archive.read(structures[0]), archive, folder


class _Storage:
    """A tensor's data, not yet looked at."""

    def __init__(self, dtype: torch.dtype, data: bytearray) -> None:
        self.dtype, self.data = dtype, data


# In Python, so that each operation can be refused.
_Unpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class _Reader(_Unpickler):
    """Makes dictionaries, lists, tuples, numbers, text and tensors; of keys, numbers and text."""

    def __init__(self, structure: bytes, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(structure))
        self._archive, self._folder = archive, folder
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")):
            return _tensor if name == "_rebuild_tensor_v2" else _parameter
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch" and name in DTYPES:
            return name
        raise pickle.UnpicklingError(f"it asks for {module}.{name}"[:120])

    def persistent_load(self, saved_id: Any) -> _Storage:
        kind, dtype, key, _, count = saved_id
        if kind != "storage" or dtype not in DTYPES or not isinstance(key, str) or not re.fullmatch(r"\d+", key):
            raise pickle.UnpicklingError("it asks for something else than a tensor's data")
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._folder}/data/{key}"))
            self._storages[key] = _Storage(DTYPES[dtype], data)
        storage = self._storages[key]
        if storage.dtype != DTYPES[dtype] or count * storage.dtype.itemsize != len(storage.data):
            raise pickle.UnpicklingError(f"a tensor's data have {len(storage.data)} bytes, not those that it says")
        return storage

    def _setitem(self) -> None:
        _check_key(self.stack[-2])
        super().load_setitem()

    def _setitems(self) -> None:
        for key in self.stack[::2]:
            _check_key(key)
        super().load_setitems()

    def _build(self) -> None:
        # The state of an OrderedDict: attributes of a state dict that nobody needs.
        self.stack.pop()

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if function not in (OrderedDict, _tensor, _parameter, tuple) or (function is OrderedDict and arguments):
            raise pickle.UnpicklingError("it calls something else than what makes a tensor")
        self.stack[-1] = function(*arguments)

    dispatch = {
        code[0]: _Unpickler.dispatch[code[0]]
        for code in (
            b"\x80", b"}", b"]", b")", b"(", b"t", b"\x85", b"\x86", b"\x87", b"a", b"e", b"K", b"M", b"J", b"\x8a",
            b"G", b"X", b"q", b"r", b"h", b"j", b"N", b"\x88", b"\x89", b"c", b"Q", b".",
        )
    }  # fmt: skip
    dispatch.update({b"s"[0]: _setitem, b"u"[0]: _setitems, b"b"[0]: _build, b"R"[0]: _reduce})

    def load(self) -> Any:
        """As pickle's; an operation that no checkpoint needs is refused."""
        try:
            return super().load()
        except KeyError as error:
            if len(error.args) == 1 and isinstance(error.args[0], int) and error.args[0] not in self.dispatch:
                raise pickle.UnpicklingError(f"it makes objects (operation {error.args[0]:#04x})") from error
            raise


def _check_key(key: Any) -> None:
    if not isinstance(key, str | int | float | bool | None):
        raise pickle.UnpicklingError(f"a dictionary has a key that is a {type(key).__name__}")


def _tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    """A tensor that owns its data; ``[]`` to any number of dimensions."""
    shape = [int(n) for n in size]
    if min(shape, default=0) < 0 or min((int(n) for n in stride), default=0) < 0 or offset < 0:
        raise pickle.UnpicklingError("a tensor has a negative length")
    if math.prod(shape) * storage.dtype.itemsize > len(storage.data):
        raise pickle.UnpicklingError(f"a tensor of shape {shape} has {len(storage.data)} bytes of data")
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=storage.dtype)
    # as_strided refuses what lies outside.
    return (
        torch.frombuffer(storage.data, dtype=storage.dtype).as_strided(shape, [int(n) for n in stride], offset).clone()
    )


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _check_size(path: Path, saved: Any) -> None:
    """Refuse a nest that is larger than its file once each reference is followed, as copies and reports do."""
    entries, size, left = 0, 0, [(saved, 0)]
    while left:
        value, depth = left.pop()
        entries += 1
        if isinstance(value, Tensor):
            size += value.numel() * value.element_size()
        elif isinstance(value, dict | list | tuple):
            inner = value.values() if isinstance(value, dict) else value
            left.extend((item, depth + 1) for item in inner)
        if entries + len(left) > MOST_ENTRIES or depth > DEEPEST or size > path.stat().st_size:
            raise InputError(f"checkpoint {path} is larger inside than outside; it is not loaded")
