"""Reading a checkpoint without trusting it: nothing of it is executed, and it takes no more memory than its size.

``torch.load(weights_only=True)`` runs no code, but a hostile file can still ask it for any amount of memory: by a
compressed archive, by ``bytearray(10**12)``, or by a tensor whose shape is larger than its data.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aire_nerfstudio.errors import InputError, first_line

# What may be called while reading: dictionaries and tensors. Checkpoints of this package hold nothing else.
CALLED = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch (\w+)Storage|torch Size")
# Bytes of the structure around the tensors.
LARGEST_STRUCTURE = 1 << 26


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint's tensors, on the CPU, and plain data.

    Args:
        path: written by nerfstudio's trainer or ours.

    Raises:
        InputError: missing, truncated, holding more than plain data, made to take more memory than its size, or not a
            nerfstudio checkpoint.
    """
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist")
    try:
        _look_through(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} holds more than plain data and is not loaded ({first_line(error)}); it was written by "
            "another method or is damaged"
        ) from error
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"checkpoint {path} is truncated or not a checkpoint ({first_line(error)})") from error
    _check_tensors(path, saved)
    if not isinstance(saved, dict) or not isinstance(saved.get("pipeline"), dict) or not _is_count(saved.get("step")):
        raise InputError(f"checkpoint {path} is not a nerfstudio checkpoint: it has no 'pipeline' and 'step'")
    return saved


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _look_through(path: Path) -> None:
    """Refuse, before anything is unpacked, what is compressed, lies elsewhere, or calls anything."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise InputError(f"checkpoint {path} is compressed, which torch does not do; it is not loaded")
        if sum(part.file_size for part in parts) > path.stat().st_size:
            raise InputError(f"checkpoint {path} claims more bytes than it has; it is not loaded")
        if any(part.filename.startswith("/") or ".." in Path(part.filename).parts for part in parts):
            raise InputError(f"checkpoint {path} names files outside itself; it is not loaded")
        structures = [part for part in parts if part.filename.endswith(".pkl")]
        if len(structures) != 1 or structures[0].file_size > LARGEST_STRUCTURE:
            raise InputError(f"checkpoint {path} has no structure of a checkpoint (one data.pkl); it is not loaded")
        structure = archive.read(structures[0])
    for operation, argument, _ in pickletools.genops(structure):
        if operation.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
            raise pickle.UnpicklingError(f"it makes objects ({operation.name})")
        if operation.name == "GLOBAL" and not CALLED.fullmatch(str(argument)):
            raise pickle.UnpicklingError(f"it asks for {str(argument)[:80].replace(' ', '.')}")


def _check_tensors(path: Path, saved: Any) -> None:
    """Refuse tensors that show the same numbers again and again: a copy of one would be larger than the file."""
    seen: set[int] = set()
    left = [saved]
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise InputError(
                    f"checkpoint {path} holds a tensor of shape {list(value.shape)} with "
                    f"{value.untyped_storage().nbytes()} bytes of data; it is not loaded"
                )
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left.extend(value.values() if isinstance(value, dict) else value)
