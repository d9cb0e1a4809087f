"""The directory of an ``.npz`` archive from a stranger: all is checked before a byte is used."""

from __future__ import annotations

import errno
import os
import struct
import zipfile
from dataclasses import dataclass
from typing import BinaryIO

from runnel.common.errors import BadModel
from runnel.common.tensors.schema import name_fault

MAX_MEMBERS = 100_000

_MAX_DIRECTORY_BYTES = MAX_MEMBERS * 256
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64_BYTES = 20
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED_OR_PATCHED = 0x1 | 0x20 | 0x40
_SIZES_FOLLOW = 0x8
_UTF8 = 0x800
_UNKNOWN = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """Where one array lies: ``raw_nbytes`` bytes from ``offset`` on; unpacked ``nbytes`` with CRC-32 ``crc``."""

    key: str
    offset: int
    raw_nbytes: int
    nbytes: int
    crc: int
    deflated: bool


def refusal(source: str, what: str, *, member: str = "") -> BadModel:
    """Say that the archive of ``source``, or its ``member``, is not acceptable."""
    subject = f"its member {member!r} {what}" if member else what
    return BadModel(
        f"The model of {source} cannot be read as .npz: {subject}.",
        hint="Write models with numpy.savez (numeric or boolean arrays, no objects). A package whose models are "
        ".safetensors files says so in its runnel.yaml: model_format: safetensors.",
        source=source,
        **({"member": member} if member else {}),
    )


def read_members(file: BinaryIO, *, source: str, max_bytes: int) -> tuple[Member, ...]:
    """Locate all members of the archive in their order.

    Raises:
        BadModel: not a zip archive, one with trailing data or a comment, without members or with more than
            :data:`MAX_MEMBERS`; or a member that is encrypted, compressed by another method than deflate, named twice,
            named like a path that leaves a folder, not an array, overlapping another, larger than ``max_bytes`` with
            the others, or not what its own header says.
    """
    size = os.fstat(file.fileno()).st_size
    _require_bounded_directory(file, size, source)
    try:
        with zipfile.ZipFile(file) as archive:
            infos, start_dir = archive.infolist(), archive.start_dir
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        struct.error,
        ValueError,
        OverflowError,
        IndexError,
        EOFError,
    ) as e:
        raise refusal(source, "it is damaged or was cut off") from e
    except OSError as e:
        if e.errno != errno.EINVAL:  # a seek to where no file can be: the directory lies; anything else is the disk
            raise
        raise refusal(source, "it is damaged or was cut off") from e
    if not infos:
        raise refusal(source, "it has no arrays")
    if len(infos) > MAX_MEMBERS:
        raise refusal(source, f"it has {len(infos)} arrays; the limit is {MAX_MEMBERS}")
    total = sum(info.file_size for info in infos)
    if total > max_bytes:
        raise refusal(source, f"it unpacks to {total} bytes; the limit is {max_bytes}")
    seen: set[str] = set()
    members = []
    for info in infos:
        if info.filename in seen:
            raise refusal(source, "is there twice", member=info.filename)
        seen.add(info.filename)
        members.append(_locate(file, info, source))
    _require_apart(members, infos, start_dir, source)
    return tuple(members)


def _require_bounded_directory(file: BinaryIO, size: int, source: str) -> None:
    """Refuse a directory whose mere parsing would need more memory than a model of 100,000 arrays does."""
    tail_bytes = _END.size + _LOCATOR64_BYTES + _END64.size
    file.seek(max(0, size - tail_bytes))
    tail = file.read(tail_bytes)
    if len(tail) < _END.size or tail[-_END.size : -_END.size + 4] != b"PK\x05\x06":
        raise refusal(source, f"it is no zip archive, or was cut off, or has something after its end ({size} bytes)")
    directory_nbytes = int(_END.unpack(tail[-_END.size :])[5])
    locator = tail[-_END.size - _LOCATOR64_BYTES : -_END.size]
    if len(tail) == tail_bytes and locator[:4] == b"PK\x06\x07":
        if tail[:4] != b"PK\x06\x06":
            raise refusal(source, "its zip64 directory is damaged")
        directory_nbytes = int(_END64.unpack(tail[: _END64.size])[8])
    if directory_nbytes > min(size, _MAX_DIRECTORY_BYTES):
        raise refusal(source, f"its directory claims {directory_nbytes} bytes")
    file.seek(0)


def _locate(file: BinaryIO, info: zipfile.ZipInfo, source: str) -> Member:
    name = info.filename
    if name != info.orig_filename or not name.endswith(".npy"):
        raise refusal(source, "is not named like an array (NAME.npy)", member=name)
    key = name.removesuffix(".npy")
    if fault := name_fault(key):
        raise refusal(source, fault, member=name)
    if info.flag_bits & _ENCRYPTED_OR_PATCHED:
        raise refusal(source, "is encrypted", member=name)
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise refusal(source, f"is compressed by method {info.compress_type}; use deflate or none", member=name)
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    if not deflated and info.compress_size != info.file_size:
        raise refusal(source, f"lies about its size ({info.file_size} or {info.compress_size} bytes)", member=name)
    return Member(
        key=key,
        offset=_data_offset(file, info, source),
        raw_nbytes=info.compress_size,
        nbytes=info.file_size,
        crc=info.CRC,
        deflated=deflated,
    )


def _contradiction(info: zipfile.ZipInfo, source: str) -> BadModel:
    return refusal(source, "has a header of its own that contradicts the directory", member=info.filename)


def _data_offset(file: BinaryIO, info: zipfile.ZipInfo, source: str) -> int:
    """Return where the member's bytes begin, after comparing its own header with the directory."""
    if not 0 <= info.header_offset < 1 << 62:
        raise _contradiction(info, source)
    raw = os.pread(file.fileno(), _LOCAL.size, info.header_offset)
    if len(raw) < _LOCAL.size:
        raise _contradiction(info, source)
    magic, _, flags, method, _, _, crc, raw_nbytes, nbytes, name_nbytes, extra_nbytes = _LOCAL.unpack(raw)
    encoding = "utf-8" if info.flag_bits & _UTF8 else "cp437"
    name = info.orig_filename.encode(encoding)
    if magic != b"PK\x03\x04" or method != info.compress_type or (flags ^ info.flag_bits) & ~0x6:
        raise _contradiction(info, source)
    if name_nbytes != len(name) or os.pread(file.fileno(), len(name), info.header_offset + _LOCAL.size) != name:
        raise _contradiction(info, source)
    told = flags & _SIZES_FOLLOW == 0
    if told and (crc != info.CRC or raw_nbytes not in {info.compress_size, _UNKNOWN}):
        raise _contradiction(info, source)
    if told and nbytes not in {info.file_size, _UNKNOWN}:
        raise _contradiction(info, source)
    return int(info.header_offset + _LOCAL.size + name_nbytes + extra_nbytes)


def _require_apart(members: list[Member], infos: list[zipfile.ZipInfo], start_dir: int, source: str) -> None:
    """Refuse members that share bytes: the trick by which small archives unpack to petabytes."""
    end, previous = 0, ""
    for info, member in sorted(zip(infos, members, strict=True), key=lambda pair: pair[0].header_offset):
        if info.header_offset < end:
            raise refusal(source, f"overlaps {previous!r}", member=info.filename)
        end, previous = member.offset + member.raw_nbytes, info.filename
        if end > start_dir:
            raise refusal(source, "goes on after the archive's end: it lies about its size", member=info.filename)
