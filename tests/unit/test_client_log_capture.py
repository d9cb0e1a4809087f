"""Lines from bytes: nothing is lost within the budget, and nothing grows beyond it."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.client.runtimes import LogCapture
from runnel.client.runtimes.log_capture import CUT_MARK, LEAST_LINE_COST, LINE_BYTES, TAIL_BYTES, readable
from tests.doubles.client_packages import Listener

pytestmark = pytest.mark.unit

TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=30)


def capture(*pieces: bytes, budget_bytes: int = 1 << 20) -> tuple[Listener, LogCapture]:
    say = Listener()
    made = LogCapture(say, budget_bytes=budget_bytes)
    for piece in pieces:
        made.feed("stdout", piece)
    made.close()
    return say, made


@given(lines=st.lists(TEXTS, max_size=20), cuts=st.lists(st.integers(0, 600), max_size=8), ended=st.booleans())
def test_lines_are_the_same_however_the_bytes_are_cut(lines: list[str], cuts: list[int], ended: bool) -> None:
    data = "\n".join(lines).encode() + (b"\n" if ended else b"")
    at = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    say, _ = capture(*(data[start:end] for start, end in pairwise(at)))
    assert say.said("stdout") == data.decode().removesuffix("\n").split("\n") if data else say.lines == []


@given(
    pieces=st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=4000)), max_size=30),
    budget=st.integers(0, 20_000),
)
def test_no_bytes_break_the_budget_or_the_tail(pieces: list[tuple[str, bytes]], budget: int) -> None:
    say = Listener()
    made = LogCapture(say, budget_bytes=budget)
    for stream, data in pieces:
        made.feed(stream, data)
    made.close()
    kept = [text for stream, text in say.lines if stream != "runnel"]
    assert len(kept) * LEAST_LINE_COST <= max(budget, 0)
    assert len(made.tail.encode()) <= TAIL_BYTES
    for text in kept:
        assert text.isprintable() or "\t" in text or not text.isascii()
        assert "\x1b" not in text
        assert "\n" not in text


def test_the_two_streams_have_their_own_unfinished_lines() -> None:
    say = Listener()
    made = LogCapture(say)
    made.feed("stdout", b"out")
    made.feed("stderr", b"err\n")
    made.feed("stdout", b"put\n")
    assert say.lines == [("stderr", "err"), ("stdout", "output")]
    made.close()
    assert made.tail == "err\noutput"


def test_a_long_line_is_cut_and_the_next_is_whole() -> None:
    say, _ = capture(b"x" * (3 * LINE_BYTES), b"x" * LINE_BYTES + b"\nnext\n")
    assert say.said("stdout") == ["x" * LINE_BYTES + CUT_MARK, "next"]


def test_a_progress_bar_becomes_its_last_state_however_long() -> None:
    say, _ = capture(*(f"\r{percent:3d} %".encode() for percent in range(101)), b"\n")
    assert say.said("stdout") == ["100 %"]
    say, _ = capture(*(b"\r" + b"=" * 100 for _ in range(1000)), b"\r\n")
    assert say.said("stdout") == ["=" * 100]


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"\x1b[1;31mred\x1b[0m", "red"),
        (b"\x1b]0;title\x07text", "text"),
        (b"a\tb", "a\tb"),
        (b"nul\x00bell\x07", "nul\N{REPLACEMENT CHARACTER}bell\N{REPLACEMENT CHARACTER}"),
        ("\x9b2J".encode(), "\N{REPLACEMENT CHARACTER}2J"),
        (b"\xff\xfe", "\N{REPLACEMENT CHARACTER}" * 2),
        ("grüße ✓".encode(), "grüße ✓"),
        (b"dos\r", "dos"),
    ],
)
def test_a_line_is_made_readable(raw: bytes, shown: str) -> None:
    assert readable(raw) == shown


def test_what_is_over_the_budget_is_counted_and_the_tail_goes_on() -> None:
    lines = [f"line {n:04d} of a log that is far too long" for n in range(1000)]
    data = "".join(f"{line}\n" for line in lines).encode()
    say, made = capture(*(data[at : at + 5000] for at in range(0, len(data), 5000)), budget_bytes=10_000)
    kept = say.said("stdout")
    assert kept == lines[: len(kept)]
    assert 9_900 < sum(len(line) + 1 for line in kept) <= 10_000
    size = sum(len(line) + 1 for line in lines[len(kept) :])
    [note] = say.said("runnel")
    assert note.startswith(f"{1000 - len(kept):,} lines ({size:,} bytes) more")
    assert "10,000 bytes a run" in note
    assert made.tail.splitlines()[-1] == lines[-1]
    assert say.lines[-1][0] == "runnel"


def test_once_over_the_budget_a_short_line_does_not_slip_through() -> None:
    say, made = capture(b"a" * 90 + b"\n", b"b" * 90 + b"\n", b"c\n", budget_bytes=150)
    assert say.said("stdout") == ["a" * 90]
    assert say.said("runnel")[0].startswith("2 lines (93 bytes) more")
    assert made.tail.endswith("b\nc")


def test_a_flood_does_not_keep_the_loop_busy() -> None:
    made = LogCapture(Listener())
    flood = b"y\n" * 32_768
    started = time.process_time()
    for _ in range(1000):  # 64 MB
        made.feed("stdout", flood)
    assert time.process_time() - started < 5
    made.close()
    assert made.tail.endswith("y\ny")
