"""Robust rules that look at how far updates are from a centre: the geometric median and norm clipping."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runnel.common.aggregation.coordinate_rules import Median
from runnel.common.aggregation.robust import beyond_float64, mixed, require_between, require_whole
from runnel.common.aggregation.update_stack import Columns, UpdateStack

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometricMedian:
    r"""The geometric median by the smoothed Weiszfeld algorithm: RFA (Pillutla et al. 2022, Algorithm 2).

    It approaches the point :math:`v` with the smallest weighted sum of distances
    :math:`\sum_i \alpha_i \lVert v - w_i \rVert` to the updates. Each of ``iterations`` steps takes the mean with the
    weights :math:`\beta_i = \alpha_i / \max(\nu, \lVert v - w_i \rVert)`. :math:`\alpha_i` is the share of update ``i``
    in the weights of all, so it withstands bad updates that have less than half of the weight together; weights are
    claims of the clients. The first :math:`v`, which the paper leaves open, is the coordinate-wise median: from the
    mean, a single huge update would take many steps to be left behind.

    ``nu``: distances below it count as it, in the units of the parameters.

    >>> rule = GeometricMedian(iterations=2, nu=1e-6)
    >>> rule.shares(np.array([1.0, 1.0, 2.0]), np.array([2.0, 1.0, 4.0]))
    array([0.25, 0.5 , 0.25])
    """

    iterations: int = 4
    nu: float = 1e-6

    def __post_init__(self) -> None:
        require_whole("geometric_median", "iterations", self.iterations, 1)
        require_between("geometric_median", "nu", self.nu, 0.0)

    @property
    def least_updates(self) -> int:
        """One."""
        return 1

    def means(self, updates: UpdateStack) -> Iterator[Vector]:
        """See :class:`runnel.common.aggregation.robust.RobustRule`; reads the updates ``iterations`` + 1 times."""
        shares: Vector | None = None
        for _ in range(self.iterations):
            squares = np.zeros(updates.k)
            for columns in updates.columns():
                centre = Median.of(columns.rows) if shares is None else mixed(columns, shares)
                squares += _squared_norms(columns, centre)
            shares = self.shares(updates.weights, np.sqrt(squares))
        assert shares is not None
        for columns in updates.columns():
            yield mixed(columns, shares)

    def shares(self, weights: Vector, distances: Vector) -> Vector:
        """Return the shares float64[k] of the updates in the next mean, which sum to 1.

        Raises:
            BadModel: all distances are infinite.
        """
        apart = np.maximum(distances, self.nu)
        nearest = apart.min()
        if not np.isfinite(nearest):
            raise beyond_float64("their distance from the median")
        # By the nearest and the heaviest, so that neither can overflow.
        factors = weights / weights.max() * (nearest / apart)
        shares: Vector = factors / factors.sum()
        return shares


@dataclass(frozen=True, slots=True, kw_only=True)
class NormClipping:
    r"""Norm clipping (Sun et al. 2019, "Can You Really Backdoor Federated Learning?"), then the weighted mean.

    With the global model :math:`x` and an update :math:`w_i`, what goes into the mean is
    :math:`x + (w_i - x) / \max(1, \lVert w_i - x \rVert / M)` with ``max_norm`` = :math:`M`, the Euclidean norm over
    all elements, in the units of the parameters. The mean is weighted by the numbers of examples as in averaging, so
    that no client moves the model by more than ``max_norm`` times its share in the weights, which are claims of the
    clients. An update whose norm is beyond float64 counts as the global model.

    >>> NormClipping(max_norm=2.0).factors(np.array([1.0, 4.0]))
    array([1. , 0.5])
    """

    max_norm: float

    def __post_init__(self) -> None:
        require_between("norm_clipping", "max_norm", self.max_norm, 0.0)

    @property
    def least_updates(self) -> int:
        """One."""
        return 1

    def means(self, updates: UpdateStack) -> Iterator[Vector]:
        """See :class:`runnel.common.aggregation.robust.RobustRule`; reads the updates twice."""
        squares = np.zeros(updates.k)
        for columns in updates.columns():
            squares += _squared_norms(columns, columns.base)
        weights = updates.weights / updates.weights.max()
        shares = weights / weights.sum() * self.factors(np.sqrt(squares))
        rest = 1.0 - shares.sum()
        for columns in updates.columns():
            yield mixed(columns, shares) if (squares <= self.max_norm**2).all() else mixed(columns, shares, rest)

    def factors(self, norms: Vector) -> Vector:
        """Return by what the differences of these norms, float64[k], are multiplied; 0 for an infinite norm."""
        return np.minimum(1.0, self.max_norm / np.maximum(norms, self.max_norm))


def _squared_norms(columns: Columns, centre: Vector) -> Vector:
    with np.errstate(over="ignore"):
        apart = columns.rows - centre
        squares: Vector = np.einsum("ij,ij->i", apart, apart)
    return squares
