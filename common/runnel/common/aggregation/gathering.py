"""Updates one after another in a file: what a combiner keeps instead of a sum when a rule needs every update."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from runnel.common.errors import BadModel, EmptyAggregate
from runnel.common.storage import storage_errors
from runnel.common.tensors import ModelSchema, NpzModel, Span, magnitude, numpy_dtype
from runnel.common.tensors.regular_file import IrregularFile, open_regular

_COPY_BYTES = 1 << 20


class Gathering:
    """Collects updates of one schema in a file, in the order in which they are added.

    Each update takes exactly ``schema.nbytes``: the elements of its tensors in model order, each in its own dtype,
    little-endian, C order, without any header. So update number ``i`` begins at ``i * schema.nbytes``, and nothing in
    such a file has to be parsed. It travels as ``PAYLOAD_KIND_UPDATES``.

    Disk: ``count`` models. Memory: a block. An :meth:`add` or :meth:`merge` that raises has changed nothing. Not for
    several threads at once.

    Args:
        path: of the file; made anew.
        schema: of every update.

    Raises:
        StorageFull: the disk is full (also in :meth:`add` and :meth:`merge`).
    """

    def __init__(self, path: Path, schema: ModelSchema) -> None:
        self.path = path
        self._schema = schema
        self._count = 0
        with storage_errors(path.parent):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def count(self) -> int:
        """Number of updates so far."""
        return self._count

    def add(self, model: NpzModel) -> None:
        """Add an update.

        Args:
            model: read once; every element is checked on the way.

        Raises:
            BadModel: another schema, NaN or infinity, or a damaged member. The message names ``model.source``.
        """
        self._schema.require_same(model.schema, source=model.source)
        with self._appending(1):
            for block in model.blocks():
                magnitude(block.values, model.schema, block.tensor, model.source)
                little = np.ascontiguousarray(block.values, block.values.dtype.newbyteorder("<"))
                self._write(little.view(np.uint8).data)

    def merge(self, gathered: Path, count: int, *, source: str) -> None:
        """Add all updates of another such file.

        Args:
            gathered: as :meth:`finish` left it; checked whole before any of it is added.
            count: how many updates it has to hold.
            source: who made it, for messages.

        Raises:
            BadModel: wrong size, NaN or infinity.
        """
        with GatheredFile(gathered, self._schema, count, source=source) as other:
            other.require_finite()
            self._copy(other, 0, count)

    def copy(self, other: GatheredFile, place: int) -> None:
        """Add update number ``place`` of another such file, as it is."""
        self._copy(other, place, 1)

    def finish(self) -> Path:
        """Return the file; more may be added afterwards.

        Raises:
            EmptyAggregate: nothing was added.
        """
        if self._count == 0:
            raise EmptyAggregate("Nothing was gathered, so there is nothing to send.")
        return self.path

    def close(self) -> None:
        """Let go of the file, which stays; idempotent."""
        if self._open:
            self._open = False
            os.close(self._fd)

    @contextmanager
    def _appending(self, count: int) -> Iterator[None]:
        whole = self._count * self._schema.nbytes
        os.lseek(self._fd, whole, os.SEEK_SET)
        try:
            with storage_errors(self.path.parent):
                yield
        except BaseException:
            os.ftruncate(self._fd, whole)
            raise
        self._count += count

    def _copy(self, other: GatheredFile, place: int, count: int) -> None:
        at = place * self._schema.nbytes
        end = at + count * self._schema.nbytes
        with self._appending(count):
            while at < end:
                data = other.read(at, min(_COPY_BYTES, end - at))
                self._write(data.data)
                at += len(data)

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._fd, data) :]


class GatheredFile:
    """A file of exactly ``count`` updates as :class:`Gathering` writes it, open for reading at any place.

    Args:
        path: the file.
        schema: of every update.
        count: how many updates it has to hold.
        source: who made it, for messages.

    Raises:
        BadModel: the size is not ``count * schema.nbytes``, or it is no regular file.
        OSError: the file is not there or not readable.
    """

    def __init__(self, path: Path, schema: ModelSchema, count: int, *, source: str) -> None:
        self._schema = schema
        self._count = count
        self._source = source
        self._starts = _byte_starts(schema)
        try:
            self._file = open_regular(path)
        except IrregularFile as e:
            raise BadModel(f"The updates of {source} are not in a regular file.", source=source) from e
        nbytes = os.fstat(self._file.fileno()).st_size
        if nbytes != count * schema.nbytes:
            self._file.close()
            raise BadModel(
                f"The updates of {source} have {nbytes} bytes; expected were {count * schema.nbytes}: {count}"
                f" updates of {schema.nbytes} bytes each.",
                source=source,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()

    def block(self, place: int, span: Span) -> NDArray[Any]:
        """Return the elements ``span`` of update number ``place``: 1-D, of the tensor's dtype, owned by the caller."""
        spec = self._schema.tensors[span.tensor]
        wanted = numpy_dtype(spec.dtype).newbyteorder("<")
        offset, first = self._starts[span.tensor]
        at = place * self._schema.nbytes + offset + (span.start - first) * wanted.itemsize
        raw = self.read(at, span.count * wanted.itemsize)
        if spec.dtype == "bool":
            # Bytes other than 0 and 1 would be booleans that are neither.
            return np.not_equal(raw, 0)
        return raw.view(wanted).astype(wanted.newbyteorder("="), copy=False)

    def read(self, at: int, nbytes: int) -> NDArray[np.uint8]:
        """Return ``nbytes`` bytes from ``at`` on."""
        raw = np.empty(nbytes, np.uint8)
        filled = 0
        while filled < nbytes:
            n = os.preadv(self._file.fileno(), [raw.data[filled:]], at + filled)
            if n == 0:
                raise BadModel(f"The updates of {self._source} were cut off while they were read.", source=self._source)
            filled += n
        return raw

    def require_finite(self) -> None:
        """Read all of it and require that no update has NaN or infinity.

        Raises:
            BadModel: names the tensor and ``source``.
        """
        for place in range(self._count):
            for span in self._schema.spans():
                magnitude(self.block(place, span), self._schema, span.tensor, self._source)


def _byte_starts(schema: ModelSchema) -> list[tuple[int, int]]:
    """Return for each tensor where it begins in an update, in bytes and in elements."""
    starts, at = [], 0
    for spec, first in zip(schema.tensors, schema.offsets, strict=True):
        starts.append((at, first))
        at += spec.nbytes
    return starts
