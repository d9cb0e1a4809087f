"""Reading models from ``.npz`` files of strangers, in blocks, without ever loading one whole."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from runnel.common.errors import BadModel
from runnel.common.tensors.dtypes import numpy_dtype
from runnel.common.tensors.known_layouts import SMALL_BYTES, KnownLayouts
from runnel.common.tensors.member_bytes import DeflatedBytes, HeldBytes, MemberBytes, StoredBytes
from runnel.common.tensors.npy_header import PREFIX_BYTES, HeaderFault, NpyHeader, header_nbytes, parse_header
from runnel.common.tensors.regular_file import IrregularFile, open_bytes, open_regular
from runnel.common.tensors.schema import BLOCK_PARAMS, ModelSchema, TensorSpec
from runnel.common.tensors.zip_directory import Member, read_members, refusal

DEFAULT_MAX_BYTES = 1 << 35
"""Limit of what an archive may unpack to: 32 GiB."""

MAX_FORTRAN_BYTES = 64 << 20
"""Of one tensor in Fortran order, which is held whole while it is read."""

_CRC_PIECE_BYTES = 1 << 20
_MOST_BETWEEN_BYTES = 4096  # headers, names, padding and the entry in the directory
_LAYOUTS = KnownLayouts()


class Block(NamedTuple):
    """Elements ``start … start + len(values)`` of the flattened model, all of tensor number ``tensor``.

    ``values``: 1-D, of the tensor's dtype in native byte order; a copy that the receiver owns.
    """

    tensor: int
    start: int
    values: NDArray[Any]


class NpzModel:
    """An open model file, from :func:`open_npz`. Use as a context manager; not for several threads at once.

    Elements come in C order, tensors in the order of the archive. Stored members are read straight from the file,
    deflated ones are inflated as they are read. A member in Fortran order is loaded whole, one at a time, while its
    blocks are handed out: only then does the memory needed grow with a tensor, so who opens the file limits that.
    """

    def __init__(
        self,
        file: BinaryIO | None,
        source: str,
        members: tuple[Member, ...],
        headers: tuple[NpyHeader, ...],
        *,
        schema: ModelSchema | None = None,
        data: bytes = b"",
    ) -> None:
        self.source = source
        self.schema = schema or ModelSchema(
            tensors=tuple(_tensor(member.key, header) for member, header in zip(members, headers, strict=True))
        )
        self._file = file  # None: there is only its content
        self._data = data  # of a small file
        self._members = members
        self._headers = headers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._file is not None:
            self._file.close()

    @property
    def has_fortran_order(self) -> bool:
        """Whether a member is in Fortran order, so that reading it takes memory for that whole tensor."""
        return any(header.fortran for header in self._headers)

    @property
    def is_deflated(self) -> bool:
        """Whether a member is compressed, so that every reading of it inflates it again."""
        return any(member.deflated for member in self._members)

    @property
    def is_plain(self) -> bool:
        """Whether the file has nothing that :func:`normalise` would change but the place of the members in it.

        All are stored, in C order and little-endian, none is boolean (whose bytes may be anything), there is next to
        nothing between them, and the file has no other name.
        """
        found = os.fstat(self._fileno())
        most_nbytes = sum(member.nbytes + _MOST_BETWEEN_BYTES for member in self._members)
        return (
            found.st_nlink == 1
            and found.st_size <= most_nbytes
            and not any(member.deflated for member in self._members)
            and not any(h.fortran or h.dtype.kind == "b" or h.dtype.byteorder == ">" for h in self._headers)
        )

    def blocks(self, block_params: int = BLOCK_PARAMS, *, check_crc: bool = False) -> Iterator[Block]:
        """Hand out all elements in order, at most ``block_params`` at a time; a block never spans two tensors.

        Args:
            block_params: elements per block at most.
            check_crc: compare the checksums of stored members too, each after its last block. Those of deflated
                members always are.

        Raises:
            BadModel: a deflated member does not inflate to what was promised, or the file was cut off meanwhile.
        """
        for tensor, offset in enumerate(self.schema.offsets):
            at = offset
            for values in self.tensor_blocks(tensor, block_params, check_crc=check_crc):
                yield Block(tensor, at, values)
                at += len(values)

    def tensor_blocks(
        self, tensor: int, block_params: int = BLOCK_PARAMS, *, check_crc: bool = False
    ) -> Iterator[NDArray[Any]]:
        """Hand out the elements of tensor number ``tensor``, as :meth:`blocks` does; several may be read side by side.

        Raises:
            BadModel: as for :meth:`blocks`.
        """
        header, count = self._headers[tensor], self.schema.tensors[tensor].n_params
        reader = self._reader(tensor, check_crc=check_crc)
        reader.skip(header.nbytes)
        if header.fortran:
            # Column by column on disk, row by row wanted: only the whole tensor can be read in the other order.
            whole = _take(reader, header.dtype, count).reshape(header.shape, order="F")
            for at in range(0, count, block_params):
                yield whole.flat[at : at + block_params]
            del whole
        else:
            for at in range(0, count, block_params):
                yield _take(reader, header.dtype, min(block_params, count - at))
        reader.finish()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Load the whole model: arrays by name, in C order and native byte order. For small models and tests.

        Raises:
            BadModel: as for :meth:`blocks`.
        """
        flat = [np.empty(spec.n_params, numpy_dtype(spec.dtype)) for spec in self.schema.tensors]
        offsets = self.schema.offsets
        for tensor, start, values in self.blocks():
            at = start - offsets[tensor]
            flat[tensor][at : at + len(values)] = values
        return {spec.name: a.reshape(spec.shape) for spec, a in zip(self.schema.tensors, flat, strict=True)}

    def view(self, name: str) -> NDArray[Any]:
        """Map one stored tensor into memory, read-only, in the order and byte order of the file; nothing is loaded.

        The file must not be truncated while the view is in use.

        Raises:
            BadModel: there is no tensor ``name``, or it is deflated.
        """
        for member, header in zip(self._members, self._headers, strict=True):
            if member.key != name:
                continue
            if member.deflated:
                raise refusal(self.source, "is deflated and has no view", member=name)
            if header.data_nbytes == 0:
                return np.empty(header.shape, header.dtype)
            offset = member.offset + header.nbytes
            mapped = mmap.mmap(self._fileno(), 0, access=mmap.ACCESS_READ)
            # The array holds the map; both end together.
            return np.ndarray(header.shape, header.dtype, mapped, offset, order="F" if header.fortran else "C")
        raise BadModel(f"The model of {self.source} has no tensor {name!r}.", source=self.source, tensor=name)

    def require_finite(self, *, source: str | None = None) -> float:
        """Read the model once and require that it has no NaN and no infinity.

        Args:
            source: whose model it is, if not the one given when it was opened.

        Returns:
            The largest magnitude of all elements; 0.0 for a model without elements.

        Raises:
            BadModel: names the tensor, the first block with such numbers and how many there are in it; or the file
                is not what it promised, as for :meth:`blocks`.
        """
        largest = 0.0
        for block in self.blocks():
            largest = max(largest, magnitude(block.values, self.schema, block.tensor, source or self.source))
        return largest

    def verify(self) -> None:
        """Read every byte and compare all checksums, those of stored members too.

        Raises:
            BadModel: names the member that is damaged.
        """
        buffer = memoryview(bytearray(_CRC_PIECE_BYTES))
        for tensor, member in enumerate(self._members):
            reader = self._reader(tensor, check_crc=True)
            left = member.nbytes
            while left:
                piece = buffer[: min(left, _CRC_PIECE_BYTES)]
                reader.fill(piece)
                left -= len(piece)
            reader.finish()

    def _reader(self, tensor: int, *, check_crc: bool = False) -> MemberBytes:
        member = self._members[tensor]
        if self._data and not member.deflated:
            return HeldBytes(self._data, member, self.source, check_crc=check_crc)
        return _open_member(self._fileno(), member, self.source, check_crc=check_crc)

    def _fileno(self) -> int:
        if self._file is None:
            self._file = open_bytes(self._data)
        return self._file.fileno()


