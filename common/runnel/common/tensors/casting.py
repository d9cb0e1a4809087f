"""From the float64 numbers of an aggregate to the dtype of the model: the written rule.

Everything is aggregated in float64, whatever the dtype. A float64 value ``x`` (finite) becomes

* in a **float** tensor the nearest value of its dtype (ties to even); beyond the dtype's range it becomes an infinity,
  which the reduction refuses;
* in an **integer** tensor (step counters, quantised weights) the nearest integer, ties to even, clipped to the range of
  the dtype: 2.5 becomes 2, 3.5 becomes 4, and 300 becomes 255 in ``uint8``;
* in a **bool** tensor (masks) true if ``x >= 0.5``: the weighted majority, and true when the vote is even.

A mean of equal values is that value again, bit for bit, for bool, bfloat16, float16, float32 and integers below 2**50;
float64 tensors come back to within a few units in the last place, and larger integers to the 53 bits that a float64
holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runnel.common.errors import InvalidInput
from runnel.common.tensors.dtypes import BFLOAT16, round_to_bfloat16

if TYPE_CHECKING:
    from runnel.common.tensors.schema import TensorSpec


def cast_block(values: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    """Return ``values`` in ``dtype`` by the rule of this module.

    Args:
        values: float64[n], not modified.
        dtype: one of :data:`runnel.common.tensors.schema.DTYPES`.

    Returns:
        dtype[n]; for float64 this is ``values`` itself.

    Raises:
        InvalidInput: ``values`` has NaN or infinities and ``dtype`` has no such thing.

    >>> cast_block(np.array([0.5, 1.5, 2.5, -7.0, 300.0]), "uint8").tolist()
    [0, 2, 2, 0, 255]
    >>> cast_block(np.array([0.49, 0.5, 1.0]), "bool").tolist()
    [False, True, True]
    """
    if dtype == BFLOAT16:
        return round_to_bfloat16(values)
    target = np.dtype(dtype)
    if target.kind == "f":
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return values.astype(target, copy=False)
    if not np.isfinite(values).all():
        raise InvalidInput(f"NaN and infinity have no place in a tensor of {dtype}.", dtype=dtype)
    if target.kind == "b":
        majority: NDArray[Any] = values >= 0.5
        return majority
    info = np.iinfo(target)
    rounded = np.rint(values)
    # The upper limit of 64-bit integers is no float64: float(max) is one above it, and anything below casts exactly.
    high = rounded >= float(info.max)
    low = rounded <= float(info.min)
    rounded[high | low] = 0.0
    cast = rounded.astype(target)
    cast[high] = info.max
    cast[low] = info.min
    return cast


def block_bytes(block: NDArray[Any], spec: TensorSpec, left: int) -> memoryview:
    """Return the next elements of a tensor as they stand in files: of its dtype, little-endian.

    Args:
        block: 1-D; of the tensor's dtype, or float64, which is cast. Not modified.
        spec: of the tensor.
        left: how many of its elements are still to come.

    Raises:
        InvalidInput: the block has another dtype, or more elements than are left.
    """
    if block.ndim != 1 or block.size > left:
        what = f"a block of shape {block.shape} came, {left} elements are left"
        raise InvalidInput(f"The tensor {spec} is written in 1-D blocks: {what}.", tensor=spec.name)
    if block.dtype.name != spec.dtype:
        if block.dtype != np.float64:
            raise InvalidInput(f"A block of {block.dtype} cannot be written to {spec}.", tensor=spec.name)
        block = cast_block(block, spec.dtype)
    return np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("<")).view(np.uint8).data
