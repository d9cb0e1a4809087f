"""Room on disks: what a full one is called, looking for room before it is taken, and what survives a loss of power."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

from runnel.common.errors import StorageFull

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Dispensable(Protocol):
    """Has files that are kept only while there is room."""

    def empty(self) -> bool:
        """Remove them; return whether there was anything."""


_dispensable: WeakSet[Dispensable] = WeakSet()


def give_up_when_full(holder: Dispensable) -> None:
    """Have ``holder`` emptied, as long as it lives, when room is looked for in this process and there is not enough."""
    _dispensable.add(holder)


@contextmanager
def storage_errors(path: Path, *, need_bytes: int | None = None) -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" under ``path`` into :class:`StorageFull`; other errors pass.

    Args:
        path: the file or folder written to; the error names its folder.
        need_bytes: how much was to be written, for the message.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise storage_full(path, need_bytes=need_bytes) from error


def require_room(path: Path, need_bytes: int) -> None:
    """Look whether ``need_bytes`` more fit where ``path`` is, before the first of them takes room from others there.

    Raises:
        StorageFull: they do not.
    """
    folder = path if path.is_dir() else path.parent
    while shutil.disk_usage(folder).free < need_bytes:
        if not any(holder.empty() for holder in list(_dispensable)):
            raise storage_full(path, need_bytes=need_bytes)


def storage_full(path: Path, *, need_bytes: int | None = None) -> StorageFull:
    """Make the error that says that the folder of ``path`` has no room."""
    folder = path if path.is_dir() else path.parent
    free = 0
    with suppress(OSError):  # the folder may be gone; the room in it is only said for people
        free = shutil.disk_usage(folder).free
    need = "" if need_bytes is None else f", {need_bytes:,} bytes are needed"
    return StorageFull(
        f"No room in {folder}: {free:,} bytes are free{need}.",
        hint="Free some space there or choose another folder with --state.",
        folder=str(folder),
        need_bytes=need_bytes,
        free_bytes=free,
    )


def leave_memory(path: Path) -> None:
    """Let the system use the memory in which it holds what was read of or written to ``path``, as far as it is synced.

    What is written next is given that memory: on a virtual machine pages that were free for a while are gone, and to be
    given new ones by its host takes longer than all else that writing does. The file can be read as before. Where the
    system knows nothing of the kind, or there is no such file, nothing is done.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def sync_file(path: Path) -> None:
    """Make the bytes of ``path`` survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