def open_npz(
    path: Path | bytes,
    *,
    source: str,
    expect: ModelSchema | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_fortran_bytes: int = MAX_FORTRAN_BYTES,
) -> NpzModel:
    """Open a model file and check everything that can be known without reading its elements.

    Args:
        path: an ``.npz`` as numpy writes it, stored or deflated; or the bytes of a small one.
        source: whose file it is, for messages: ``"client hospital-a"``.
        expect: if given, names, shapes, dtypes and order must be these.
        max_bytes: limit of the size of all members, unpacked.
        max_fortran_bytes: limit of each tensor in Fortran order.

    Raises:
        BadModel: the file is no such archive, or one with tricks (see
            :func:`runnel.common.tensors.zip_directory.read_members`); a member is no plain array of numbers, lies
            about its size or is too large for its order; or the schema is not the expected one.
        OSError: the file is not there or not readable.
    """
    if isinstance(path, bytes):
        return _opened(None, path, source, expect, max_bytes, max_fortran_bytes)
    try:
        file = open_regular(path)
    except IrregularFile as e:
        raise refusal(source, "it is not a regular file") from e
    try:
        return _opened(file, _small_content(file), source, expect, max_bytes, max_fortran_bytes)
    except BaseException:
        file.close()
        raise


def _opened(
    file: BinaryIO | None,
    data: bytes,
    source: str,
    expect: ModelSchema | None,
    max_bytes: int,
    max_fortran_bytes: int,
) -> NpzModel:
    """Return the model in a ``file``, or of the content ``data`` of a small one, checked."""
    if data and len(data) <= max_bytes and (known := _LAYOUTS.find(data)) is not None:
        layout, members = known
        model = NpzModel(file, source, members, layout.headers, schema=layout.schema, data=data)
    elif data or file is None:
        # All that is checked and remembered is of the same bytes, whatever becomes of the file meanwhile.
        with open_bytes(data) as copy:
            members, headers = _read_directory(copy, source, max_bytes, max_fortran_bytes)
        model = NpzModel(file, source, members, headers, data=data)
        _LAYOUTS.learn(data, members, headers, model.schema)
    else:
        model = NpzModel(file, source, *_read_directory(file, source, max_bytes, max_fortran_bytes))
    if expect is not None:
        expect.require_same(model.schema, source=source)
    return model


