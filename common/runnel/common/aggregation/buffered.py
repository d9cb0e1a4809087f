"""Buffered asynchronous aggregation: clients train all the time, and each so many updates make the next model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runnel.common.aggregation.robust import mixed, require_between, require_whole
from runnel.common.aggregation.update_stack import UpdateStack

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class FedBuff:
    r"""FedBuff (Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation", Algorithm 1).

    An update that was trained from the model of :math:`\tau` rounds ago counts with its difference to that model times
    :math:`s(\tau) = (1 + \tau)^{-a}` with ``staleness_exponent`` = :math:`a` (the paper's choice is 0.5; 0 discounts
    nothing). The next model is the present one plus the learning rate times the mean of these differences, weighted by
    the numbers of examples; with equal weights that is the paper's mean over the buffer. The discount does not enter
    the divisor, so that a buffer of stale updates makes a smaller step.

    ``max_staleness``: an update that would be older is called off, and late.

    >>> FedBuff().discount(0), FedBuff().discount(3), FedBuff(staleness_exponent=0.0).discount(3)
    (1.0, 0.5, 1.0)
    """

    max_staleness: int = 10
    staleness_exponent: float = 0.5

    def __post_init__(self) -> None:
        require_whole("fedbuff", "max_staleness", self.max_staleness, 0)
        if self.staleness_exponent != 0:
            require_between("fedbuff", "staleness_exponent", self.staleness_exponent, 0.0)

    @property
    def least_updates(self) -> int:
        """One."""
        return 1

    def discount(self, staleness: int) -> float:
        """Return the factor of an update that was trained from the model of ``staleness`` rounds ago."""
        return float((1 + staleness) ** -self.staleness_exponent)

    def means(self, updates: UpdateStack) -> Iterator[Vector]:
        """See :class:`runnel.common.aggregation.robust.RobustRule`; reads the updates once."""
        weights = updates.weights / updates.weights.max()
        shares = weights / weights.sum()
        for columns in updates.columns():
            yield mixed(columns, shares)
