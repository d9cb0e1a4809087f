"""When images that a client had made or fetched were used last, and how large they are: an engine does not remember."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runnel.common.disk import read_json, write_json
from runnel.common.errors import CorruptData, NotFound

RECENT_S = 3600.0
"""Who was used since stays in any case, for a run of it may be about to begin."""

_NAME = re.compile(r"[0-9a-f]{64}(-[0-9a-f]{32})?")
_DAY_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageUse:
    """An image by the tag that it was made under, or its id; its last use (seconds since the epoch), and its bytes."""

    tag: str
    used_at: float
    size_bytes: int


class ImageUses:
    """A small file for each image in ``folder``, whose time is that of its last use. All methods block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def note(self, tag: str, size_bytes: int) -> None:
        """An image is used now; its size is kept from the first time."""
        path = self._path(tag)
        try:
            os.utime(path)
        except FileNotFoundError:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(path, {"bytes": size_bytes})

    def again(self, tag: str) -> None:
        """An image is used now; nothing is remembered of one that nothing was remembered of before."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._path(tag))

    def forget(self, tag: str) -> None:
        """An image is gone."""
        self._path(tag).unlink(missing_ok=True)

    def due(self, *, most_bytes: int, most_days: float, now: float | None = None) -> list[ImageUse]:
        """Return what is to go, the oldest first, so that no image is older and all together are not larger."""
        now = time.time() if now is None else now
        kept = sorted(self._all(), key=lambda one: one.used_at)
        total_bytes, found = sum(one.size_bytes for one in kept), []
        for one in kept:
            idle_s = now - one.used_at
            if idle_s > RECENT_S and (idle_s > most_days * _DAY_S or total_bytes > most_bytes):
                total_bytes -= one.size_bytes
                found.append(one)
        return found

    def _all(self) -> Iterator[ImageUse]:
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if _NAME.fullmatch(path.name):
                try:
                    told = read_json(path)
                    size = int(told["bytes"]) if isinstance(told, dict) else 0
                    yield ImageUse(tag=path.name, used_at=path.stat().st_mtime, size_bytes=size)
                except (NotFound, FileNotFoundError):  # a command of the site's people was quicker
                    continue
                except (CorruptData, KeyError, TypeError, ValueError):  # of unknown size: it goes by its age alone
                    yield ImageUse(tag=path.name, used_at=path.stat().st_mtime, size_bytes=0)

    def _path(self, tag: str) -> Path:
        if not _NAME.fullmatch(tag):
            raise ValueError(f"{tag!r} is no tag of an image of a package, and no id")
        return self._folder / tag
