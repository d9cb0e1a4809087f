"""Robust rules that look at each element on its own: the median and the trimmed mean of Yin et al. 2018."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runnel.common.aggregation.robust import plain_mean, require_between
from runnel.common.aggregation.update_stack import UpdateStack

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

# 0.07 * 100 is a little more than 7, 0.29 * 100 a little less than 29.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Median:
    r"""The coordinate-wise median (Yin et al. 2018, "Byzantine-Robust Distributed Learning", Definition 1).

    Each element is the median of that element over all updates; of an even number, the mean of the two in the middle.
    Weights are not looked at: they are claims of the clients. While fewer than half of the updates are bad, every
    element stays between the smallest and the largest of the others.

    >>> Median().of(np.array([[1.0, 5.0], [2.0, 6.0], [1e9, -1e9]]))
    array([2., 5.])
    """

    @property
    def least_updates(self) -> int:
        """One."""
        return 1

    def means(self, updates: UpdateStack) -> Iterator[Vector]:
        """See :class:`runnel.common.aggregation.robust.RobustRule`; reads the updates once."""
        for columns in updates.columns():
            yield self.of(columns.rows)

    @staticmethod
    def of(rows: Matrix) -> Vector:
        """Return the median float64[n] of float64[k, n]; not modified."""
        low, high = (len(rows) - 1) // 2, len(rows) // 2
        # For the numbers of updates that there are, sorting is faster than np.partition.
        ordered = np.sort(rows, axis=0)
        # Halved before they are added, so that the largest numbers don't overflow; clipped, so that the smallest stay.
        median: Vector = np.clip(ordered[low] / 2 + ordered[high] / 2, ordered[low], ordered[high])
        return median


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimmedMean:
    r"""The coordinate-wise trimmed mean (Yin et al. 2018, Definition 2).

    Of each element the :math:`b = \lfloor \beta k \rfloor` smallest and the ``b`` largest numbers are left out, and the
    mean of the others is taken; ``beta`` is above 0 and below 0.5. Weights are not looked at. With up to ``b`` bad
    updates every element stays between the smallest and the largest of the others. A round in which ``b`` would be 0
    is refused, since it would protect from nobody.

    >>> TrimmedMean(beta=0.25).of(np.array([[1.0], [2.0], [4.0], [1e9]]))
    array([3.])
    """

    beta: float = 0.2

    def __post_init__(self) -> None:
        require_between("trimmed_mean", "beta", self.beta, 0.0, 0.5)

    @property
    def least_updates(self) -> int:
        """The least number of which one is left out at each end: 1 / beta, rounded up."""
        return max(3, math.ceil(1 / self.beta - _ROUNDING))

    def means(self, updates: UpdateStack) -> Iterator[Vector]:
        """See :class:`runnel.common.aggregation.robust.RobustRule`; reads the updates once."""
        for columns in updates.columns():
            yield self.of(columns.rows)

    def of(self, rows: Matrix) -> Vector:
        """Return the trimmed mean float64[n] of float64[k, n]; not modified."""
        out = min(math.floor(self.beta * len(rows) + _ROUNDING), (len(rows) - 1) // 2)
        return plain_mean(np.sort(rows, axis=0)[out : len(rows) - out])
