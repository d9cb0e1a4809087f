"""The results of several sites as one archive, written while it is sent."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

BLOCK_BYTES = 1 << 18
MAX_UNPACKED_BYTES = 2 << 30
MAX_MEMBERS = 20_000

SUMMARY = "sites.json"

_UNREADABLE = (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, RuntimeError, ValueError)
"""What the library raises for archives that are cut off, encrypted, or packed in a way that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteOutput:
    """What one site gave out: its name, and a zip of what is called ``name``, which nobody has looked into yet."""

    site: str
    name: str
    archive: Path


def combined(outputs: Sequence[SiteOutput], summary: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    """Yield a zip with the files of all archives.

    If there is a ``summary``, with a folder for each site, and ``sites.json``: what became of each. An archive that
    can't be read, or would unpack to more than is reasonable, is put there as it is; of two files of one name the first
    counts. Blocks; for a thread.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        if summary:
            target.writestr(SUMMARY, json.dumps(summary, indent=2))
        for output in outputs:
            for _ in _copy(output, f"{output.site}/" if summary else "", target):
                yield sink.take()
    yield sink.take()


def only_file(archive: Path, *, most_bytes: int) -> tuple[str, bytes] | None:
    """Return name and content of the one file in an archive; None: there are others, or it is large, or no archive.

    Blocks; for a thread.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            if len(members) != 1 or members[0].file_size > most_bytes:
                return None
            return members[0].filename, opened.read(members[0])
    except _UNREADABLE:
        return None


def _copy(output: SiteOutput, folder: str, target: zipfile.ZipFile) -> Iterator[None]:
    members = _members(output.archive)
    if members is None:
        with output.archive.open("rb") as source:
            yield from _write(source, target, zipfile.ZipInfo(f"{folder}{output.name}.zip"))
        return
    with zipfile.ZipFile(output.archive) as archive:
        for member in members:
            if f"{folder}{member.filename}" in target.NameToInfo:
                continue
            info = zipfile.ZipInfo(f"{folder}{member.filename}", member.date_time)
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member) as source:
                yield from _write(source, target, info)


def _write(source: Any, target: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[None]:
    with target.open(info, "w", force_zip64=True) as member:
        while block := source.read(BLOCK_BYTES):
            member.write(block)
            yield


def _members(file: Path) -> list[zipfile.ZipInfo] | None:
    """Return the files in an archive; None: it is none, or one that is better not unpacked."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = [each for each in archive.infolist() if not each.is_dir()]
            too_much = len(members) > MAX_MEMBERS or sum(each.file_size for each in members) > MAX_UNPACKED_BYTES
            doubled = len({each.filename for each in members}) < len(members)
            if too_much or doubled or not all(_plain(each) for each in members) or archive.testzip() is not None:
                return None
            return members
    except _UNREADABLE:
        return None


def _plain(member: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(member.filename)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in member.filename and bool(path.parts)


class _Sink:
    """A file that can only be written, and forgets what was taken from it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes, /) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Do nothing: what is written is there."""

    def close(self) -> None:
        """Do nothing."""

    def take(self) -> bytes:
        """Return what was written since the last time."""
        taken, self._parts = b"".join(self._parts), []
        return taken
