"""What a codec is: how the differences of one float tensor become arrays that take fewer bytes, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runnel.common.errors import BadModel
from runnel.common.tensors import DTYPES

Blocks = Iterator[NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One array of an encoded tensor: its ``name`` within the tensor, number of elements, and dtype."""

    name: str
    count: int
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.count * DTYPES[self.dtype]


class Codec(Protocol):
    """Encodes the differences of one tensor at a time. ``feedback``: whether what it left out is added to the next.

    The parts of a tensor follow from its number of elements and its dtype alone. So a receiver knows how long each has
    to be before it reads any of it.
    """

    @property
    def feedback(self) -> bool:
        """Whether the error of an update is kept and added to the next one."""

    def parts(self, count: int, dtype: str) -> tuple[Part, ...]:
        """Return the arrays that a tensor of ``count`` elements of the float ``dtype`` becomes, in their order."""

    def encode(self, differences: Callable[[], Blocks], count: int, put: Callable[[NDArray[Any]], None]) -> None:
        """Encode a tensor.

        Args:
            differences: begins to hand out the ``count`` finite differences from their first, in blocks of
                :data:`runnel.common.tensors.BLOCK_PARAMS` (the last one shorter), float32 or float64, not modified;
                may be called several times.
            count: elements of the tensor.
            put: takes the elements of all parts, one part after the other, in 1-D blocks of the part's dtype.

        Raises:
            BadModel: a difference is beyond what the codec can tell.
        """

    def decode(self, read: Callable[[str, int], Blocks], count: int, dtype: np.dtype[Any]) -> Blocks:
        """Hand out the differences that were encoded, in blocks as those of :meth:`encode`.

        Args:
            read: begins to hand out the elements of a named part, so many at a time.
            count: elements of the tensor.
            dtype: float32 or float64: of what is handed out.

        Raises:
            BadModel: the parts are none that :meth:`encode` makes.
        """


def wide(dtype: str) -> np.dtype[Any]:
    """Return the dtype in which differences of a float ``dtype`` are computed: float64 for float64, else float32."""
    return np.dtype(np.float64 if dtype == "float64" else np.float32)


def unfit(what: str) -> BadModel:
    """Say that encoded parts are none that a codec makes."""
    return BadModel(f"The compressed update is malformed: {what}.", hint="It may come of another version of Runnel.")
