"""Robust rules that look at the distances between updates: Krum, multi-Krum and Bulyan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runnel.common.aggregation.coordinate_rules import Median
from runnel.common.aggregation.robust import beyond_float64, plain_mean, require_whole
from runnel.common.aggregation.update_stack import UpdateStack

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Krum:
    r"""Krum (Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent").

    The score of an update is the sum of its squared distances to the :math:`k - f - 2` others that are closest to it;
    the update with the smallest score is the result, as it is. It withstands ``f`` bad updates of at least
    :math:`2f + 3`. Weights are not looked at.

    >>> squared = squared_distances(np.array([[0.0], [1.0], [3.0], [9.0], [1e6]]))
    >>> [float(score) for score in krum_scores(squared, f=1)[:3]]  # for k = 5 to the 2 closest
    [10.0, 5.0, 13.0]
    """

    f: int = 1

    def __post_init__(self) -> None:
        require_whole("krum", "f", self.f, 0)

    @property
    def least_updates(self) -> int:
        """2 f + 3."""
        return 2 * self.f + 3

    def means(self, updates: UpdateStack) -> Iterator[Vector]:
        """See :class:`runnel.common.aggregation.robust.RobustRule`; reads the updates twice."""
        (chosen,) = best(_distances_of(updates), self.f, 1)
        for columns in updates.columns():
            yield columns.rows[chosen]


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiKrum:
    r"""Multi-Krum (Blanchard et al. 2017, section 4): the plain mean of the ``m`` updates with the best Krum scores.

    ``m`` is at most :math:`k - f - 2`, up to which Damaskinos et al. 2019 ("AggregaThor") prove that it withstands
    ``f`` bad updates; None takes as many. ``m = 1`` is Krum. Weights are not looked at.
    """

    f: int = 1
    m: int | None = None

    def __post_init__(self) -> None:
        require_whole("multi_krum", "f", self.f, 0)
        if self.m is not None:
            require_whole("multi_krum", "m", self.m, 1)

    @property
    def least_updates(self) -> int:
        """2 f + 3, and with ``m`` given at least f + m + 2."""
        return max(2 * self.f + 3, self.f + (self.m or 1) + 2)

    def means(self, updates: UpdateStack) -> Iterator[Vector]:
        """See :class:`runnel.common.aggregation.robust.RobustRule`; reads the updates twice."""
        count = updates.k - self.f - 2 if self.m is None else self.m
        chosen = best(_distances_of(updates), self.f, count)
        for columns in updates.columns():
            yield plain_mean(columns.rows[chosen])


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulyan:
    r"""Bulyan over Krum (El Mhamdi et al. 2018, "The Hidden Vulnerability of Distributed Learning in Byzantium").

    First Krum chooses again and again, each time from the updates that are left, until it has
    :math:`\theta = k - 2f`. Then each element is the mean of the :math:`\theta - 2f` numbers of the chosen that are
    closest to their median. It withstands ``f`` bad updates of at least :math:`4f + 3`. Weights are not looked at.

    A bad update that was chosen can count in elements where it is closer to the median than honest ones are: with
    honest numbers from ``low`` to ``high`` the result lies between ``low - (high - low)`` and ``high + (high - low)``.

    >>> Bulyan(f=1).closest(np.array([[1.0], [2.0], [3.0], [4.0], [9.0]]))
    array([3.])
    """

    f: int = 1

    def __post_init__(self) -> None:
        require_whole("bulyan", "f", self.f, 0)

    @property
    def least_updates(self) -> int:
        """4 f + 3."""
        return 4 * self.f + 3

    def means(self, updates: UpdateStack) -> Iterator[Vector]:
        """See :class:`runnel.common.aggregation.robust.RobustRule`; reads the updates twice."""
        chosen = self.choose(_distances_of(updates))
        for columns in updates.columns():
            yield self.closest(columns.rows[chosen])

    def choose(self, squared: Matrix) -> list[int]:
        """Return the indices of the updates that Krum chooses, best first, given float64[k, k] squared distances."""
        left = list(range(len(squared)))
        chosen: list[int] = []
        while len(chosen) < len(squared) - 2 * self.f:
            (found,) = best(squared[np.ix_(left, left)], self.f, 1)
            chosen.append(left.pop(found))
        return chosen

    def closest(self, chosen: Matrix) -> Vector:
        """Return the mean of those of float64[θ, n] that are closest to the median of their column."""
        # Sorted first, so that of two equally close ones it is always the smaller that is taken.
        ordered = np.sort(chosen, axis=0)
        with np.errstate(over="ignore"):
            distances = np.abs(ordered - Median.of(ordered))
        nearest = np.argsort(distances, axis=0, kind="stable")[: len(ordered) - 2 * self.f]
        return plain_mean(np.take_along_axis(ordered, nearest, axis=0))


def krum_scores(squared: Matrix, f: int) -> Vector:
    """Return the Krum score float64[k] of each update, given float64[k, k] squared distances.

    Of so few updates that ``k - f - 2`` is below 1 (the last choices of Bulyan), the closest one counts.
    """
    k = len(squared)
    closest = min(max(1, k - f - 2), k - 1)
    # The smallest of each row is the distance to itself, 0.
    with np.errstate(over="ignore"):
        scores: Vector = np.sort(squared, axis=1)[:, 1 : closest + 1].sum(axis=1)
    return scores


def best(squared: Matrix, f: int, count: int) -> list[int]:
    """Return the indices of the ``count`` updates with the smallest Krum scores, best first.

    Two updates that are closest to each other often have equal scores; then the one wins whose further neighbours are
    closer, and of those that are equal in that too, the first.

    Raises:
        BadModel: one of those scores is infinite.
    """
    scores = krum_scores(squared, f)
    further = np.sort(squared, axis=1).T[:0:-1]
    chosen = np.lexsort([*further, scores])[:count]
    if not np.isfinite(scores[chosen]).all():
        raise beyond_float64("the score of Krum")
    return [int(index) for index in chosen]


def squared_distances(rows: Matrix, base: Vector | None = None) -> Matrix:
    """Return the squared Euclidean distances float64[k, k] between the rows of float64[k, n].

    They are formed from inner products of the rows less ``base``. An infinite distance is one beyond float64.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        moved = rows if base is None else rows - base
        return _from_products(moved @ moved.T)


def _distances_of(updates: UpdateStack) -> Matrix:
    """Accumulate the inner products of all updates less the global model over all blocks, in one pass.

    Trained from the same model, updates are as far from it as from each other, so that the differences of these
    products keep their digits, whereas those of the models themselves would not.
    """
    products = np.zeros((updates.k, updates.k))
    with np.errstate(over="ignore", invalid="ignore"):
        for columns in updates.columns():
            columns.rows[:] -= columns.base
            products += columns.rows @ columns.rows.T
        return _from_products(products)


def _from_products(products: Matrix) -> Matrix:
    squares = np.diagonal(products)
    squared = squares[:, None] + squares[None, :] - 2 * products
    # Infinity less infinity: at least one of the two is beyond all bounds, and so is the distance.
    squared = np.where(np.isnan(squared), np.inf, np.maximum(squared, 0.0))
    np.fill_diagonal(squared, 0.0)
    return squared
