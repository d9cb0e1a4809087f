"""How the benchmark of growth tells what grows from what comes and goes."""

from __future__ import annotations

import doctest
import operator

import pytest

from benchmarks import growth
from benchmarks.growth import Look, more

pytestmark = pytest.mark.unit

descriptors = operator.attrgetter("descriptors")


def looks(*held: int) -> list[Look]:
    """Return looks that found so many descriptors."""
    return [
        Look(round=number, resident_bytes=1, descriptors=count, threads=1, files_bytes=0)
        for number, count in enumerate(held, start=1)
    ]


def test_the_examples_hold() -> None:
    result = doctest.testmod(growth)
    assert result.attempted > 0
    assert result.failed == 0


def test_what_a_run_has_open_while_it_goes_is_no_growth() -> None:
    # As seen with 200 rounds of one client.
    assert more(looks(18, 18, 18, 21, 18, 18, 18, 19, 25, 18), descriptors) == 0


def test_a_descriptor_that_is_left_now_and_then_is_growth_however_much_comes_and_goes() -> None:
    assert more(looks(25, 18, 18, 19, 26, 20, 23, 21, 28, 22), descriptors) == 2
