"""Reading the members of tar and zip files one after the other, believing nothing that they say about themselves."""

from __future__ import annotations

import bz2
import gzip
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO, cast

from runnel.common.errors import BadPackage, HostileArchive, RunnelError

# Names and attributes of one member: far above what a package needs, far below what hurts to hold in memory.
_MAX_HEADER_BYTES = 1 << 20
_MAX_ALL_HEADERS_BYTES = 64 << 20
_MAX_LINK_BYTES = 4096
_TAR_BUFFER_BYTES = tarfile.RECORDSIZE
_DRAIN_BYTES = 1 << 20
# What the libraries raise for bytes that are not what they should be. OSError is among them: of gzip, of bzip2, of a
# seek to where a header points.
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OSError)
_ZIP_END = struct.Struct("<4s4H2LH")
_ZIP_MAX_COMMENT = 0xFFFF
_ZIP_DIRECTORY_BYTES = 64 << 10
_ZIP_DIRECTORY_ENTRY_BYTES = 256


class Plain(Enum):
    """A member without content."""

    FOLDER = "folder"


@dataclass(frozen=True, slots=True)
class Link:
    """A member that stands for another: ``hard`` names a member of the archive, otherwise a path as a link has it."""

    target: str
    hard: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One entry: its name as it is written there, and what it is.

    ``content`` is a folder, a link, a function that reads the next bytes of the file (good until the next member is
    asked for), or text that tells why it can't be any of these.
    """

    name: str
    content: Plain | Link | Callable[[int], bytes] | str
    executable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a reader may use: ``spend`` is told of all bytes that come out and raises when it is enough."""

    spend: Callable[[int], None]
    max_members: int


def open_members(archive: Path, room: Room) -> Generator[Member, None, None]:
    """Yield the members of ``archive``: tar (plain, gzip, bzip2) or zip, told apart by content.

    Close the generator when leaving early: it holds the file.

    Raises:
        BadPackage: no archive of these kinds, damaged, or encrypted.
        HostileArchive: it would take unreasonable memory only to list it.
        RunnelError: what ``room.spend`` raises.
    """
    try:
        with archive.open("rb") as file:
            start = file.read(512)
            file.seek(0)
            if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                yield from _zip_members(archive, file, room)
            elif start.startswith(b"\x1f\x8b"):
                with gzip.GzipFile(fileobj=file) as plain:
                    yield from _tar_members(archive, cast("IO[bytes]", plain), room)
            elif start.startswith(b"BZh"):
                with bz2.BZ2File(file) as plain_bz2:
                    yield from _tar_members(archive, cast("IO[bytes]", plain_bz2), room)
            elif len(start) == 512 and (start[257:262] == b"ustar" or _has_old_tar_checksum(start)):
                yield from _tar_members(archive, file, room)
            else:
                raise BadPackage(
                    f"{archive.name} is neither a tar (plain, gzip, bzip2) nor a zip file.",
                    hint="Pack the folder with: runnel package build FOLDER.",
                    archive=archive.name,
                )
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error, EOFError) as error:
        raise _damaged(archive, error) from error
    except RecursionError as error:
        raise HostileArchive(
            f"The archive {archive.name} is refused: its headers are nested too deeply.", archive=archive.name
        ) from error


