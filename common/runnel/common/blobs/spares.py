"""Large files that nobody reads any more, whose pages and blocks the next ones get."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import structlog

from runnel.common.blobs.threads import in_thread
from runnel.common.storage import give_up_when_full

log = structlog.get_logger()

LEAST_SPARE_BYTES = 1 << 20
"""Smaller files are not worth it."""

_MOST_FILES = 4
_IDLE_S = 30.0
_ROOM = 4  # times the length of a spare must be free besides


class Spares:
    """Keeps some spent files for a while instead of removing them, and gives them away to be written over.

    What is written over has its pages in memory and its blocks on the disk. A file that is new, however often its like
    was removed before, waits for the kernel to find both, and on a virtual machine for its host to bring the memory:
    measured there, 2 to 3 seconds per gigabyte against 0.15. Where somebody else makes the next file, to remove the
    spares right before is the next best (:meth:`empty`): 0.3 to 0.5.

    At most four files are kept, none of less than a megabyte, none on a disk that is filling up or when room is looked
    for in vain, and none for longer than half a minute after the last. None is a file that somebody else has linked or
    could open anew. All but :meth:`spend` and :meth:`expire` may be called in any thread.

    Args:
        folder: where they are kept: on the file system of the files, and removed by who owns it when a process starts.
        idle_s: for how long after the last they are kept.
    """

    def __init__(self, folder: Path, *, idle_s: float = _IDLE_S) -> None:
        self._folder = folder
        self._idle_s = idle_s
        self._kept: list[tuple[int, Path]] = []
        self._lock = threading.Lock()
        self._idle: asyncio.TimerHandle | None = None
        give_up_when_full(self)

    async def spend(self, *files: Path) -> None:
        """Remove files, which nobody reads or writes any more, or keep them; what can't be removed is logged."""
        if await in_thread(self._keep_all, files):
            self.expire()

    def keep(self, file: Path) -> bool:
        """Remove ``file`` from where it is; return whether it is kept as a spare, so that :meth:`expire` is due."""
        try:
            size = file.stat().st_size
        except FileNotFoundError:
            return False
        kept = self._kept_of(file, size) if self._wanted(file, size) else None
        file.unlink(missing_ok=True)
        if kept is None:
            return False
        if kept.stat().st_nlink > 1:  # a backup has it; by its old name nobody can get at it any more
            kept.unlink()
            return False
        with self._lock:
            self._kept.append((size, kept))
            beyond = self._kept.pop(0)[1] if len(self._kept) > _MOST_FILES else None
        if beyond is not None:
            beyond.unlink(missing_ok=True)
        return True

    def take(self, target: Path, size_bytes: int) -> bool:
        """Let a spare, with whatever is in it, be the file ``target``, which is to have ``size_bytes``.

        Returns:
            Whether there was one: the smallest that is long enough, else the longest.
        """
        with self._lock:
            if size_bytes < LEAST_SPARE_BYTES or not self._kept:
                return False
            enough = [each for each in self._kept if each[0] >= size_bytes]
            chosen = min(enough) if enough else max(self._kept)
            self._kept.remove(chosen)
            try:
                chosen[1].replace(target)
            except FileNotFoundError:  # its folder was wiped
                return False
            return True

    def __len__(self) -> int:
        return len(self._kept)

    def empty(self) -> bool:
        """Remove all; return whether there was anything."""
        with self._lock:
            kept, self._kept = self._kept, []
        for _, file in kept:
            file.unlink(missing_ok=True)
        return bool(kept)

    def expire(self) -> None:
        """Have what is kept removed after ``idle_s`` from now."""
        if self._idle is not None:
            self._idle.cancel()
        loop = asyncio.get_running_loop()
        self._idle = loop.call_later(self._idle_s, loop.run_in_executor, None, self.empty)

    def _keep_all(self, files: Sequence[Path]) -> bool:
        kept = False
        for file in files:
            try:
                kept = self.keep(file) or kept
            except OSError as error:
                log.warning("file not removed", file=str(file), error=str(error))
        return kept

    def _wanted(self, file: Path, size: int) -> bool:
        return size >= LEAST_SPARE_BYTES and shutil.disk_usage(file.parent).free >= _ROOM * size

    def _kept_of(self, file: Path, size: int) -> Path | None:
        kept = self._folder / f"{secrets.token_hex(8)}.spare"
        try:
            # A link and not a rename: where there are no links, one can't tell whether somebody else has the file.
            os.link(file, kept)
        except OSError:
            return None
        return kept
