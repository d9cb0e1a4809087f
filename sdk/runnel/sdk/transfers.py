"""Files to and from a network: whole and verified, or not at all."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import httpx

from runnel.common.errors import CorruptData, InvalidInput, NotFound, StorageFull
from runnel.sdk.connection import Connection

BLOCK_BYTES = 1 << 20
SILENCE_S = 60.0

Progress = Callable[[int, int], None]
"""Told how many bytes of how many are done."""


def push(
    connection: Connection, path: str, file: Path, *, progress: Progress | None = None, **query: Any
) -> dict[str, Any]:
    """Post the bytes of ``file``, with their digest, under one idempotency key, and return the answer's document.

    Raises:
        NotFound: there is no such file, or it can't be read.
    """
    try:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").digest()
            size = os.fstat(opened.fileno()).st_size
    except OSError as error:
        raise NotFound(f"The file {file} can't be read: {error.strerror}.", path=str(file)) from error
    headers = {
        "Idempotency-Key": uuid.uuid4().hex,
        "Content-Type": "application/octet-stream",
        "Content-Length": str(size),
        "Content-Digest": f"sha-256=:{base64.b64encode(digest).decode()}:",
    }
    return connection.call("POST", path, query=query, headers=headers, content=lambda: _blocks(file, size, progress))


def download(
    connection: Connection, path: str, target: Path, *, sha256: str, size_bytes: int, progress: Progress | None = None
) -> None:
    """Write what is at ``path`` to the file ``target``; where the connection breaks it is resumed.

    Raises:
        CorruptData: length or digest is not ``size_bytes`` and ``sha256`` (in hex); ``target`` stays as it was.
        StorageFull: there is no room for it.
        InvalidInput: ``target`` can't be written.
    """
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with connection.unreachable(), _writing(target), partial.open("xb") as file:
            received = _Received(file, size_bytes, progress)
            for attempt in connection.attempts.retrying():
                with attempt:
                    _receive(connection, path, received)
            file.flush()
            os.fsync(file.fileno())
        if (received.held, received.digest.hexdigest()) != (size_bytes, sha256):
            raise CorruptData(
                f"{connection.url} sent {received.held} bytes with the SHA-256 {received.digest.hexdigest()}; "
                f"{size_bytes} bytes with {sha256} were announced.",
                hint="Try again; if it stays so, tell the operator of the network.",
            )
        with _writing(target):
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


class _Received:
    """What came of a file so far."""

    def __init__(self, file: BinaryIO, size_bytes: int, progress: Progress | None) -> None:
        self.held = 0
        self.digest = hashlib.sha256()
        self._file, self._size_bytes, self._progress = file, size_bytes, progress

    def add(self, block: bytes) -> None:
        self._file.write(block)
        self.digest.update(block)
        self.held += len(block)
        if self._progress is not None:
            self._progress(self.held, self._size_bytes)


def _receive(connection: Connection, path: str, received: _Received) -> None:
    headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
    if received.held:
        headers["Range"] = f"bytes={received.held}-"
    with connection.stream(path, headers=headers, silence_s=SILENCE_S) as response:
        # A server that ignores the range sends the whole file again.
        skip = received.held if response.status_code != httpx.codes.PARTIAL_CONTENT else 0
        for block in response.iter_bytes():
            if skip < len(block):
                received.add(block[skip:])
            skip = max(0, skip - len(block))


def _blocks(file: Path, size: int, progress: Progress | None) -> Iterator[bytes]:
    done = 0
    with file.open("rb") as opened:
        while block := opened.read(BLOCK_BYTES):
            yield block
            done += len(block)
            if progress is not None:
                progress(done, size)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StorageFull(f"There is no room for {target}.", hint="Make room, or give another file.") from error
        raise InvalidInput(f"The file {target} can't be written: {error.strerror}.", path=str(target)) from error