def _has_old_tar_checksum(block: bytes) -> bool:
    try:
        stated = int(block[148:156].rstrip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return stated == sum(block[:148]) + sum(block[156:]) + 8 * 32


class _Meter:
    """The decompressed bytes of a tar file; all are accounted for, and between members only so many may pass."""

    def __init__(self, archive: Path, source: IO[bytes], spend: Callable[[int], None]) -> None:
        self._archive = archive
        self._source = source
        self._spend = spend
        self._header_bytes: int | None = 0
        self._all_header_bytes = 0
        self.total = 0
        self.tail = b""

    def read(self, size: int) -> bytes:
        block = _guarded(self._archive, self._source.read)(size)
        self.total += len(block)
        self.tail = (self.tail + block)[-2 * _TAR_BUFFER_BYTES :]
        if self._header_bytes is not None:
            self._header_bytes += len(block)
            self._all_header_bytes += len(block)
            # tarfile holds headers in memory, those for all members to the end.
            if self._header_bytes > _MAX_HEADER_BYTES or self._all_header_bytes > _MAX_ALL_HEADERS_BYTES:
                raise HostileArchive(
                    f"The archive {self._archive.name} is refused: its headers take more than "
                    f"{_MAX_HEADER_BYTES} bytes for one member or {_MAX_ALL_HEADERS_BYTES} bytes for all.",
                    archive=self._archive.name,
                )
        self._spend(len(block))
        return block

    def in_header(self, yes: bool) -> None:
        self._header_bytes = 0 if yes else None


def _tar_members(archive: Path, source: IO[bytes], room: Room) -> Iterator[Member]:
    meter = _Meter(archive, source, room.spend)
    end = 0
    # Streaming, so that a member's size is what comes and not what a header promises elsewhere.
    with tarfile.open(
        fileobj=cast("IO[bytes]", meter), mode="r|", bufsize=_TAR_BUFFER_BYTES, errors="surrogateescape"
    ) as tar:
        while (info := tar.next()) is not None:
            # The list that tarfile keeps of what it has seen is of no use here.
            tar.members.clear()  # type: ignore[attr-defined]
            meter.in_header(False)
            content = _tar_content(archive, tar, info)
            yield Member(name=info.name, content=content, executable=bool(info.mode & 0o100))
            if callable(content):
                while content(_DRAIN_BYTES):
                    pass
            end = info.offset_data + (-(-info.size // 512) * 512 if info.isreg() else 0)
            meter.in_header(True)
    meter.in_header(False)
    # tarfile takes a header that it can't read for the end; the true end is zeros to the last byte.
    rest = meter.tail[len(meter.tail) - (meter.total - end) :]
    if len(rest) < tarfile.BLOCKSIZE:
        raise _damaged(archive, "it ends too early")
    while rest:
        if rest.count(0) != len(rest):
            raise _damaged(archive, "it goes on after its end")
        rest = meter.read(_DRAIN_BYTES)


def _tar_content(
    archive: Path, tar: tarfile.TarFile, info: tarfile.TarInfo
) -> Plain | Link | Callable[[int], bytes] | str:
    if info.size < 0:
        return "has a negative size"
    if info.issparse():
        return "is stored with holes; pack it without --sparse"
    if info.isreg():
        file = tar.extractfile(info)
        assert file is not None
        return _guarded(archive, file.read)
    if info.isdir():
        return Plain.FOLDER
    if info.issym():
        return Link(info.linkname, hard=False)
    if info.islnk():
        return Link(info.linkname, hard=True)
    return "is a device" if info.ischr() or info.isblk() else "is a pipe" if info.isfifo() else "is no file or folder"


def _zip_members(archive: Path, file: IO[bytes], room: Room) -> Iterator[Member]:
    _check_zip_directory(archive, file, room)
    try:
        with zipfile.ZipFile(file) as whole:
            for info in whole.infolist():
                yield from _zip_member(archive, whole, info, room)
    except (NotImplementedError, ValueError, OSError) as error:
        raise _damaged(archive, error) from error


def _zip_member(archive: Path, whole: zipfile.ZipFile, info: zipfile.ZipInfo, room: Room) -> Iterator[Member]:
    # The name up to a NUL is what zipfile shows; the one that is written there is what counts.
    name = info.orig_filename
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if info.flag_bits & 1:
        raise BadPackage(f"{archive.name} has an encrypted member, {name!a}.", archive=archive.name, member=name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadPackage(
            f"{archive.name} is compressed in a way not read here (method {info.compress_type}, {name!a}).",
            hint="Use deflate, or pack it with: runnel package build FOLDER.",
            archive=archive.name,
        )
    if not info.filename:
        yield Member(name=name, content="has no name")
        return
    if info.is_dir():
        yield Member(name=name, content=Plain.FOLDER)
        return
    if kind not in (0, stat.S_IFREG, stat.S_IFLNK):
        yield Member(name=name, content="is no file, folder or link")
        return
    with whole.open(info) as source:
        read = _metered(_guarded(archive, source.read), room.spend)
        if kind == stat.S_IFLNK:
            target = read(_MAX_LINK_BYTES)
            yield Member(name=name, content=Link(target.decode("utf-8", "surrogateescape"), hard=False))
        else:
            yield Member(name=name, content=read, executable=bool(mode & 0o100))
        while read(_DRAIN_BYTES):
            pass


def _guarded(archive: Path, read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """Return ``read`` with damage told as such, wherever it is called."""

    def guarded(size: int) -> bytes:
        try:
            return read(size)
        except _DAMAGE as error:
            raise _damaged(archive, error) from error

    return guarded


def _metered(read: Callable[[int], bytes], spend: Callable[[int], None]) -> Callable[[int], bytes]:
    def metered(size: int) -> bytes:
        block = read(size)
        spend(len(block))
        return block

    return metered


def _check_zip_directory(archive: Path, file: IO[bytes], room: Room) -> None:
    """zipfile reads the whole directory into memory before it can be asked anything, so its size is looked up first."""
    size = file.seek(0, 2)
    tail_bytes = min(size, _ZIP_END.size + _ZIP_MAX_COMMENT + 20)
    file.seek(size - tail_bytes)
    tail = file.read(tail_bytes)
    at = tail.rfind(b"PK\x05\x06", 0, len(tail) - _ZIP_END.size + 4)
    file.seek(0)
    if at < 0:
        raise _damaged(archive, "it has no directory at its end")
    if b"PK\x06\x07" in tail[max(at - 20, 0) : at]:
        raise HostileArchive(
            f"The archive {archive.name} is refused: it is a zip64 file, which no package within the limits needs.",
            hint="Pack the folder with: runnel package build FOLDER.",
            archive=archive.name,
        )
    directory_bytes = _ZIP_END.unpack_from(tail, at)[5]
    if directory_bytes > max(_ZIP_DIRECTORY_BYTES, room.max_members * _ZIP_DIRECTORY_ENTRY_BYTES):
        raise HostileArchive(
            f"The archive {archive.name} is refused: its directory of {directory_bytes} bytes is too large.",
            archive=archive.name,
        )


def _damaged(archive: Path, error: Exception | str) -> RunnelError:
    why = str(error) or type(error).__name__
    return BadPackage(
        f"The archive {archive.name} is damaged: {why.rstrip('.')}.",
        hint="Transfer or pack it again.",
        archive=archive.name,
    )
