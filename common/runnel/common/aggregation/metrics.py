"""Weighted means of metrics over clients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from runnel.common.errors import InvalidInput


def weighted_mean_metrics(items: Iterable[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Return for each metric its mean over the clients that have it, weighted by their numbers of examples.

    A value that is NaN or infinite says that a client could not measure, so it is left out like a missing one: one
    broken site does not blank the curve of all. A metric that nobody could measure is absent from the result. The
    result lies between the smallest and the largest value, does not depend on the order, and equal values give that
    value exactly.

    Args:
        items: weight and metrics of each client. A weight of 0 contributes nothing.

    Returns:
        Metrics by name, in alphabetical order: the wire does not keep any other.

    Raises:
        InvalidInput: a weight is negative, NaN or infinite.

    >>> weighted_mean_metrics([(30, {"accuracy": 0.9, "loss": 0.2}), (10, {"accuracy": 0.5, "loss": float("nan")})])
    {'accuracy': 0.8, 'loss': 0.2}
    """
    columns: dict[str, list[tuple[float, float]]] = {}
    for weight, metrics in items:
        if not (math.isfinite(weight) and weight >= 0):
            raise InvalidInput(f"A weight of metrics is {weight!r}; expected was a finite number of 0 or more.")
        for name, value in metrics.items():
            if weight > 0 and math.isfinite(value):
                columns.setdefault(name, []).append((float(weight), float(value)))
    return {name: _mean(column) for name, column in sorted(columns.items())}


def _mean(column: list[tuple[float, float]]) -> float:
    heaviest = max(weight for weight, _ in column)
    total = math.fsum(weight / heaviest for weight, _ in column)
    # Halved, so that the sum stays finite also for values at the end of the float range.
    half = math.fsum((weight / heaviest / total) * (value / 2) for weight, value in column)
    values = [value for _, value in column]
    return min(max(half * 2, min(values)), max(values))
