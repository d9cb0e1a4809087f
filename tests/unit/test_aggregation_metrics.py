"""Weighted means of metrics."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.common.aggregation import weighted_mean_metrics
from runnel.common.errors import InvalidInput

pytestmark = pytest.mark.unit

finite = st.floats(allow_nan=False, allow_infinity=False)
weights = st.floats(1e-300, 1e300)
items = st.lists(st.tuples(weights, finite), min_size=1, max_size=8)


def mean(pairs: list[tuple[float, float]]) -> float:
    return weighted_mean_metrics([(w, {"m": v}) for w, v in pairs])["m"]


@given(items)
def test_it_lies_between_the_values(pairs: list[tuple[float, float]]) -> None:
    assert min(v for _, v in pairs) <= mean(pairs) <= max(v for _, v in pairs)


@given(items, st.randoms(use_true_random=False))
def test_order_does_not_matter(pairs: list[tuple[float, float]], shuffle: random.Random) -> None:
    other = list(pairs)
    shuffle.shuffle(other)
    assert mean(other) == mean(pairs)


@given(st.lists(weights, min_size=1, max_size=8), finite)
def test_equal_values_give_that_value(some: list[float], value: float) -> None:
    assert mean([(w, value) for w in some]) == value


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(-1e6, 1e6)), min_size=1), st.floats(1e-3, 1e3))
def test_scaling_all_weights_changes_nothing(pairs: list[tuple[float, float]], factor: float) -> None:
    largest = max(abs(v) for _, v in pairs)
    assert abs(mean([(w * factor, v) for w, v in pairs]) - mean(pairs)) <= 1e-12 * largest


def test_each_metric_is_taken_over_those_that_have_it() -> None:
    came = weighted_mean_metrics([(1, {"a": 1.0}), (3, {"a": 5.0, "b": 7.0}), (9, {})])
    assert came == {"a": 4.0, "b": 7.0}


def test_they_come_in_the_order_of_their_names_whoever_reports_first() -> None:
    some, others = (1.0, {"loss": 1.0, "zeta": 2.0}), (1.0, {"zeta": 2.0, "accuracy": 0.5, "loss": 1.0})
    assert list(weighted_mean_metrics([some, others])) == ["accuracy", "loss", "zeta"]
    assert list(weighted_mean_metrics([others, some])) == ["accuracy", "loss", "zeta"]


def test_what_nobody_could_measure_is_absent() -> None:
    came = weighted_mean_metrics([(1, {"a": math.nan, "b": 2.0}), (1, {"a": math.inf, "b": math.nan}), (0, {"c": 1.0})])
    assert came == {"b": 2.0}
    assert weighted_mean_metrics([]) == {}


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_weights_that_make_no_sense(weight: float) -> None:
    with pytest.raises(InvalidInput):
        weighted_mean_metrics([(weight, {})])
