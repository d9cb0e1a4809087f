"""The largest differences only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runnel.common.compression.codec import Blocks, Part, unfit
from runnel.common.errors import BadModel
from runnel.common.tensors import BLOCK_PARAMS

DEFAULT_FRACTION = 0.01
MAX_FRACTION = 0.4
"""With half, position and value of what is kept take as many bytes as all values do."""

_LOW_BITS = 16


@dataclass(frozen=True, slots=True)
class TopK:
    r"""Top-k sparsification with error feedback: the ``fraction`` of largest magnitude in each tensor, and where it is.

    Of a tensor of :math:`n` elements :math:`k = \lceil n \cdot \text{fraction} \rceil` are kept, exactly (float16 and
    float32 as float32, float64 as float64), of equal magnitudes the first; the others count as unchanged. So
    :math:`\|d - \hat d\|^2 \le (1 - k/n) \|d\|^2`. What was left out is added to the next update: Stich et al. 2018,
    "Sparsified SGD with Memory"; Lin et al. 2018, "Deep Gradient Compression". Over any number of updates that count,
    what arrived plus what is still kept is the sum of all differences.

    Magnitudes are compared as float32. Those of float64 that round to the same are equal to it, so for them the bound
    holds but for a factor of :math:`1 + 2^{-21}`, and only within the range of normal float32 (1.2e-38 to 3.4e38).

    Positions are told as gaps: the first position plus one, then the distance to the next. 8 bytes for each element
    that is kept; memory: those of one tensor.
    """

    fraction: float = DEFAULT_FRACTION
    feedback: bool = True

    def parts(self, count: int, dtype: str) -> tuple[Part, ...]:
        """See :class:`Codec`."""
        kept = self._kept(count)
        gap = "uint32" if count < 1 << 32 else "uint64"
        value = "float64" if dtype == "float64" else "float32"
        return (Part(name="gap", count=kept, dtype=gap), Part(name="value", count=kept, dtype=value))

    def _kept(self, count: int) -> int:
        # Not what the product of floats rounds up to: 100 elements of 0.07 are 7.
        return max(1, math.ceil(count * (self.fraction - 1e-9)))

    def encode(self, differences: Callable[[], Blocks], count: int, put: Callable[[NDArray[Any]], None]) -> None:
        """See :class:`Codec`."""
        kept = self._kept(count)
        threshold, ties = _kth_largest(differences, kept)
        positions, values = [], []
        start = 0
        for block in differences():
            rank = _rank(block)
            chosen = rank > threshold
            equal = np.flatnonzero(rank == threshold)[:ties]
            ties -= equal.size
            chosen[equal] = True
            at = np.flatnonzero(chosen)
            positions.append(at + start)
            values.append(block[at])
            start += block.size
        gap = "uint32" if count < 1 << 32 else "uint64"
        put(np.diff(np.concatenate(positions), prepend=-1).astype(gap))
        put(np.concatenate(values))

    def decode(self, read: Callable[[str, int], Blocks], count: int, dtype: np.dtype[Any]) -> Blocks:
        """See :class:`Codec`."""
        kept = _positions(read, count)
        at, values = _NOWHERE, np.empty(0, dtype)
        for start in range(0, count, BLOCK_PARAMS):
            block = np.zeros(min(BLOCK_PARAMS, count - start), dtype)
            while not at.size or at[0] < start + block.size:
                if not at.size:
                    at, values = next(kept, (_NOWHERE, values))
                    if not at.size:
                        break
                here = int(np.searchsorted(at, start + block.size))
                block[at[:here] - start] = values[:here]
                at, values = at[here:], values[here:]
            yield block


_NOWHERE: NDArray[np.int64] = np.empty(0, np.int64)


def _positions(read: Callable[[str, int], Blocks], count: int) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
    """Hand out increasing positions below ``count`` with their values."""
    last = -1
    for gaps, values in zip(read("gap", BLOCK_PARAMS), read("value", BLOCK_PARAMS), strict=True):
        if not gaps.all() or gaps.max() > count:
            raise unfit("the positions of what it keeps do not increase, or leave the tensor")
        at = np.cumsum(gaps, dtype=np.int64) + last
        last = int(at[-1])
        if last >= count:
            raise unfit(f"it keeps element {last} of a tensor of {count}")
        if not np.isfinite(values).all():
            raise unfit("NaN or infinity among its differences")
        yield at, values


def _rank(block: NDArray[Any]) -> NDArray[np.uint32]:
    """Return integers that order magnitudes: the bits of a float32 without its sign."""
    with np.errstate(over="ignore", under="ignore"):
        magnitude: NDArray[np.float32] = np.abs(block).astype(np.float32, copy=False)
    return magnitude.view(np.uint32)


def _kth_largest(differences: Callable[[], Blocks], k: int) -> tuple[int, int]:
    """Return the rank of the k-th largest element, and how many of that very rank are among the k.

    Counted by the upper half of the bits, then by the lower half among those that share the upper: two passes over
    blocks, and no copy of the tensor.
    """
    counts = np.zeros(1 << 15, np.int64)
    for block in differences():
        counts += np.bincount(_rank(block) >> _LOW_BITS, minlength=counts.size)
    upper, above = _find(counts, k)
    counts = np.zeros(1 << _LOW_BITS, np.int64)
    for block in differences():
        rank = _rank(block)
        counts += np.bincount(rank[rank >> _LOW_BITS == upper] & np.uint32(0xFFFF), minlength=counts.size)
    lower, more = _find(counts, k - above)
    return upper << _LOW_BITS | lower, k - above - more


def _find(counts: NDArray[np.int64], k: int) -> tuple[int, int]:
    """Return the bin in which the k-th largest is, and how many are in the bins above it."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, k))
    if place == from_top.size:
        raise BadModel("The file of the update became shorter while it was read.")
    return counts.size - 1 - place, int(from_top[place] - counts[counts.size - 1 - place])
