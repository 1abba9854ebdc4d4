"""Whether training data are those of another run, without keeping them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

# In the metadata of what is trained on.
FINGERPRINT = "fingerprint"
# Of a digest: enough that no two sets of data share it by chance.
DIGITS = 32


def file_fingerprint(path: Path, *more: object) -> str:
    """A digest of a file's bytes and of what else decides what is trained on.

    Not of what was read from it: repairs, and decoders, may round otherwise on another machine.

    Args:
        path: the file.
        more: plain values.
    """
    digest = hashlib.sha256(repr(more).encode())
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()[:DIGITS]


def files_fingerprint(paths: Iterable[Path]) -> str:
    """A digest of many files' names and sizes, in their order: pictures of a scene are not all read for it."""
    listed = [(path.name, path.stat().st_size if path.is_file() else -1) for path in paths]
    return hashlib.sha256(repr(listed).encode()).hexdigest()[:DIGITS]
