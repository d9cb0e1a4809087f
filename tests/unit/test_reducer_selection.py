"""Which clients a round asks."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.reducer.domain.selection import select_clients, wanted_clients
from runnel.reducer.domain.values import SessionConfig

pytestmark = pytest.mark.unit

HUNDRED = [f"c{n:03}" for n in range(100)]


@pytest.mark.parametrize(
    ("sample", "min_clients", "attached", "wanted"),
    [
        (None, 1, 7, 7),
        (0.5, 1, 7, 4),  # 3.5 is rounded up
        (0.1, 1, 100, 10),
        (0.001, 1, 100, 1),  # at least one
        (0.1, 30, 100, 30),  # never fewer than min_clients
        (1.0, 1, 100, 100),
        (1, 1, 100, 1),  # a count, not a fraction
        (3, 1, 2, 2),
        (3, 3, 5, 3),
    ],
)
def test_how_many_are_asked(sample: float | int | None, min_clients: int, attached: int, wanted: int) -> None:
    assert wanted_clients(SessionConfig(rounds=1, sample=sample, min_clients=min_clients), attached) == wanted


def test_a_round_waits_for_enough_clients() -> None:
    config = SessionConfig(rounds=1, min_clients=3)
    assert select_clients(config, 1, ["a", "b"], seed=0) is None
    assert select_clients(config, 1, ["c", "a", "b"], seed=0) == ["a", "b", "c"]


@given(
    st.sets(st.sampled_from(HUNDRED), min_size=1),
    st.one_of(st.none(), st.floats(0.01, 1.0), st.integers(1, 120)),
    st.integers(1, 50),
    st.integers(1, 1000),
    st.integers(0, 2**63 - 1),
)
def test_the_draw_is_a_sorted_sample_without_repeats(
    attached: set[str], sample: float | int | None, min_clients: int, round_number: int, seed: int
) -> None:
    config = SessionConfig(rounds=1, sample=sample, min_clients=min_clients)
    drawn = select_clients(config, round_number, attached, seed)
    if len(attached) < min_clients:
        assert drawn is None
        return
    assert drawn is not None
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= attached
    assert len(drawn) == wanted_clients(config, len(attached)) >= min_clients


@given(st.permutations(HUNDRED[:20]), st.integers(1, 5), st.integers(0, 5))
def test_the_draw_depends_on_seed_round_and_names_alone(order: list[str], round_number: int, seed: int) -> None:
    config = SessionConfig(rounds=1, sample=5)
    again = select_clients(config, round_number, order, seed)
    assert again == select_clients(config, round_number, HUNDRED[:20], seed)


def test_the_draw_is_the_same_in_every_process_and_version() -> None:
    config = SessionConfig(rounds=1, sample=4)
    assert select_clients(config, 3, HUNDRED, seed=7) == ["c005", "c034", "c053", "c069"]


def test_rounds_and_seeds_differ() -> None:
    config = SessionConfig(rounds=1, sample=10)
    draws = {tuple(select_clients(config, n, HUNDRED, seed) or ()) for n in range(1, 11) for seed in range(10)}
    assert len(draws) == 100


def test_everybody_has_the_same_chance() -> None:
    config = SessionConfig(rounds=1, sample=0.2)
    rounds = 2000
    hits = Counter(name for n in range(1, rounds + 1) for name in select_clients(config, n, HUNDRED, seed=1) or ())
    # 400 are expected of each, with a standard deviation of 18; 5 of these leave one chance in 17,000 to be wrong.
    assert all(abs(hits[name] - 400) < 5 * 18 for name in HUNDRED)
    # Pearson's statistic of 100 counts whose variance is 0.8 of that of a Poisson count: about 99 ± 14 after scaling.
    statistic = sum((hits[name] - 400) ** 2 / (400 * 0.8) for name in HUNDRED)
    assert 50 < statistic < 160
