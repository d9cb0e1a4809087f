"""Dtypes by name: those of numpy, and bfloat16, which numpy does not have.

bfloat16 is the upper half of a float32: its 8 exponent bits and the first 7 of its fraction. In memory it is the dtype
of the ``ml_dtypes`` package; numpy writes arrays of that to ``.npy`` files as ``<V2``, two bytes of which it does not
know the meaning, and so does :func:`runnel.common.tensors.npy_header.write_header`. Read back, ``array.view(dtype)``
with :func:`numpy_dtype` of ``"bfloat16"`` gives the numbers; nothing is lost and nothing is unpickled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BFLOAT16 = "bfloat16"

LARGEST_BFLOAT16 = float.fromhex("0x1.fep127")
"""3.39e38; float32 ends 0.4 % above."""

_CARRY = np.uint32(0x7FFF)
_QUIET_NAN = np.uint16(0x7FC0)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the dtype called ``name``, native byte order. ``ml_dtypes`` is imported only for the first bfloat16.

    Args:
        name: one of :data:`runnel.common.tensors.schema.DTYPES`.
    """
    if name != BFLOAT16:
        return np.dtype(name)
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def largest_value(name: str) -> float:
    """Return the largest finite number of the float dtype called ``name``."""
    return LARGEST_BFLOAT16 if name == BFLOAT16 else float(np.finfo(name).max)


def round_to_bfloat16(values: NDArray[np.float64]) -> NDArray[Any]:
    """Return each of ``values`` as the nearest bfloat16, ties to even; what is beyond its range becomes an infinity.

    By way of float32, which alone would round twice: 1 + 2**-8 + 2**-40 is nearer to 1 + 2**-7 than to 1, and as a
    float32 it is a tie. So the way to float32 rounds to odd: what was not exact ends on an odd last bit, which is no
    tie (Boldo and Melquiond 2008, "Emulation of FMA and Correctly Rounded Sums: Proved Algorithms Using Rounding to
    Odd").

    Args:
        values: float64[n], not modified; NaN stays NaN.

    Returns:
        bfloat16[n].

    >>> round_to_bfloat16(np.array([1 + 2**-8, 1 + 2**-8 + 2**-40, 1 + 3 * 2**-8])).astype(float).tolist()
    [1.0, 1.0078125, 1.015625]
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = values.astype(np.float32)
        wide = single.astype(np.float64)
        bits = single.view(np.uint32)
        bits -= np.abs(wide) > np.abs(values)
        bits |= wide != values
    rounded = ((bits + (_CARRY + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)).astype(np.uint16)
    rounded[np.isnan(values)] = _QUIET_NAN
    return rounded.view(numpy_dtype(BFLOAT16))
