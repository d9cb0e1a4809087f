"""The append-only event log, its hash chain, and the live feed that follows it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import AsyncIterable, AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.ext.asyncio import AsyncSession

from runnel.common.errors import CorruptData
from runnel.reducer.domain.values import EventView
from runnel.reducer.store.access import batches
from runnel.reducer.store.database import Database
from runnel.reducer.store.round_statements import ADD_EVENTS
from runnel.reducer.store.tables import EventRow, TaskRow

GENESIS = "0" * 64

_SHOW_EACH_S = 0.1

# They tell of people: their names, and by path what they asked of which task.
_OF_PEOPLE = ("api.call", "token.created", "token.revoked")


def event_hash(
    previous: str,
    seq: int,
    at: datetime,
    kind: str,
    organisation: str,
    session: str | None,
    data: Mapping[str, Any],
) -> str:
    """Return SHA-256 (hex) over the previous hash and the canonical JSON of the entry."""
    entry = [seq, at.astimezone(UTC).isoformat(), kind, organisation, session, data]
    body = json.dumps(entry, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{previous}\n{body}".encode()).hexdigest()


@dataclass(slots=True)
class Transaction:
    """A write transaction and the events that become public when it is committed.

    ``head``: number and hash of the newest event; None: not looked up yet. ``recorded``: the events that were appended
    and are not written yet.
    """

    session: AsyncSession
    head: tuple[int, str] | None = None
    recorded: list[dict[str, Any]] = field(default_factory=list)

    async def record(self, kind: str, organisation: str, session_id: str | None = None, **data: Any) -> None:
        """Append an event to the log."""
        if self.head is None:
            last = await self.session.scalar(select(EventRow).order_by(EventRow.seq.desc()).limit(1))
            self.head = (0, GENESIS) if last is None else (last.seq, last.hash)
        seq, previous = self.head[0] + 1, self.head[1]
        at = datetime.now(UTC)
        digest = event_hash(previous, seq, at, kind, organisation, session_id, data)
        self.recorded.append(
            {
                "seq": seq,
                "organisation_id": organisation,
                "session_id": session_id,
                "at": at,
                "kind": kind,
                "data": data,
                "previous_hash": previous,
                "hash": digest,
            }
        )
        self.head = (seq, digest)


class Journal:
    """Transactions with events, and followers of them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._changed = asyncio.Event()
        self._passing: dict[str, tuple[int, str, Mapping[str, Any]]] = {}
        self._passing_count = 0
        self._shown_at = -math.inf
        self._showing: asyncio.TimerHandle | None = None
        self._head: tuple[int, str] | None = None

    @asynccontextmanager
    async def transaction(self, *, short: bool = False) -> AsyncIterator[Transaction]:
        """Open a write transaction; its events reach the followers after the commit. ``short``: as for a `Database`."""
        try:
            async with self.database.write(short=short) as session:
                # One process at a time writes to a state, and here the writers take turns: what was newest still is.
                transaction = Transaction(session, self._head)
                yield transaction
                if transaction.recorded:
                    await session.execute(ADD_EVENTS, transaction.recorded)
        except BaseException:
            self._head = None  # a commit that was cut short may have happened
            raise
        if transaction.recorded:
            self._head = transaction.head
            self._wake()

    def show(self, session_id: str, organisation: str, passing: Mapping[str, Any]) -> None:
        """Show followers something that is not worth keeping; only the newest for each session is.

        It may come with each message of each of a thousand clients: followers see it ten times a second at most.
        """
        self._passing_count += 1
        self._passing[session_id] = (self._passing_count, organisation, passing)
        if self._showing is None:
            loop = asyncio.get_running_loop()
            self._showing = loop.call_at(max(loop.time(), self._shown_at + _SHOW_EACH_S), self._show_now)

    def _show_now(self) -> None:
        self._showing = None
        self._shown_at = asyncio.get_running_loop().time()
        self._wake()

    def forget(self, session_id: str) -> None:
        """Drop what was shown for a session that ended."""
        self._passing.pop(session_id, None)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def events(
        self,
        session_id: str | None,
        after: int,
        limit: int,
        organisation: str | None = None,
        *,
        user: str | None = None,
    ) -> list[EventView]:
        """Return stored events after ``after``, oldest first.

        ``user``: for whom those of tasks are their own only, and those of tokens and calls are not there.
        """
        query = select(EventRow).where(EventRow.seq > after).order_by(EventRow.seq).limit(limit)
        if session_id is not None:
            query = query.where(EventRow.session_id == session_id)
        if organisation is not None:
            query = query.where(EventRow.organisation_id == organisation)
        if user is not None:
            anothers = exists().where(TaskRow.id == EventRow.session_id, TaskRow.asked_by != user)
            query = query.where(~anothers, EventRow.kind.not_in(_OF_PEOPLE))
        async with self.database.read() as session:
            return [
                EventView(
                    seq=row.seq,
                    at=row.at,
                    kind=row.kind,
                    session=row.session_id,
                    data=row.data,
                    previous_hash=row.previous_hash,
                    hash=row.hash,
                )
                for row in await session.scalars(query)
            ]

    async def follow(
        self, session_id: str | None, after: int, organisation: str | None, *, user: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield stored events after ``after`` and passing ones as they come, without an end; ``user``: as `events`.

        A slow follower misses passing events, never stored ones, and holds nothing in memory meanwhile.
        """
        shown = 0
        while True:
            changed = self._changed
            head = 0 if self._head is None else self._head[0]
            batch = await self.events(session_id, after, 500, organisation, user=user)
            for item in batch:
                after = item.seq
                yield {
                    "seq": item.seq,
                    "at": item.at.isoformat(),
                    "kind": item.kind,
                    "session": item.session,
                    "data": item.data,
                }
            if len(batch) == 500:
                continue
            after = max(after, head)  # what is not this follower's is not looked through again
            count_before = shown
            shown = self._passing_count
            passing = {
                name: data
                for name, (count, owner, data) in self._passing.items()
                if count > count_before and session_id in {None, name} and organisation in {None, owner}
            }
            hidden = set() if user is None else await self._anothers(passing, user)
            for name, data in passing.items():
                if name not in hidden:
                    yield {"kind": "progress", "session": name, "data": data}
            await changed.wait()

    async def _anothers(self, names: Collection[str], user: str) -> set[str]:
        """Return which of ``names`` are tasks that another than ``user`` asked for."""
        found: set[str] = set()
        async with self.database.read() as session:
            for some in batches(names):
                query = select(TaskRow.id).where(TaskRow.id.in_(some), TaskRow.asked_by != user)
                found |= set(await session.scalars(query))
        return found

    async def verify(self) -> int:
        """Recompute the chain; return the number of events.

        What is missing at the end leaves a whole chain: only who remembers the number or the last hash sees that.

        Raises:
            CorruptData: an entry was changed, removed or put in; it is named by its sequence number.
        """
        query = select(EventRow).order_by(EventRow.seq).execution_options(yield_per=1000)
        async with self.database.read() as session:
            entries = await session.stream_scalars(query)
            try:
                return await _require_chain(entries)
            finally:
                await entries.close()  # PostgreSQL has a cursor for it, which is not to be left open


async def _require_chain(entries: AsyncIterable[EventRow]) -> int:
    """Return how many entries there are, see :meth:`Journal.verify`."""
    previous, count = GENESIS, 0
    async for row in entries:
        digest = event_hash(previous, row.seq, row.at, row.kind, row.organisation_id, row.session_id, row.data)
        if row.seq != count + 1 or row.previous_hash != previous or row.hash != digest:
            raise CorruptData(
                f"The event log is broken at entry {count + 1}: it was changed, removed or put in afterwards.",
                seq=count + 1,
            )
        previous, count = digest, row.seq
    return count
