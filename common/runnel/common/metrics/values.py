"""Metrics and their values: by Prometheus' conventions, in base units, without its library."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Upper bounds of buckets for what takes from milliseconds to an hour."""


class MetricKind(Enum):
    """How the values of a metric are to be read."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What is measured.

    Attributes:
        name: as Prometheus has it; that of a counter ends in ``_total``.
        kind: counters only grow and begin anew with the process; gauges tell what is now.
        help: one line for people.
        labels: names of what tells its values apart, of which each has few values: never a client or a session.
    """

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()

    def sample(self, value: float | Distribution, *labels: str) -> Sample:
        """Return a value of it; ``labels`` in the order of :attr:`labels`."""
        return Sample(metric=self, value=value, labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A value of a metric; of a histogram a :class:`Distribution`."""

    metric: Metric
    value: float | Distribution
    labels: tuple[str, ...] = ()


class Tally:
    """A counter with labels; not safe for threads.

    >>> updates = Tally(("counted",), ("late",))
    >>> updates.add("late", amount=3)
    >>> dict(updates.items())
    {('counted',): 0, ('late',): 3}
    """

    def __init__(self, *known: tuple[str, ...]) -> None:
        # What is known beforehand is told as 0, so that the first one shows as an increase.
        self._counts: Counter[tuple[str, ...]] = Counter(dict.fromkeys(known, 0))

    def add(self, *labels: str, amount: int = 1) -> None:
        """Count ``amount`` more under these values of the labels."""
        self._counts[labels] += amount

    def items(self) -> Iterator[tuple[tuple[str, ...], int]]:
        """Yield values of the labels and their counts."""
        return iter(list(self._counts.items()))

    def samples(self, metric: Metric) -> list[Sample]:
        """Return it as values of ``metric``."""
        return [metric.sample(count, *labels) for labels, count in self.items()]


class Distribution:
    """How often a value fell into which bucket; not safe for threads.

    >>> took = Distribution((1.0, 10.0))
    >>> for seconds in (0.5, 1.0, 70.0):
    ...     took.observe(seconds)
    >>> took.cumulative(), took.sum
    ([('1.0', 2), ('10.0', 2), ('+Inf', 3)], 71.5)
    """

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, int]]:
        """Return the upper bounds and how many values were at most so large."""
        total, found = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            found.append((bound, total))
        return found
