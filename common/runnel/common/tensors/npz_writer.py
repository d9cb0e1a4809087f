"""Writing models as ``.npz``: stored, aligned, the same bytes for the same model, in blocks."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from isal import isal_zlib
from numpy.typing import NDArray

from runnel.common.blobs.early_sync import EarlySync
from runnel.common.errors import InvalidInput
from runnel.common.protocol import BlobRef
from runnel.common.storage import storage_errors
from runnel.common.tensors.atomic_file import AtomicFile
from runnel.common.tensors.casting import block_bytes
from runnel.common.tensors.growing_digest import GrowingDigest
from runnel.common.tensors.npy_header import write_header
from runnel.common.tensors.npz import DEFAULT_MAX_BYTES, MAX_FORTRAN_BYTES, magnitude, open_npz
from runnel.common.tensors.schema import BLOCK_PARAMS, ModelSchema, TensorSpec

_ALIGN = 64
_LOCAL = struct.Struct("<4s5H3L2H")
_CRC_AT = 14  # bytes into a local header
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")
_UTF8 = 0x800
_DOS_DATE_1980 = (1 << 5) | 1
_MAX32 = 0xFFFFFFFF
_MAX16 = 0xFFFF
# What other tools that align members use; readers ignore extra fields they don't know.
_PADDING_ID = 0xD935
_SETTLED_AT_ONCE = 1 << 20  # bytes


class _Entry:
    """A member under way: where its local header is and what is known of its bytes."""

    __slots__ = ("crc", "left", "name", "nbytes", "offset")

    def __init__(self, name: bytes, offset: int, nbytes: int, left: int) -> None:
        self.name = name
        self.offset = offset
        self.nbytes = nbytes  # of the member: header and elements
        self.left = left  # elements still to come
        self.crc = 0


class NpzWriter:
    """Writes a model of known schema block by block; plain ``numpy.load`` reads the result.

    The elements of each tensor begin at a multiple of 64 bytes in the file, so that mapped views are aligned. Equal
    models give equal bytes: no time stamps, no dependence on numpy's version. The file appears under ``path`` at
    :meth:`close`; leaving the context by an exception removes it.

    Args:
        path: replaced if it exists.
        schema: of the model.
        zip64_from: size or offset in bytes from which members and archives are written as zip64, at most 4 GiB - 1.
        digest: whether to find the SHA-256 of the file, in a thread, tensor by tensor while the next ones are written.
        early_sync: whether to bring it to the disk meanwhile, for who syncs it at the end: little is left to do then.

    Raises:
        StorageFull: the disk is full (also in :meth:`append` and :meth:`close`).
    """

    def __init__(
        self,
        path: Path,
        schema: ModelSchema,
        *,
        zip64_from: int = _MAX32,
        digest: bool = False,
        early_sync: bool = False,
    ) -> None:
        self.schema = schema
        self._settled = 0  # entries
        self._settled_at = 0  # bytes
        self._zip64_from = zip64_from
        self._out = AtomicFile(path)
        self._digest = GrowingDigest(self._out.file.fileno()) if digest else None
        self._sync = EarlySync(self._out.temporary) if early_sync else None
        self._blob: BlobRef | None = None
        self._at = 0
        self._closed = False
        self._entries: list[_Entry] = []
        try:
            self._begin_tensors()
        except BaseException:
            self._out.abort()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._abort()

    def append(self, block: NDArray[Any]) -> None:
        """Write the next elements, all of one tensor.

        Args:
            block: 1-D; of the tensor's dtype, written as it is, or float64, cast by the rule of
                :mod:`runnel.common.tensors.casting`. Not modified.

        Raises:
            InvalidInput: the block has another dtype, or more elements than its tensor has left.
        """
        if block.size == 0:
            return
        entry = self._entries[-1]
        spec = self.schema.tensors[len(self._entries) - 1]
        self._write(block_bytes(block, spec, entry.left), entry)
        entry.left -= block.size
        if entry.left == 0:
            if self._at - self._settled_at >= _SETTLED_AT_ONCE:
                self._settle()
            self._begin_tensors()

    def close(self) -> None:
        """Write the directory and put the file in its place; idempotent.

        Raises:
            InvalidInput: elements are missing; there is no file then.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._entries[-1].left:
                spec = self.schema.tensors[len(self._entries) - 1]
                raise InvalidInput(f"{self._entries[-1].left} elements of {spec} are missing.", tensor=spec.name)
            self._write_directory()
            self._fill_in()
            if self._digest is not None:
                self._blob = self._digest.finish(self._at)
            if self._sync is not None:
                with storage_errors(self._out.path.parent):
                    self._sync.wait()
            self._out.commit()
        finally:
            self._abort()

    @property
    def blob(self) -> BlobRef:
        """Digest and length of the file, once it is closed.

        Raises:
            ValueError: it is not closed, or was to be written without a digest.
        """
        if self._blob is None:
            raise ValueError("the digest of a model is known once it was written with one")
        return self._blob

    def _settle(self) -> None:
        """Let what is complete be read again for the digest, and go to the disk."""
        self._fill_in()
        if self._digest is not None:
            self._digest.advance(self._at)
        if self._sync is not None:
            self._sync.appended(self._out.file.fileno(), self._at - self._settled_at)
        self._settled_at = self._at

    def _fill_in(self) -> None:
        """Fill in the checksums of what is complete: it does not change any more."""
        for entry in self._entries[self._settled :]:
            self._out.write_at(entry.offset + _CRC_AT, entry.crc.to_bytes(4, "little"))
        self._settled = len(self._entries)
        self._out.flush()

    def _abort(self) -> None:
        if self._digest is not None:
            self._digest.close()
        self._out.abort()

    def _write(self, data: bytes | memoryview, entry: _Entry | None = None) -> None:
        self._out.write(data)
        self._at += len(data)
        if entry is not None:
            entry.crc = isal_zlib.crc32(data, entry.crc)

    def _begin_tensors(self) -> None:
        """Write headers up to and with the next tensor that has elements."""
        while len(self._entries) < len(self.schema.tensors):
            entry = self._begin(self.schema.tensors[len(self._entries)])
            self._entries.append(entry)
            if entry.left:
                return

    def _begin(self, spec: TensorSpec) -> _Entry:
        header = write_header(spec)
        entry = _Entry(f"{spec.name}.npy".encode(), self._at, len(header) + spec.nbytes, spec.n_params)
        wide = entry.nbytes >= self._zip64_from
        extra = struct.pack("<2H2Q", 1, 16, entry.nbytes, entry.nbytes) if wide else b""
        padding = -(self._at + _LOCAL.size + len(entry.name) + len(extra) + 4) % _ALIGN
        extra += struct.pack("<2H", _PADDING_ID, padding) + bytes(padding)
        size = _MAX32 if wide else entry.nbytes
        version, flags = _version_and_flags(entry, wide)
        self._write(
            _LOCAL.pack(b"PK\x03\x04", version, flags, 0, 0, _DOS_DATE_1980, 0, size, size, len(entry.name), len(extra))
            + entry.name
            + extra
        )
        self._write(header, entry)
        return entry

    def _write_directory(self) -> None:
        start = self._at
        for entry in self._entries:
            wide_size, wide_offset = entry.nbytes >= self._zip64_from, entry.offset >= self._zip64_from
            numbers = [entry.nbytes] * 2 * wide_size + [entry.offset] * wide_offset
            extra = struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""
            version, flags = _version_and_flags(entry, bool(numbers))
            size = _MAX32 if wide_size else entry.nbytes
            offset = _MAX32 if wide_offset else entry.offset
            sizes = (entry.crc, size, size, len(entry.name), len(extra), 0, 0, 0, 0, offset)
            head = _CENTRAL.pack(b"PK\x01\x02", version, version, flags, 0, 0, _DOS_DATE_1980, *sizes)
            self._write(head + entry.name + extra)
        end, count = self._at, len(self._entries)
        nbytes = end - start
        wide = count >= _MAX16 or max(start, nbytes) >= self._zip64_from
        if wide:
            self._write(_END64.pack(b"PK\x06\x06", _END64.size - 12, 45, 45, 0, 0, count, count, nbytes, start))
            self._write(_LOCATOR64.pack(b"PK\x06\x07", 0, end, 1))
        few, short, near = (_MAX16, _MAX32, _MAX32) if wide else (count, nbytes, start)
        self._write(_END.pack(b"PK\x05\x06", 0, 0, few, few, short, near, 0))


