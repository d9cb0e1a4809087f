"""Packing a folder into a compute package that has the same digest wherever it is packed."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
import struct
import tarfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from runnel.common.errors import BadPackage, NotFound, StorageFull
from runnel.common.protocol import BlobRef
from runnel.compute_package.contents import IGNORE_FILES, Source, find_sources
from runnel.compute_package.manifest import Manifest, read_manifest
from runnel.compute_package.members import link_fault

_READ_BYTES = 1 << 20
_STORED_BYTES = 0xFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageFile:
    """One file of a package: ``name`` relative to the package's root, with ``/``; a link has the size 0."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A package that was written: where, the digest and size that name it, its files by name, what it says it is."""

    path: Path
    ref: BlobRef
    files: tuple[PackageFile, ...]
    manifest: Manifest


def pack(folder: Path, out: Path | None = None) -> Packed:
    """Write the files of ``folder`` as a reproducible ``.tar.gz``.

    Order, times, owners and permissions (0755 for what its owner may execute, else 0644) are normalised, and the gzip
    container holds stored blocks: compressors differ between zlib versions, and a digest that an auditor can't
    reproduce on another machine names nothing. Folders without files are left out. A link is kept as a link.

    Args:
        folder: with ``train.py`` or a manifest in it. ``.runnelignore`` and ``.fednignore`` in it take the patterns of
            ``.gitignore`` and come after :data:`~runnel.compute_package.contents.DEFAULT_IGNORES`, before what its
            ``runnel.yaml`` says; ``out`` itself is never packed.
        out: the file to write, replaced when it exists; by default ``NAME.tar.gz`` in the parent of the present
            directory.

    Raises:
        NotFound: there is no such folder.
        BadPackage: no train entry point, a bad manifest, a link that leaves the folder or points to nothing or to an
            ignored file, something that is neither file nor folder, a name that does not travel, or a file that
            changed while it was read.
        StorageFull: no room for ``out``.
    """
    if not folder.is_dir():
        raise NotFound(f"There is no folder {folder} to pack.", path=str(folder))
    root = folder.resolve()
    manifest = read_manifest(root)
    out = Path.cwd().parent / f"{manifest.name}.tar.gz" if out is None else out
    if out.is_dir():
        raise BadPackage(f"The package should be written to a file but {out} is a folder.", path=str(out))
    sources = find_sources(root, skip=out.resolve())
    _check_entry_points(manifest, sources)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    try:
        with beside.open("xb") as file:
            stream = _StoredGzip(file)
            for name in sources:
                _write_member(stream, name, sources)
            # The end of a tar file are two empty blocks.
            stream.write(bytes(2 * tarfile.BLOCKSIZE))
            stream.close()
        beside.replace(out)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageFull(f"The disk has no room for {out}.", folder=str(out.parent)) from error
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()
    files = tuple(PackageFile(name=name, size_bytes=_size(each.path)) for name, each in sources.items())
    return Packed(path=out, ref=stream.ref(), files=files, manifest=manifest)


def _check_entry_points(manifest: Manifest, sources: Mapping[str, Source]) -> None:
    """An ignore file must not take away what the manifest needs."""
    wanted = {manifest.requirements, manifest.python_env} - {None}
    wanted |= {f"{name}.py" for name, command in manifest.entry_points.items() if command == f"python {name}.py"}
    for name in sorted(str(name) for name in wanted):
        if name not in sources:
            raise BadPackage(
                f"The package needs {name}, but an ignore file leaves it out.",
                hint=f"Add the line !{name} to {IGNORE_FILES[0]}.",
                file=name,
            )


def _write_member(stream: _StoredGzip, name: str, sources: Mapping[str, Source]) -> None:
    path = sources[name].path
    status = path.lstat()
    member = tarfile.TarInfo(name)
    if stat.S_ISLNK(status.st_mode):
        member.type, member.linkname, member.mode = tarfile.SYMTYPE, _link_target(name, sources), 0o777
        stream.write(member.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"))
        return
    if not stat.S_ISREG(status.st_mode):
        raise BadPackage(
            f"A package holds files, folders and links; {name} is none of them.",
            hint="Remove or ignore it.",
            member=name,
        )
    member.mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
    member.size = status.st_size
    stream.write(member.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"))
    written = 0
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            written += len(block)
            stream.write(block)
    if written != status.st_size:
        raise BadPackage(f"{name} changed while it was packed.", hint="Pack again.", member=name)
    stream.write(bytes(-written % tarfile.BLOCKSIZE))


def _link_target(name: str, sources: Mapping[str, Source]) -> str:
    path, root = sources[name].path, sources[name].root
    text = path.readlink().as_posix()
    target = Path(os.path.realpath(path))
    fault = link_fault(name, text)
    if fault is None and not target.is_relative_to(root):
        fault = "is a link out of the package"
    if fault is not None:
        raise BadPackage(
            f"{name} {fault}; it points to {text!r}.",
            hint="Copy the file into the folder, or ignore the link.",
            member=name,
        )
    inside = target.relative_to(root).as_posix()
    if inside != "." and inside not in sources and not any(other.startswith(f"{inside}/") for other in sources):
        raise BadPackage(
            f"The link {name} points to {text!r}, which is not in the package.",
            hint="Add the file, or ignore the link.",
            member=name,
        )
    return text


def _size(path: Path) -> int:
    return 0 if path.is_symlink() else path.stat().st_size


class _StoredGzip:
    """Writes a gzip file (RFC 1952) of stored deflate blocks (RFC 1951, 3.2.4) and hashes what it writes.

    The blocks are cut at fixed places of the content, so the bytes depend on the content alone.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._written = 0
        self._pending = bytearray()
        self._crc = 0
        self._length = 0
        # Magic, deflate, no flags, no time, no extra flags, unknown system.
        self._emit(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff")

    def write(self, data: bytes) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._length += len(data)
        self._pending += data
        whole = len(self._pending) // _STORED_BYTES * _STORED_BYTES
        for start in range(0, whole, _STORED_BYTES):
            self._block(self._pending[start : start + _STORED_BYTES], last=False)
        del self._pending[:whole]

    def close(self) -> None:
        self._block(self._pending, last=True)
        self._emit(struct.pack("<II", self._crc, self._length & 0xFFFFFFFF))

    def ref(self) -> BlobRef:
        return BlobRef(sha256=self._digest.hexdigest(), size_bytes=self._written)

    def _block(self, data: bytearray, *, last: bool) -> None:
        self._emit(struct.pack("<BHH", last, len(data), len(data) ^ 0xFFFF) + data)

    def _emit(self, data: bytes) -> None:
        self._digest.update(data)
        self._written += len(data)
        self._file.write(data)
