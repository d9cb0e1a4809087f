"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from runnel.common.storage import storage_errors


class AtomicFile:
    """A file under a temporary name beside ``path`` that takes its place at :meth:`commit`.

    ``temporary``: that name. As a context manager it removes the temporary file unless it was committed. A reader never
    sees half a file, also when this process is killed; what a power failure leaves is up to whoever stores the file for
    good.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}.part")
        with storage_errors(path.parent):
            self.file: BinaryIO = self.temporary.open("x+b")
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``.

        Raises:
            StorageFull: the disk is full.
        """
        with storage_errors(self.path.parent):
            self.file.write(data)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write ``data`` at ``offset`` bytes from the start; :meth:`write` goes on where it was.

        Raises:
            StorageFull: the disk is full.
        """
        with storage_errors(self.path.parent):
            self.file.flush()
            view = memoryview(data).cast("B")
            while view:
                done = os.pwrite(self.file.fileno(), view, offset)
                view, offset = view[done:], offset + done

    def flush(self) -> None:
        """Hand what was written to the system, so that it can be read by the file's descriptor.

        Raises:
            StorageFull: the disk is full.
        """
        with storage_errors(self.path.parent):
            self.file.flush()

    def seal(self) -> None:
        """Hand all bytes to the system; only :meth:`commit` or :meth:`abort` may follow. Idempotent.

        Raises:
            StorageFull: the disk is full.
        """
        with storage_errors(self.path.parent):
            self.file.close()

    def commit(self) -> None:
        """Seal the file and put it in its place.

        Raises:
            StorageFull: the disk is full; the temporary file is gone then.
        """
        try:
            self.seal()
            with storage_errors(self.path.parent):
                self.temporary.replace(self.path)
                self._open = False
        finally:
            self.abort()

    def abort(self) -> None:
        """Remove the temporary file, if it was not committed; idempotent."""
        if not self._open:
            return
        self._open = False
        try:
            self.file.close()
        except OSError as e:
            # Buffered bytes that no longer fit on the disk; the file goes away and the first error was reported.
            if e.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
        finally:
            self.temporary.unlink(missing_ok=True)
