"""Differences as 16-bit floats: half precision (IEEE 754 binary16) and bfloat16.

Rounded are the differences to the global model, not the numbers of the update: near the end of a training an update
differs from the model by less than the last bit of a 16-bit float, and rounded numbers would not move at all. Nothing
is kept for the next round, for the errors are relative to differences that become small themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runnel.common.compression.codec import Blocks, Part, unfit
from runnel.common.errors import BadModel
from runnel.common.tensors import BLOCK_PARAMS


@dataclass(frozen=True, slots=True)
class Fp16:
    r"""binary16: 11 significant bits, magnitudes up to 65504, 2 bytes an element.

    A difference :math:`d` becomes the nearest binary16 (ties to even), so :math:`|d - \hat d| \le 2^{-11} |d|` where
    :math:`|d| \ge 2^{-14}`, and at most :math:`2^{-25}` below that. What is beyond 65504 is refused.
    """

    feedback: bool = False

    def parts(self, count: int, dtype: str) -> tuple[Part, ...]:
        """See :class:`Codec`."""
        return (Part(name="fp16", count=count, dtype="float16"),)

    def encode(self, differences: Callable[[], Blocks], count: int, put: Callable[[NDArray[Any]], None]) -> None:
        """See :class:`Codec`."""
        for block in differences():
            with np.errstate(over="ignore", under="ignore"):
                half = block.astype(np.float16)
            if not np.isfinite(half).all():
                largest = float(np.abs(block).max())
                raise BadModel(
                    f"The update differs from the global model by {largest:g}; half precision ends at 65504.",
                    hint="Compress by bf16 or int8, or look why the training moves so far.",
                )
            put(half)

    def decode(self, read: Callable[[str, int], Blocks], count: int, dtype: np.dtype[Any]) -> Blocks:
        """See :class:`Codec`."""
        for half in read("fp16", BLOCK_PARAMS):
            if not np.isfinite(half).all():
                raise unfit("NaN or infinity among its differences")
            yield half.astype(dtype)


@dataclass(frozen=True, slots=True)
class Bf16:
    r"""bfloat16: 8 significant bits and the range of float32, 2 bytes an element.

    A difference :math:`d` becomes the nearest bfloat16 (ties to even), so :math:`|d - \hat d| \le 2^{-8} |d|` where
    :math:`|d| \ge 2^{-126}` (float64 differences are rounded to float32 first). What is beyond float32 is refused.
    """

    feedback: bool = False

    def parts(self, count: int, dtype: str) -> tuple[Part, ...]:
        """See :class:`Codec`."""
        return (Part(name="bf16", count=count, dtype="uint16"),)

    def encode(self, differences: Callable[[], Blocks], count: int, put: Callable[[NDArray[Any]], None]) -> None:
        """See :class:`Codec`."""
        for block in differences():
            with np.errstate(over="ignore", under="ignore"):
                bits = block.astype(np.float32, copy=False).view(np.uint32)
            # Half of the last kept place, less one where the kept part is even: ties go to even.
            rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16).astype(np.uint16)
            if ((rounded & 0x7F80) == 0x7F80).any():
                raise BadModel("The update differs from the global model by more than bfloat16 can tell (3.4e38).")
            put(rounded)

    def decode(self, read: Callable[[str, int], Blocks], count: int, dtype: np.dtype[Any]) -> Blocks:
        """See :class:`Codec`."""
        for rounded in read("bf16", BLOCK_PARAMS):
            if ((rounded & 0x7F80) == 0x7F80).any():
                raise unfit("NaN or infinity among its differences")
            yield (rounded.astype(np.uint32) << 16).view(np.float32).astype(dtype, copy=False)