def _version_and_flags(entry: _Entry, wide: bool) -> tuple[int, int]:
    return 45 if wide else 20, 0 if entry.name.isascii() else _UTF8


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> ModelSchema:
    """Write ``arrays`` in the mapping's order as :class:`NpzWriter` does, exactly as they are; return their schema.

    Args:
        path: replaced if it exists; it is never seen half-written.
        arrays: any shapes and memory orders, accepted dtypes; not modified.

    Raises:
        BadModel: an array has a name or dtype that models can't have.
        StorageFull: the disk is full.
    """
    schema = ModelSchema.of(arrays)
    with NpzWriter(path, schema) as writer:
        for array in arrays.values():
            flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
            for at in range(0, array.size, BLOCK_PARAMS):
                writer.append(flat[at : at + BLOCK_PARAMS])
    return schema


def normalise(
    src: Path,
    dst: Path,
    *,
    source: str,
    expect: ModelSchema | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_fortran_bytes: int = MAX_FORTRAN_BYTES,
    require_finite: bool = True,
    keep_plain: bool = False,
) -> ModelSchema:
    """Rewrite any acceptable ``.npz`` as a stored, C-ordered, little-endian one, in blocks, and return its schema.

    All checksums are verified on the way. ``src`` and ``dst`` may be the same path.

    Args:
        src: a model file, from anybody.
        dst: replaced if it exists.
        source: whose file ``src`` is, for messages.
        expect: if given, the schema that the model must have.
        max_bytes: limit of the size of all members, unpacked.
        max_fortran_bytes: limit of each tensor in Fortran order, which is held whole.
        require_finite: refuse NaN and infinity.
        keep_plain: move ``src`` if all that it needs is to be checked (:attr:`NpzModel.is_plain`), which spares writing
            a large model once more; equal models need not give equal bytes then.

    Raises:
        BadModel: the file is not acceptable; there is no ``dst`` then.
        StorageFull: the disk is full.
    """
    with open_npz(src, source=source, expect=expect, max_bytes=max_bytes, max_fortran_bytes=max_fortran_bytes) as model:
        plain = keep_plain and model.is_plain
        with nullcontext() if plain else NpzWriter(dst, model.schema) as writer:
            for block in model.blocks(check_crc=True):
                if require_finite:
                    magnitude(block.values, model.schema, block.tensor, source)
                if writer is not None:
                    writer.append(block.values)
        if plain:
            src.replace(dst)
        return model.schema
