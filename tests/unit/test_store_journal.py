"""The event log: one chain, in which every change afterwards is found; and its followers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, update

from runnel.common.errors import CorruptData
from runnel.reducer.store.journal import GENESIS, Journal, event_hash
from runnel.reducer.store.tables import EventRow
from tests.doubles.reducer_state import START, database_in
from tests.eventually import eventually

pytestmark = pytest.mark.unit


@pytest.fixture
async def journal(tmp_path: Path, each_database: None) -> AsyncIterator[Journal]:
    async with database_in(tmp_path) as database:
        yield Journal(database)


async def record(journal: Journal, count: int, session_id: str | None = None, organisation: str = "default") -> None:
    async with journal.transaction() as tx:
        for number in range(count):
            await tx.record("counted", organisation, session_id, number=number, text="Ωé \x00", part=0.1 + 0.2)


async def test_each_entry_is_chained_to_the_one_before(journal: Journal) -> None:
    assert await journal.verify() == 0
    await record(journal, 2)
    await record(journal, 1, "ses-1")
    assert await journal.verify() == 3
    first, second, third = await journal.events(None, 0, 10)
    assert (first.seq, first.previous_hash) == (1, GENESIS)
    assert (second.seq, second.previous_hash) == (2, first.hash)
    assert (third.seq, third.previous_hash, third.session) == (3, second.hash, "ses-1")
    assert third.hash == event_hash(second.hash, 3, third.at, third.kind, "default", third.session, third.data)


@pytest.mark.usefixtures("each_database")
async def test_events_keep_their_chain_whatever_is_in_them(tmp_path: Path) -> None:
    strange = {"nul": "a\0b", "surrogate": "\ud800", "words": "wörter ☃", "deep": [{"x": 1e-300}], "large": 2**60}
    async with database_in(tmp_path) as database:
        journal = Journal(database)
        for number in range(3):
            async with journal.transaction() as tx:
                await tx.record("strange", "default", None, number=number, **strange)
        assert await journal.verify() == 3
        assert (await journal.events(None, 0, 10))[0].data == {"number": 0, **strange}
    async with database_in(tmp_path) as database:  # the chain goes on after a restart
        journal = Journal(database)
        async with journal.transaction() as tx:
            await tx.record("strange", "default")
        assert await journal.verify() == 4


async def test_the_chain_is_verified_over_many_pages(journal: Journal) -> None:
    await record(journal, 2300)
    assert await journal.verify() == 2300


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("data", {"number": 8}),
        ("kind", "forged"),
        ("at", START),
        ("session_id", "ses-9"),
        ("organisation_id", "north"),
        ("hash", "0" * 64),
        ("previous_hash", "0" * 64),
        ("seq", 99),
    ],
)
async def test_a_changed_entry_is_found(journal: Journal, column: str, value: Any) -> None:
    await record(journal, 5)
    async with journal.database.write() as tx:
        await tx.execute(update(EventRow).where(EventRow.seq == 3).values({column: value}))
    with pytest.raises(CorruptData, match="broken at entry 3") as caught:
        await journal.verify()
    assert caught.value.fields == {"seq": 3}


@pytest.mark.parametrize("seq", [1, 3])
async def test_a_removed_entry_is_found(journal: Journal, seq: int) -> None:
    await record(journal, 5)
    async with journal.database.write() as tx:
        await tx.execute(delete(EventRow).where(EventRow.seq == seq))
    with pytest.raises(CorruptData, match=f"entry {seq}"):
        await journal.verify()


async def test_an_entry_that_was_put_in_is_found(journal: Journal) -> None:
    await record(journal, 3)
    (_, _, last) = await journal.events(None, 0, 10)
    async with journal.database.write() as tx:
        # Its own hash is right; the one before it is not the last.
        digest = event_hash(GENESIS, 4, START, "forged", "x", None, {})
        tx.add(
            EventRow(seq=4, organisation_id="x", at=START, kind="forged", data={}, previous_hash=GENESIS, hash=digest)
        )
    with pytest.raises(CorruptData, match="entry 4"):
        await journal.verify()
    assert last.hash != GENESIS


async def test_what_is_rolled_back_leaves_no_gap(journal: Journal) -> None:
    await record(journal, 1)

    async def fail() -> None:
        async with journal.transaction() as tx:
            await tx.record("lost", "default")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        await fail()
    await record(journal, 1)
    assert [e.kind for e in await journal.events(None, 0, 10)] == ["counted", "counted"]
    assert await journal.verify() == 2


async def test_transactions_at_once_make_one_chain(journal: Journal) -> None:
    await asyncio.gather(*(record(journal, 3) for _ in range(20)))
    assert await journal.verify() == 60


async def test_events_are_of_a_session_and_of_an_organisation(journal: Journal) -> None:
    await record(journal, 2, "ses-1", "north")
    await record(journal, 1, "ses-2", "south")
    assert [e.seq for e in await journal.events("ses-1", 0, 10)] == [1, 2]
    assert [e.seq for e in await journal.events(None, 0, 10, "south")] == [3]
    assert [e.seq for e in await journal.events(None, 1, 1)] == [2]
    assert await journal.events("ses-1", 0, 10, "south") == []


# ---- followers


class Follower:
    """Reads what is followed into a list until it is closed."""

    def __init__(
        self, journal: Journal, session_id: str | None = None, after: int = 0, organisation: str | None = None
    ):
        self.got: list[dict[str, Any]] = []
        self._events = journal.follow(session_id, after, organisation)
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self._events:
            self.got.append(event)

    @property
    def seqs(self) -> list[int]:
        return [event["seq"] for event in self.got if "seq" in event]

    async def __aenter__(self) -> Follower:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait((self._task,))


async def test_a_follower_gets_every_event_once_and_in_order(journal: Journal) -> None:
    await record(journal, 700)
    async with Follower(journal, after=5) as follower:
        await eventually(lambda: len(follower.seqs) == 695, state=lambda: len(follower.got))
        await record(journal, 10)
        await eventually(lambda: len(follower.seqs) == 705, state=lambda: len(follower.got))
        await asyncio.gather(*(record(journal, 1) for _ in range(10)))
        await eventually(lambda: len(follower.seqs) == 715, state=lambda: len(follower.got))
        assert follower.seqs == list(range(6, 721))
        assert set(follower.got[0]) == {"seq", "at", "kind", "session", "data"}


async def test_a_follower_of_a_session_gets_its_own(journal: Journal) -> None:
    async with Follower(journal, session_id="ses-1", organisation="default") as follower:
        await record(journal, 1, "ses-2")
        await record(journal, 1, "ses-1", "other")
        await record(journal, 1, "ses-1")
        await eventually(lambda: follower.seqs == [3])


async def test_passing_things_are_shown_in_their_newest_form_and_not_kept(journal: Journal) -> None:
    async with Follower(journal) as follower, Follower(journal, session_id="ses-2") as of_another:
        await record(journal, 1)
        await eventually(lambda: follower.seqs == [1])
        for number in range(50):
            journal.show("ses-1", "default", {"counted": number})
        await eventually(lambda: follower.got[-1].get("data") == {"counted": 49})
        assert follower.got[-1] == {"kind": "progress", "session": "ses-1", "data": {"counted": 49}}
        assert len(follower.got) < 10
        journal.show("ses-2", "default", {"counted": 1})
        await eventually(
            lambda: of_another.got[-1:] == [{"kind": "progress", "session": "ses-2", "data": {"counted": 1}}]
        )
    journal.forget("ses-1")
    async with Follower(journal) as late:
        await eventually(lambda: len(late.got) == 2, state=lambda: late.got)
        assert late.got[-1]["session"] == "ses-2"


async def test_a_flood_of_passing_events_does_not_wake_followers_with_each(journal: Journal) -> None:
    async with Follower(journal) as follower:
        await record(journal, 1)
        await eventually(lambda: follower.seqs == [1])
        clock = asyncio.get_running_loop().time
        began = clock()
        number = 0
        while clock() < began + 0.7:
            number += 1
            journal.show("ses-1", "default", {"counted": number})
            await asyncio.sleep(0)
        await eventually(lambda: follower.got[-1].get("data") == {"counted": number})
        assert len(follower.got) <= 3 + (clock() - began) / 0.1
