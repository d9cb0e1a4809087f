"""Models as ``.safetensors`` files: read from strangers and written, in blocks, without ever loading one whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from runnel.common.errors import InvalidInput
from runnel.common.tensors.atomic_file import AtomicFile
from runnel.common.tensors.casting import block_bytes
from runnel.common.tensors.dtypes import numpy_dtype
from runnel.common.tensors.regular_file import IrregularFile, open_regular
from runnel.common.tensors.safetensors_header import (
    PREFIX_BYTES,
    Header,
    header_nbytes,
    make_header,
    parse_header,
    refusal,
)
from runnel.common.tensors.schema import BLOCK_PARAMS, ModelSchema


class SafetensorsModel:
    """An open model file, from :func:`open_safetensors`. Use as a context manager; not for several threads at once.

    ``schema`` has the tensors in the order in which the header names them. The order means nothing in this format:
    libraries sort by dtype and name.
    """

    def __init__(self, file: BinaryIO, source: str, header: Header) -> None:
        self.source = source
        self.schema = header.schema
        self._file = file
        self._offsets = header.offsets

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()

    def tensor_blocks(self, tensor: int, block_params: int = BLOCK_PARAMS) -> Iterator[NDArray[Any]]:
        """Hand out the elements of tensor number ``tensor`` in C order, at most ``block_params`` at a time.

        Returns:
            1-D blocks of the tensor's dtype in native byte order, owned by the receiver.

        Raises:
            BadModel: the file was cut off meanwhile.
        """
        spec = self.schema.tensors[tensor]
        wanted = numpy_dtype(spec.dtype)
        for at in range(0, spec.n_params, block_params):
            count = min(block_params, spec.n_params - at)
            raw = np.empty(count * wanted.itemsize, np.uint8)
            self._fill(raw.data, self._offsets[tensor] + at * wanted.itemsize)
            if spec.dtype == "bool":
                # Bytes other than 0 and 1 would be booleans that are neither.
                yield np.not_equal(raw, 0)
            else:
                little = raw.view(wanted.newbyteorder("<"))
                yield little.astype(wanted, copy=False)

    def _fill(self, view: memoryview, offset: int) -> None:
        """Read with ``pread``, not through a map: a map of a file that somebody truncates ends the whole process."""
        filled = 0
        while filled < len(view):
            n = os.preadv(self._file.fileno(), [view[filled:]], offset + filled)
            if n == 0:
                raise refusal(self.source, "it was cut off while it was read")
            filled += n


def open_safetensors(path: Path, *, source: str) -> SafetensorsModel:
    """Open a model file and check everything that can be known without reading its elements.

    Args:
        path: a ``.safetensors`` file.
        source: whose file it is, for messages: ``"client hospital-a"``.

    Raises:
        BadModel: the file is none, or one with tricks (see
            :func:`runnel.common.tensors.safetensors_header.parse_header`).
        OSError: the file is not there or not readable.
    """
    try:
        file = open_regular(path)
    except IrregularFile as e:
        raise refusal(source, "it is not a regular file") from e
    try:
        file_nbytes = os.fstat(file.fileno()).st_size
        nbytes = header_nbytes(file.read(PREFIX_BYTES), file_nbytes=file_nbytes, source=source)
        header = parse_header(file.read(nbytes), file_nbytes=file_nbytes, source=source)
    except BaseException:
        file.close()
        raise
    return SafetensorsModel(file, source, header)


class SafetensorsWriter:
    """Writes a model of known schema block by block, as :class:`runnel.common.tensors.NpzWriter` does.

    Equal models give equal bytes. The file appears under ``path`` at :meth:`close`; leaving the context by an exception
    removes it.

    Args:
        path: replaced if it exists.
        schema: of the model.

    Raises:
        BadModel: a name that the format can't have, or too many of them.
        StorageFull: the disk is full (also in :meth:`append` and :meth:`close`).
    """

    def __init__(self, path: Path, schema: ModelSchema) -> None:
        start, self._header = make_header(schema)
        self.schema = schema
        self._tensor = -1
        self._at = self._left = 0
        self._out = AtomicFile(path)
        self._closed = False
        try:
            self._out.write(start)
            self._next_tensor()
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
            self._out.abort()

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
        spec = self.schema.tensors[min(self._tensor, len(self.schema.tensors) - 1)]
        data = block_bytes(block, spec, self._left)
        self._out.write_at(self._at, data)
        self._at += len(data)
        self._left -= block.size
        if self._left == 0:
            self._next_tensor()

    def close(self) -> None:
        """Put the file in its place; idempotent.

        Raises:
            InvalidInput: elements are missing; there is no file then.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._left:
                spec = self.schema.tensors[self._tensor]
                raise InvalidInput(f"{self._left} elements of {spec} are missing.", tensor=spec.name)
            self._out.commit()
        finally:
            self._out.abort()

    def _next_tensor(self) -> None:
        """Go on to the next tensor that has elements."""
        while self._left == 0 and self._tensor + 1 < len(self.schema.tensors):
            self._tensor += 1
            self._at, self._left = self._header.offsets[self._tensor], self.schema.tensors[self._tensor].n_params
