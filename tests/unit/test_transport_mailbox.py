"""Mailboxes: in order, bounded by number and memory, and series that are made in their turn."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from runnel.common.errors import CapacityExceeded, IllegalState, NotFound
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport import Mailbox
from runnel.transport.mailbox import held_bytes

pytestmark = pytest.mark.unit


async def test_what_is_sent_comes_in_order() -> None:
    mailbox: Mailbox[int] = Mailbox()
    for number in range(5):
        mailbox.send(number)
    mailbox.close()
    assert [number async for number in mailbox] == [0, 1, 2, 3, 4]


async def test_a_full_mailbox_refuses() -> None:
    mailbox: Mailbox[bytes] = Mailbox(items=2, size_bytes=10, size_of=len)
    mailbox.send(b"12345")
    with pytest.raises(CapacityExceeded, match="at most 2 messages and 10 bytes"):
        mailbox.send(b"123456")
    mailbox.send(b"12345")
    with pytest.raises(CapacityExceeded):
        mailbox.send(b"")
    assert await mailbox.get() == b"12345"
    mailbox.send(b"1")


async def test_one_large_item_passes_an_empty_mailbox() -> None:
    mailbox: Mailbox[bytes] = Mailbox(size_bytes=10, size_of=len)
    mailbox.send(bytes(11))
    assert len(await mailbox.get()) == 11


async def test_a_patient_sender_waits_for_room() -> None:
    mailbox: Mailbox[int] = Mailbox(items=1)
    await mailbox.put(1)
    sender = asyncio.create_task(mailbox.put(2))
    await asyncio.sleep(0)
    assert not sender.done()
    assert await mailbox.get() == 1
    await sender
    assert await mailbox.get() == 2


async def test_many_patient_senders_all_get_through() -> None:
    mailbox: Mailbox[int] = Mailbox(items=1)
    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(mailbox.put(number))
        assert sorted([await mailbox.get() for _ in range(20)]) == list(range(20))


async def test_closing_wakes_everybody() -> None:
    full: Mailbox[int] = Mailbox(items=1)
    full.send(1)
    sender = asyncio.create_task(full.put(2))
    empty: Mailbox[int] = Mailbox()
    receiver = asyncio.create_task(empty.get())
    await asyncio.sleep(0)
    full.close()
    empty.close(NotFound("the end"))
    with pytest.raises(IllegalState):
        await sender
    with pytest.raises(NotFound):
        await receiver
    assert await full.get() == 1
    with pytest.raises(StopAsyncIteration):
        await full.get()


async def test_discarding_forgets_what_waits() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.send(1)
    mailbox.close(discard=True)
    assert [number async for number in mailbox] == []


async def test_a_series_comes_in_its_turn_and_is_made_only_then() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for number in (1, 2, 3):
            made.append(number)
            yield number

    mailbox: Mailbox[int] = Mailbox()
    mailbox.send(0)
    mailbox.send_each(numbers(), 3)
    mailbox.send_each((), 0)
    mailbox.send(4)
    mailbox.close()
    assert await mailbox.get() == 0
    assert made == []
    assert await mailbox.get() == 1
    assert made == [1]
    assert [number async for number in mailbox] == [2, 3, 4]


async def test_a_series_needs_room_for_what_it_is_made_of_alone() -> None:
    mailbox: Mailbox[bytes] = Mailbox(size_bytes=20 << 10, size_of=len)
    mailbox.send(b"first")
    mailbox.send_each((bytes(20 << 10) for _ in range(30)), 30)
    with pytest.raises(CapacityExceeded, match="31 messages wait already"):
        mailbox.send_each((b"more" for _ in range(30)), 30)
    for _ in range(21):
        await mailbox.get()
    mailbox.send_each((b"more" for _ in range(30)), 30)
    assert [len(await mailbox.get()) for _ in range(40)] == [20 << 10] * 10 + [4] * 30


@pytest.mark.parametrize("number", [5, 0, 30])
async def test_what_a_series_has_taken_is_free_when_it_is_over(number: int) -> None:
    mailbox: Mailbox[int] = Mailbox(size_bytes=10 << 10)
    mailbox.send_each(range(number), 20)
    mailbox.close()
    assert [each async for each in mailbox] == list(range(number))
    assert mailbox._bytes == 0


async def test_a_series_that_is_empty_is_waited_past() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.send_each((), 3)
    receiver = asyncio.create_task(mailbox.get())
    await asyncio.sleep(0)
    assert not receiver.done()
    mailbox.send(1)
    assert await receiver == 1


def small_message(number: int) -> pb.Upward:
    return pb.Upward(task_news=pb.TaskNews(run_id=f"run-{number}", client=f"site-{number}"))


async def test_thousands_of_small_messages_wait_until_their_memory_is_too_much() -> None:
    mailbox: Mailbox[pb.Upward] = Mailbox(size_of=held_bytes)
    for number in range(15_000):
        mailbox.send(small_message(number))
    for _ in range(2_000):
        try:
            mailbox.send(small_message(0))
        except CapacityExceeded as error:
            assert error.message.endswith("at most 16,777,216 bytes may.")  # noqa: PT017 - the message that is too many
            return
    pytest.fail("it takes whatever comes")


async def test_what_is_added_to_the_last_takes_room() -> None:
    mailbox: Mailbox[bytearray] = Mailbox(size_bytes=10, size_of=len)
    assert mailbox.last is None
    mailbox.send(bytearray(b"123"))
    mailbox.last_grew(6)
    with pytest.raises(CapacityExceeded):
        mailbox.send(bytearray(b"45"))
    assert mailbox.last == b"123"
    mailbox.send_each([bytearray()], 0)
    await mailbox.get()
    mailbox.send_each([bytearray()], 1)
    assert mailbox.last is None  # it can't be added to, as it is not made
    assert mailbox._bytes == 512
