"""Lines on their way up: in order, in batches, and never more than the limit while nobody takes them."""

from __future__ import annotations

import asyncio
import time

import pytest

from runnel.client.log_stream import LogStream
from runnel.common.protocol import AssignmentKey, LogLines, Work
from tests.eventually import eventually

pytestmark = pytest.mark.unit

KEY = AssignmentKey(session_id="ses-1", round=1, work=Work.TRAIN)
OTHER = AssignmentKey(session_id="ses-1", round=1, work=Work.VALIDATE)


class Above:
    """Takes batches while it is ``there``, or only ``room`` of them."""

    def __init__(self) -> None:
        self.there = True
        self.room = 1_000_000
        self.batches: list[LogLines] = []

    def send(self, lines: LogLines) -> bool:
        if not self.there or self.room == 0:
            return False
        self.room -= 1
        self.batches.append(lines)
        return True

    @property
    def texts(self) -> list[str]:
        return [line.text for batch in self.batches for line in batch.lines]


def test_lines_go_up_in_order_each_batch_of_one_piece_of_work() -> None:
    above = Above()
    stream = LogStream("a", above.send)
    before = time.time_ns() // 1_000_000
    for text, key in (("1", KEY), ("2", KEY), ("3", OTHER), ("4", KEY)):
        stream.add(key, "stdout", text)
    stream.flush()
    assert [(b.key, b.client, [line.text for line in b.lines]) for b in above.batches] == [
        (KEY, "a", ["1", "2"]),
        (OTHER, "a", ["3"]),
        (KEY, "a", ["4"]),
    ]
    assert {line.stream for b in above.batches for line in b.lines} == {"stdout"}
    assert all(before <= line.at_ms <= time.time_ns() // 1_000_000 for b in above.batches for line in b.lines)
    stream.flush()
    assert len(above.batches) == 3


def test_a_batch_is_not_too_large() -> None:
    above = Above()
    stream = LogStream("a", above.send)
    for number in range(600):
        stream.add(KEY, "stdout", str(number))
    stream.flush()
    assert [len(b.lines) for b in above.batches] == [256, 256, 88]
    assert above.texts == [str(n) for n in range(600)]


def test_while_detached_the_newest_lines_wait() -> None:
    above = Above()
    above.there = False
    stream = LogStream("a", above.send)
    for number in range(10_500):
        stream.add(KEY, "stderr", str(number))
    stream.flush()
    assert above.batches == []
    above.there = True
    stream.flush()
    assert above.texts == [str(n) for n in range(500, 10_500)]


def test_what_is_not_taken_is_sent_again_and_nothing_twice() -> None:
    above = Above()
    above.room = 1
    stream = LogStream("a", above.send)
    for number in range(300):
        stream.add(KEY, "stdout", str(number))
    stream.flush()
    assert len(above.texts) == 256
    above.room = 5
    stream.flush()
    assert above.texts == [str(n) for n in range(300)]


async def test_lines_are_sent_soon_and_together() -> None:
    above = Above()
    stream = LogStream("a", above.send)
    task = asyncio.create_task(stream.run())
    stream.add(KEY, "stdout", "1")
    stream.add(KEY, "stdout", "2")
    await eventually(lambda: above.texts == ["1", "2"])
    assert len(above.batches) == 1
    stream.add(KEY, "stdout", "3")
    await eventually(lambda: above.texts == ["1", "2", "3"])
    task.cancel()
    await asyncio.wait((task,))
