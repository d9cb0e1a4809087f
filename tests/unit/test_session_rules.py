"""The written forms of a session's rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.common.errors import InvalidInput
from runnel.reducer.domain.session_rules import check_config, parse_sample, parse_stop_rule
from runnel.reducer.domain.values import SessionConfig, StopRule

pytestmark = pytest.mark.unit

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_./-]{0,20}", fullmatch=True)


@given(NAMES, st.sampled_from([">=", ">", "<=", "<"]), st.integers(-(10**5), 10**5), st.sampled_from(["", " ", "  "]))
def test_a_stop_rule_is_read_as_it_is_written(name: str, comparison: str, threshold: int, space: str) -> None:
    rule = parse_stop_rule(f"{space}{name}{space}{comparison}{space}{threshold}{space}")
    assert rule == StopRule(metric=name, comparison=comparison, threshold=threshold)
    assert parse_stop_rule(str(rule)) == rule


@pytest.mark.parametrize(
    "text",
    ["", "accuracy", ">=0.9", "accuracy>=", "accuracy>=high", "accuracy==1", "a>=nan", "a>=inf", "a=>1", "a b>1"],
)
def test_what_is_no_stop_rule_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="stop_when") as refused:
        parse_stop_rule(text)
    assert refused.value.fields["got"] == text
    assert "accuracy>=0.97" in refused.value.hint


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("all", None),
        ("0.5", 0.5),
        (" 3 ", 3),
        ("1", 1),
        ("1.0", 1.0),
        ("1e-3", 0.001),
        (7, 7),
        (0.25, 0.25),
    ],
)
def test_a_sample_is_a_count_or_a_fraction(value: Any, expected: Any) -> None:
    parsed = parse_sample(value)
    assert parsed == expected
    assert type(parsed) is type(expected)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "", "half", "nan", 0, -3, 0.0, 1.01, float("nan"), True, "1" * 30])
def test_what_is_no_sample_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInput, match="sample"):
        parse_sample(value)


GOOD = SessionConfig(rounds=3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sample": 5, "min_clients": 5, "buffer": 5},
        {"sample": 0.1, "min_clients": 50},
        {"validate_every": 0, "retries": 0, "random_seed": 0},
        {"stop_when": StopRule(metric="a", comparison=">", threshold=1)},
    ],
)
def test_a_config_that_can_be_run_passes(changes: dict[str, Any]) -> None:
    check_config(replace(GOOD, **changes))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rounds": 0}, "rounds"),
        ({"rounds": 10**7}, "rounds"),
        ({"min_clients": 0}, "min_clients"),
        ({"buffer": 0}, "buffer"),
        ({"buffer": 2, "min_clients": 3}, "min_clients"),
        ({"sample": 2, "min_clients": 3}, "min_clients"),
        ({"sample": 2, "buffer": 3}, "buffer"),
        ({"sample": 1.5}, "sample"),
        ({"retries": -1}, "retries"),
        ({"validate_every": -1}, "validate_every"),
        ({"round_timeout_s": 0.0}, "round_timeout_s"),
        ({"round_timeout_s": float("inf")}, "round_timeout_s"),
        ({"strategy_options": {"tau": float("nan")}}, "strategy_options.tau"),
        ({"random_seed": -1}, "random_seed"),
        ({"validate_every": 0, "stop_when": StopRule(metric="a", comparison=">", threshold=1)}, "stop_when"),
    ],
)
def test_a_config_that_can_not_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_config(replace(GOOD, **changes))
    assert refused.value.fields["field"] == field
    assert refused.value.message.startswith(f"{field}:")
