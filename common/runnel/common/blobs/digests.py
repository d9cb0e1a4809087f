"""The digests that name a blob."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from runnel.common.protocol import BlobRef

BLOCK_BYTES = 1 << 20
EMPTY = BlobRef(sha256=hashlib.sha256(b"").hexdigest(), size_bytes=0)

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class Digest(Protocol):
    """What :mod:`hashlib` and :mod:`blake3` make."""

    def update(self, data: memoryview, /) -> object:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """Return the digest of what was taken in, in lower-case hex."""


def is_sha256(text: str) -> bool:
    """Whether ``text`` is a SHA-256 in lower-case hex."""
    return _SHA256.match(text) is not None


Source = Path | memoryview
"""Where the bytes of a blob are: in a file, or in memory where they are kept anyway."""


def checking_digest(ref: BlobRef) -> tuple[Digest, str]:
    """Return an empty digest to check the blob by, and what it has to come to; of what has no name yet, BLAKE3."""
    if ref.sha256 and not ref.blake3:
        return hashlib.sha256(), ref.sha256
    return blake3(), ref.blake3


def is_blob(data: bytes, ref: BlobRef) -> bool:
    """Whether these bytes are the blob."""
    digest, wanted = checking_digest(ref)
    digest.update(memoryview(data))
    return len(data) == ref.size_bytes and digest.hexdigest() == wanted


def digest_payload(source: Source) -> BlobRef:
    """Return name (BLAKE3) and exact length of a payload, an update or a sum; blocks the thread."""
    digest = blake3()
    if isinstance(source, memoryview):
        digest.update(source.cast("B"))
        return BlobRef(blake3=digest.hexdigest(), size_bytes=source.nbytes)
    size = update_digest(digest, source)
    return BlobRef(blake3=digest.hexdigest(), size_bytes=size)


def digest_file(path: Path) -> BlobRef:
    """Read the file once in blocks of 1 MiB and return its name (SHA-256) and exact length.

    Blocks the thread; memory does not grow with the file.

    >>> import pathlib
    >>> digest_file(pathlib.Path("/dev/null")) == EMPTY
    True
    """
    digest = hashlib.sha256()
    size = update_digest(digest, path)
    return BlobRef(sha256=digest.hexdigest(), size_bytes=size)


def update_digest(digest: Digest, path: Path) -> int:
    """Feed the bytes of ``path`` to ``digest`` and return how many they were."""
    block = memoryview(bytearray(BLOCK_BYTES))
    size = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            size += count
    return size
