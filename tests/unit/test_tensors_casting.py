"""The written rule from float64 to the dtype of the model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.common.errors import InvalidInput
from runnel.common.tensors import cast_block

pytestmark = pytest.mark.unit

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=20), st.sampled_from(INTEGERS))
def test_integers_round_half_to_even_and_clip(numbers: list[float], dtype: str) -> None:
    info = np.iinfo(dtype)
    came = cast_block(np.array(numbers, np.float64), dtype)
    # Python's round of a float is exact and goes to even.
    assert came.tolist() == [min(max(round(x), info.min), info.max) for x in numbers]
    assert came.dtype == dtype


@pytest.mark.parametrize("dtype", INTEGERS)
def test_the_ends_of_the_range(dtype: str) -> None:
    info = np.iinfo(dtype)
    ends = np.array([float(info.min), float(info.max), 2.0**63, 2.0**64, -(2.0**63), 1e300, -1e300])
    expected = [min(max(int(x), info.min), info.max) for x in ends.tolist()]
    assert cast_block(ends, dtype).tolist() == expected


@given(st.lists(st.floats(allow_nan=False, width=32), max_size=20))
def test_float32_comes_back_bit_for_bit(numbers: list[float]) -> None:
    single = np.array(numbers, np.float32)
    assert cast_block(single.astype(np.float64), "float32").tobytes() == single.tobytes()


def test_bool_is_the_weighted_majority() -> None:
    assert cast_block(np.array([0.0, 0.4999999, 0.5, 1.0]), "bool").tolist() == [False, False, True, True]


def test_the_input_is_not_modified() -> None:
    values = np.array([1.5, 300.0])
    cast_block(values, "uint8")
    assert values.tolist() == [1.5, 300.0]


@pytest.mark.parametrize("dtype", ["int32", "bool"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_where_it_has_no_place(dtype: str, number: float) -> None:
    with pytest.raises(InvalidInput):
        cast_block(np.array([1.0, number]), dtype)


def test_beyond_the_range_of_a_float_is_infinity() -> None:
    assert np.isinf(cast_block(np.array([1e39]), "float32")).all()
