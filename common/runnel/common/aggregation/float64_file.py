"""Raw files of float64 numbers, little-endian, without a header: weighted sums on the wire and optimizer states."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from runnel.common.errors import BadModel, RunnelError
from runnel.common.tensors.regular_file import IrregularFile, open_regular

_ITEM_BYTES = 8


class Float64File:
    """A file of exactly ``count`` float64 numbers, open for reading at any place.

    Args:
        path: the file.
        count: numbers that it has to hold.
        source: whose file it is, for messages.
        error: class of the error for a file of another size.

    Raises:
        RunnelError: of the class ``error``: the size is not ``8 * count`` bytes, or it is no regular file.
        OSError: the file is not there or not readable.
    """

    def __init__(self, path: Path, count: int, *, source: str, error: type[RunnelError] = BadModel) -> None:
        self.path = path
        self._source = source
        self._error = error
        try:
            self._file = open_regular(path)
        except IrregularFile as e:
            raise error(f"The float64 numbers of {source} are not in a regular file.", source=source) from e
        nbytes = os.fstat(self._file.fileno()).st_size
        if nbytes != count * _ITEM_BYTES:
            self._file.close()
            raise error(
                f"The file of float64 numbers of {source} has {nbytes} bytes; "
                f"expected were {count * _ITEM_BYTES} for {count} numbers.",
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

    def read(self, start: int, count: int) -> NDArray[np.float64]:
        """Return the numbers ``start … start + count`` as float64[count] that the caller owns."""
        values = np.empty(count, "<f8")
        view = values.view(np.uint8).data
        filled = 0
        while filled < len(view):
            n = os.preadv(self._file.fileno(), [view[filled:]], start * _ITEM_BYTES + filled)
            if n == 0:
                raise self._error(
                    f"The file of float64 numbers of {self._source} was cut off while it was read.", source=self._source
                )
            filled += n
        return values.astype(np.float64, copy=False)


def as_bytes(values: NDArray[np.float64]) -> memoryview:
    """Return ``values`` as they stand in such a file: a view without a copy on little-endian machines."""
    return np.ascontiguousarray(values, "<f8").view(np.uint8).data
