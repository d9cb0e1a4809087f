"""A site's audit log: what ran here, for whom, and who let it; append-only, each record chained to the one before.

The running client and the commands of the site's people write to the same file, each record under a lock and all of
them whole: nothing is remembered between two records, so a log is right whoever wrote last and whoever was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from runnel.client.domain.audit_chain import BrokenChain, Record, following, read_chain, read_record
from runnel.common.disk import sync_folder
from runnel.common.errors import CorruptData
from runnel.common.storage import storage_errors

AUDIT_FILE = "audit.jsonl"
"""Its name in a client's state folder."""

_BLOCK_BYTES = 64 << 10

log = structlog.get_logger()


def utc_now() -> datetime:
    """Return the present time."""
    return datetime.now(UTC)


class AuditLog:
    """The log in the file ``path``. All methods block for as long as the disk takes.

    Args:
        path: made with the first record; its folder exists.
        clock: the time of the records.
    """

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = utc_now) -> None:
        self.path = path
        self._clock = clock

    def append(self, kind: str, data: Mapping[str, Any], *, durable: bool = True) -> Record:
        """Add a record, and wait until it is on the disk if it is to be ``durable``.

        A last line without its end, of a process that was killed while it wrote, is cut off first; a record of the kind
        ``log.healed`` says so.

        Raises:
            CorruptData: the last record is not whole; nothing is added to a log that nobody could believe.
            StorageFull: no room; the log is as it was.
        """
        with self._locked() as descriptor:
            end = os.lseek(descriptor, 0, os.SEEK_END)
            whole = _whole_bytes(descriptor, end)
            before = self._last(descriptor, whole)
            lines = b""
            if whole < end:
                torn = _read(descriptor, whole, end - whole)
                note = {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}
                log.warning("the audit log ended within a record, which was cut off", bytes=len(torn))
                before = following(before, self._clock(), "log.healed", note)
                lines = before.line()
            record = following(before, self._clock(), kind, data)
            if whole < end:
                os.ftruncate(descriptor, whole)
            self._write(descriptor, whole, lines + record.line())
            if durable:
                os.fsync(descriptor)
            return record

    def records(self) -> Iterator[Record]:
        """Yield all records, the oldest first, each verified; a last line that is being written is left out.

        Raises:
            CorruptData: the chain is broken; the message names line and problem.
        """
        try:
            with self.path.open("rb") as file:
                yield from read_chain(line for line in file if line.endswith(b"\n"))
        except FileNotFoundError:
            return
        except BrokenChain as error:
            raise self._broken(str(error)) from error

    def last(self, kind: str) -> Record | None:
        """Return the newest record of a kind; raises as :meth:`records` does."""
        found = None
        for record in self.records():
            if record.kind == kind:
                found = record
        return found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        is_new = not self.path.exists()
        with storage_errors(self.path):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if is_new:
                sync_folder(self.path.parent)
            yield descriptor
        finally:
            os.close(descriptor)

    def _last(self, descriptor: int, whole: int) -> Record | None:
        if not whole:
            return None
        begin = _line_begin(descriptor, whole - 1)
        try:
            return read_record(_read(descriptor, begin, whole - begin), 0)
        except BrokenChain as error:
            raise self._broken(f"the last line: {error.problem}") from error

    def _write(self, descriptor: int, at: int, data: bytes) -> None:
        try:
            with storage_errors(self.path, need_bytes=len(data)):
                written = 0
                while written < len(data):
                    written += os.pwrite(descriptor, data[written:], at + written)
        except BaseException:
            os.ftruncate(descriptor, at)
            raise

    def _broken(self, problem: str) -> CorruptData:
        return CorruptData(
            f"The audit log {self.path} is broken: {problem}.",
            hint="It was changed by hand or by another program. Keep it, but move it away: then a new one begins.",
            path=str(self.path),
        )


def _whole_bytes(descriptor: int, end: int) -> int:
    """Return the length up to the end of the last whole line."""
    return _line_begin(descriptor, end) if end else 0


def _line_begin(descriptor: int, before: int) -> int:
    """Return where the line begins that ``before``, a position, is in or at the end of."""
    while before:
        begin = max(0, before - _BLOCK_BYTES)
        found = _read(descriptor, begin, before - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        before = begin
    return 0


def _read(descriptor: int, begin: int, length: int) -> bytes:
    data = b""
    while len(data) < length and (block := os.pread(descriptor, length - len(data), begin + len(data))):
        data += block
    return data
