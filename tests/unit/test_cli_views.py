"""What people see of sessions: tables, lines and live views, at the widths of real terminals."""

from __future__ import annotations

import doctest
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, Group

from runnel.cli import tables
from runnel.cli.session_view import SessionProgress, event_line, metric_names, rounds_parts, session_parts
from runnel.sdk.values import Event, Round, Session, read

pytestmark = pytest.mark.unit


def a_round(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "round": number,
        "status": "committed",
        "seconds": 1.25,
        "updates": 6,
        "late": 0,
        "failed": 0,
        "model": f"mod-{number}",
        "metrics": {"accuracy": 1 - 0.5**number, "loss": 0.5**number},
    } | changes


def a_session(rounds: int = 3, **changes: Any) -> Session:
    document = {
        "session": "ses-7k3m9qx2w4",
        "name": "digits",
        "status": "running",
        "phase": "training",
        "reason": None,
        "rounds": [a_round(number) for number in range(1, rounds + 1)],
        "model": "mod-7k3m9qx2w4",
        "package": "ab" * 32,
        "seed": "mod-0000000000",
        "config": {"rounds": 10, "strategy": "fedadam", "strategy_options": {"tau": 0.01}, "min_clients": 2},
        "created_at": "2026-01-02T03:04:05Z",
        "finished_at": None,
    }
    return read(Session, document | changes)


def drawn(renderable: Any, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(renderable)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.splitlines())
    return str(text)


def an_event(kind: str, **data: Any) -> Event:
    return read(Event, {"seq": 1, "kind": kind, "session": "ses-1", "at": "2026-01-02T03:04:05Z", "data": data})


def test_the_examples_of_the_tables_hold() -> None:
    results = doctest.testmod(tables)
    assert results.attempted >= 5
    assert results.failed == 0


@pytest.mark.parametrize("width", [80, 120])
def test_a_session_fits_the_terminal(width: int) -> None:
    text = drawn(session_parts(a_session(40, status="failed", reason="round 41: 1 of 2 updates")), width)
    for wanted in ("ses-7k3m9qx2w4", "failed: round 41: 1 of 2 updates", "fedadam tau=0.01", "25 rounds before", "0.5"):
        assert wanted in text
    assert "accuracy" in text
    assert "█" in text


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_view_follows_the_events(width: int) -> None:
    view = SessionProgress(a_session(0))
    view.take(an_event("session.phase", phase="training", round=1))
    stages = {f"hospital-{number}": "running" for number in range(8)} | {"site-1": "counted", "site-2": "failed"}
    view.take(an_event("progress", round=1, work="train", asked=10, counted=1, failed=1, stages=stages))
    view.take(an_event("client.failed", client="site-2", work="train", round=1, message="exit status 3"))
    text = drawn(view, width)
    for wanted in ("0/10 rounds", "round 1: training, 1 of 10 in", "running hospital-0", "and 4 more", "exit status 3"):
        assert wanted in text
    view.take(an_event("progress", round=1, stalled="the reducer tries again: No room."))
    assert "round 1: training: the reducer tries again: No room." in drawn(view, width)
    view.take(an_event("round.committed", **a_round(1, late=2)))
    view.take(an_event("session.phase", phase="selecting", round=2))
    view.take(an_event("something.new", colour="blue"))
    text = drawn(view, width)
    assert "1/10 rounds" in text
    assert "round 2: selecting" in text
    assert "hospital-0" not in text


STALLED = "round 1 waits: the reducer tries again: No room."


def test_sites_that_wait_have_a_column_where_there_are_any() -> None:
    without = drawn(session_parts(a_session(2)), 120)
    assert "awaiting" not in without
    rounds = [read(Round, a_round(1, awaiting=3)), read(Round, a_round(2))]
    assert "awaiting" in drawn(Group(*rounds_parts(rounds, a_session())), 120)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (an_event("session.created"), "session ses-1 created"),
        (an_event("session.phase", phase="training", round=2), "round 2: training"),
        (
            an_event("round.committed", **a_round(2)),
            "round 2 committed: 6 updates, 0 late, 0 failed, 1.25 s, accuracy 0.75, loss 0.25",
        ),
        (
            an_event("client.failed", client="c", work="train", round=2, message="no"),
            "c failed to train in round 2: no",
        ),
        (
            an_event("round.committed", **a_round(2, awaiting=1, metrics={})),
            "round 2 committed: 6 updates, 0 late, 0 failed, 1 awaiting their site, 1.25 s",
        ),
        (
            an_event("client.awaiting", client="c", work="train", round=2, message="not approved"),
            "c waits for its site in round 2: not approved",
        ),
        (an_event("session.ended", status="failed", reason="why"), "session ses-1 failed: why"),
        (an_event("session.ended", status="finished", reason=None), "session ses-1 finished"),
        (an_event("session.phase", phase="committed", round=2), None),
        (an_event("progress", round=1), None),
        (an_event("progress", round=1, stalled="the reducer tries again: No room."), STALLED),
    ],
)
def test_an_event_is_one_line(event: Event, line: str | None) -> None:
    assert event_line(event) == line


def test_the_metric_of_the_stop_rule_comes_first() -> None:
    rounds = [read(Round, a_round(1, metrics={"f1": 0.1, "accuracy": 0.2, "auc": 0.3}))]
    assert metric_names(rounds, a_session()) == ["accuracy", "auc", "f1"]
    assert metric_names(rounds, a_session(config={"stop_when": "f1>=0.9"})) == ["f1", "accuracy", "auc"]


def test_rounds_without_metrics_or_with_one_that_is_no_number_are_drawn() -> None:
    rounds = [read(Round, a_round(1, metrics={})), read(Round, a_round(2, metrics={"accuracy": None}))]
    for part in rounds_parts(rounds, a_session()):
        drawn(part, 80)


@given(st.lists(st.floats(-1e6, 1e6), max_size=100), st.integers(1, 60))
def test_a_sparkline_has_one_bar_for_each_of_the_last_values(values: list[float], width: int) -> None:
    line = tables.sparkline(values, width=width)
    assert len(line) == min(len(values), width)
    if values and max(values[-width:]) > min(values[-width:]):
        assert {"▁", "█"} <= set(line)
