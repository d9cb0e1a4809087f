"""The digest that names a blob."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from runnel.common.protocol import BlobRef

BLOCK_BYTES = 1 << 20
EMPTY = BlobRef(sha256=hashlib.sha256(b"").hexdigest(), size_bytes=0)

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


def is_sha256(text: str) -> bool:
    """Whether ``text`` is a SHA-256 in lower-case hex."""
    return _SHA256.match(text) is not None


Source = Path | memoryview
"""Where the bytes of a blob are: in a file, or in memory where they are kept anyway."""


def digest_of(source: Source) -> BlobRef:
    """Return the name and exact length of what is in a file or in memory; blocks the thread."""
    if isinstance(source, memoryview):
        return BlobRef(sha256=hashlib.sha256(source).hexdigest(), size_bytes=source.nbytes)
    return digest_file(source)


def digest_file(path: Path) -> BlobRef:
    """Read the file once in blocks of 1 MiB and return its name and exact length.

    Blocks the thread; memory does not grow with the file.

    >>> import pathlib
    >>> digest_file(pathlib.Path("/dev/null")) == EMPTY
    True
    """
    digest = hashlib.sha256()
    size = update_digest(digest, path)
    return BlobRef(sha256=digest.hexdigest(), size_bytes=size)


def update_digest(digest: hashlib._Hash, path: Path) -> int:
    """Feed the bytes of ``path`` to ``digest`` and return how many they were."""
    block = memoryview(bytearray(BLOCK_BYTES))
    size = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            size += count
    return size
