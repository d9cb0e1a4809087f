"""What the JSON of an entry point means, whatever is in it."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.client.domain import Notes, check_settings, read_notes
from runnel.common.errors import BadOutput, InvalidInput

pytestmark = pytest.mark.unit

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def test_numbers_are_metrics_and_the_rest_is_kept() -> None:
    notes = read_notes(b'{"num_examples": 12, "loss": 0.5, "epochs": 3, "ok": true, "s": "x", "n": null}', what="x")
    assert notes == Notes(
        num_examples=12.0, metrics={"loss": 0.5, "epochs": 3.0}, extra={"ok": True, "s": "x", "n": None}
    )
    assert notes.weight == 12.0


def test_no_weight_is_one() -> None:
    assert read_notes(b"{}", what="x").weight == 1.0


@given(st.dictionaries(st.text().filter(lambda key: key != "num_examples"), VALUES, max_size=5))
def test_whatever_json_gives_finite_metrics_and_plain_json(values: dict[str, Any]) -> None:
    notes = read_notes(json.dumps(values).encode(), what="x")
    assert len(notes.metrics) + len(notes.extra) == len(values)
    assert all(type(value) is float and math.isfinite(value) for value in notes.metrics.values())
    json.dumps(notes.extra, allow_nan=False).encode()
    "".join([*notes.metrics, *notes.extra]).encode()


@given(st.binary(max_size=200))
def test_whatever_bytes_give_notes_or_bad_output(text: bytes) -> None:
    with contextlib.suppress(BadOutput):
        read_notes(text, what="x")


def test_numbers_that_are_not_finite_are_kept_as_text_at_any_depth() -> None:
    notes = read_notes(b'{"a": NaN, "b": [Infinity, {"c": -1e999}], "d": 1' + b"0" * 400 + b"}", what="x")
    assert notes.metrics == {}
    assert notes.extra["a"] == "nan (not a finite number)"
    assert notes.extra["b"] == ["inf (not a finite number)", {"c": "-inf (not a finite number)"}]
    assert notes.extra["d"].endswith("(beyond float64)")


def test_half_characters_become_question_marks() -> None:
    notes = read_notes(rb'{"a\ud800": 1, "b": "\udfff"}', what="x")
    assert (notes.metrics, notes.extra) == ({"a?": 1.0}, {"b": "?"})


@pytest.mark.parametrize("value", ["-1", "0", "NaN", "Infinity", "true", "null", '"7"', "[7]", "2e18", "1" + "0" * 400])
def test_a_weight_that_is_none(value: str) -> None:
    wanted = r"num_examples in x should be a finite number greater than 0, at most 1e\+18, but is"
    with pytest.raises(BadOutput, match=wanted):
        read_notes(f'{{"num_examples": {value}}}'.encode(), what="x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "should be JSON"),
        (b"\xff", "should be JSON"),
        (b"{" * 5, "should be JSON"),
        (b"[" * 500_000, "nested too deeply|should be JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "should be JSON"),
        (b"3", "JSON object but is a number"),
        (b"null", "JSON object but is null"),
        (b" " * (1 << 20) + b"{}", "at most 1,048,576 bytes"),
    ],
)
def test_text_that_is_no_object(text: bytes, says: str) -> None:
    with pytest.raises(BadOutput, match=says):
        read_notes(text, what="x")


@pytest.mark.parametrize("text", ["", "[]", "3", "{"])
def test_settings_are_an_object(text: str) -> None:
    check_settings('{"lr": 1}')
    with pytest.raises(InvalidInput, match="client settings should be a JSON object"):
        check_settings(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (json.dumps({f"m{n}": n for n in range(513)}), "has 513 numbers; at most 512 are reported"),
        (json.dumps({"m" * 201: 1}), "201 characters long; 200 are allowed"),
        (json.dumps({"notes": "x" * 300_000}), "may have at most 262,144 bytes of JSON"),
        ('{"deep": ' + "[" * 100 + "]" * 100 + "}", "nested deeper than 64 levels"),
    ],
)
def test_what_no_report_can_carry_is_refused_at_its_source(text: str, says: str) -> None:
    with pytest.raises(BadOutput, match=says):
        read_notes(text.encode(), what="x")