def _read_directory(
    file: BinaryIO, source: str, max_bytes: int, max_fortran_bytes: int
) -> tuple[tuple[Member, ...], tuple[NpyHeader, ...]]:
    members = read_members(file, source=source, max_bytes=max_bytes)
    headers = tuple(_read_header(file.fileno(), member, source) for member in members)
    for member, header in zip(members, headers, strict=True):
        if header.fortran and header.data_nbytes > max_fortran_bytes:
            raise BadModel(
                f"The model of {source} has {member.key!r} in Fortran order, {header.data_nbytes:,} bytes; a tensor of"
                f" more than {max_fortran_bytes:,} is taken in C order only.",
                hint="Write numpy.ascontiguousarray of it, or rewrite the file with `runnel model convert`.",
                source=source,
                tensor=member.key,
            )
    return members, headers


def _small_content(file: BinaryIO) -> bytes:
    """Return what is in a small file; nothing of a larger one."""
    size = os.fstat(file.fileno()).st_size
    data = os.pread(file.fileno(), size, 0) if size <= SMALL_BYTES else b""
    return data if len(data) == size else b""


def magnitude(values: NDArray[Any], schema: ModelSchema, tensor: int, source: str) -> float:
    """Return the largest magnitude in a block of ``tensor``, any dtype.

    Raises:
        BadModel: there is a NaN or an infinity in it; names the tensor, how many there are, and ``source``.
    """
    if values.size == 0:
        return 0.0
    # Two passes over a block in the cache, without any temporary; NaN and infinity both show in them. A signalling NaN
    # would warn.
    with np.errstate(invalid="ignore"):
        high, low = float(values.max()), float(values.min())
    if math.isfinite(high) and math.isfinite(low):
        return max(abs(high), abs(low))
    bad = int(values.size - np.count_nonzero(np.isfinite(values)))
    name = schema.tensors[tensor].name
    raise BadModel(
        f"The model of {source} has NaN or infinity in the tensor {name!r}: {bad} of a block of {values.size}.",
        hint="Training diverged: try a smaller learning rate, or look at the data.",
        source=source,
        tensor=name,
    )


@lru_cache(maxsize=2048)
def _tensor(key: str, header: NpyHeader) -> TensorSpec:
    """Return what a member is; remembered, for all models of a session have the same."""
    return TensorSpec(name=key, shape=header.shape, dtype=header.dtype.name)


def _open_member(fd: int, member: Member, source: str, *, check_crc: bool = False) -> MemberBytes:
    if member.deflated:
        return DeflatedBytes(fd, member, source)
    return StoredBytes(fd, member, source, check_crc=check_crc)


def _read_header(fd: int, member: Member, source: str) -> NpyHeader:
    try:
        return _parse_member(fd, member, source)
    except HeaderFault as e:
        raise refusal(source, str(e), member=member.key) from e


def _parse_member(fd: int, member: Member, source: str) -> NpyHeader:
    if member.nbytes < PREFIX_BYTES:
        raise HeaderFault("is no .npy array (too short)")
    reader = _open_member(fd, member, source)
    prefix = bytearray(PREFIX_BYTES)
    reader.fill(memoryview(prefix))
    nbytes = header_nbytes(bytes(prefix))
    if not PREFIX_BYTES <= nbytes <= member.nbytes:
        raise HeaderFault("lies about its size: its header is longer than the member")
    rest = bytearray(nbytes - PREFIX_BYTES)
    reader.fill(memoryview(rest))
    header = parse_header(bytes(prefix + rest))
    if header.nbytes + header.data_nbytes != member.nbytes:
        what = f"lies about its size: shape {header.shape} and dtype {header.dtype.name} take {header.data_nbytes}"
        raise HeaderFault(f"{what} bytes, it has {member.nbytes - header.nbytes}")
    return header


def _take(reader: MemberBytes, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """Return the next ``count`` elements in native byte order."""
    if dtype.kind == "b":
        # Bytes other than 0 and 1 would be booleans that are neither.
        bits = np.empty(count, np.uint8)
        reader.fill(bits.data)
        return np.not_equal(bits, 0)
    raw: NDArray[Any] = np.empty(count, dtype)
    reader.fill(raw.view(np.uint8).data)
    return raw.astype(dtype.newbyteorder("="), copy=False)
