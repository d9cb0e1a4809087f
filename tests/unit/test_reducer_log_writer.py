"""Lines on their way into the state: in batches, with a limit that no package gets around."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from runnel.common.errors import StorageFull
from runnel.common.protocol import AssignmentKey, LogLine, LogLines, Work
from runnel.reducer.engine.log_writer import LogWriter
from runnel.reducer.store import ledger
from runnel.reducer.store.database import Database
from runnel.reducer.store.tables import LogRow
from tests.doubles.reducer_state import add_session, database_in
from tests.eventually import eventually

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("each_database")]

KEY = AssignmentKey(session_id="ses-aaaaaaaaaa", round=1, work=Work.TRAIN)
OTHER = AssignmentKey(session_id="ses-aaaaaaaaaa", round=2, work=Work.TRAIN)


def lines(count: int, client: str = "a", key: AssignmentKey = KEY, first: int = 0) -> LogLines:
    made = tuple(LogLine(at_ms=n, stream="stdout", text=str(n)) for n in range(first, first + count))
    return LogLines(key=key, client=client, lines=made)


class FullDatabase:
    """Has no room for the first ``times`` writes."""

    def __init__(self, database: Database, times: int) -> None:
        self._database = database
        self.times = times

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        if self.times:
            self.times -= 1
            raise StorageFull("No room.")
        async with self._database.write() as tx:
            yield tx


@asynccontextmanager
async def asked(folder: Path) -> AsyncIterator[Database]:
    """Open a database in which a, b and c0 to c29 were asked to train in two rounds."""
    async with database_in(folder) as database:
        async with database.write() as tx:
            await add_session(tx)
            for key in (KEY, OTHER):
                await ledger.open_slots(tx, key, ["a", "b", *(f"c{n}" for n in range(30))])
        yield database


async def stored(database: Database) -> int:
    async with database.read() as tx:
        return await tx.scalar(select(func.count()).select_from(LogRow)) or 0


async def test_lines_are_written_soon_and_what_is_left_at_the_end(tmp_path: Path) -> None:
    async with asked(tmp_path) as database:
        writer = LogWriter(database)
        task = asyncio.create_task(writer.run())
        writer.add(lines(2))
        writer.add(lines(3, "b"))

        async def written() -> bool:
            return await stored(database) == 5

        await eventually(written)
        writer.add(lines(1, first=2))
        writer.close()
        await task
        assert await stored(database) == 6
        async with database.read() as tx:
            query = select(LogRow.text).where(LogRow.client == "a").order_by(LogRow.id)
            assert list(await tx.scalars(query)) == ["0", "1", "2"]


async def test_closing_without_lines_ends_at_once(tmp_path: Path) -> None:
    async with asked(tmp_path) as database:
        writer = LogWriter(database)
        task = asyncio.create_task(writer.run())
        writer.close()
        async with asyncio.timeout(30):
            await task


async def test_one_piece_of_work_of_one_client_has_a_limit(tmp_path: Path) -> None:
    async with asked(tmp_path) as database:
        writer = LogWriter(database)
        for first in range(0, 9000, 1000):
            writer.add(lines(1000, first=first))
        writer.add(lines(10, "b"))
        writer.add(lines(10, key=OTHER))
        writer.close()
        await writer.run()
        assert await stored(database) == 5020


async def test_what_waits_has_a_limit(tmp_path: Path) -> None:
    async with asked(tmp_path) as database:
        writer = LogWriter(database)
        for number in range(30):
            writer.add(lines(4000, f"c{number}"))
        writer.close()
        await writer.run()
        assert await stored(database) == 100_000


async def test_long_lines_have_a_limit_too(tmp_path: Path) -> None:
    long = LogLine(at_ms=0, stream="stdout", text="x" * 100_000)
    async with asked(tmp_path) as database:
        writer = LogWriter(database)
        writer.add(LogLines(key=KEY, client="a", lines=(long,) * 100))
        writer.close()
        await writer.run()
        assert await stored(database) == (2 << 20) // 100_000


async def test_lines_of_work_that_nobody_asked_for_are_dropped(tmp_path: Path) -> None:
    async with asked(tmp_path) as database:
        writer = LogWriter(database)
        writer.add(lines(2, "stranger"))
        writer.add(lines(2, key=AssignmentKey(session_id="x" * 100, round=1, work=Work.TRAIN)))
        writer.add(lines(3))
        writer.close()
        await writer.run()
        assert await stored(database) == 3


async def test_lines_that_find_no_room_are_lost_and_later_ones_are_not(tmp_path: Path) -> None:
    async with asked(tmp_path) as database:
        full = FullDatabase(database, times=1)
        writer = LogWriter(full)  # type: ignore[arg-type]
        task = asyncio.create_task(writer.run())
        writer.add(lines(2))
        await eventually(lambda: full.times == 0)
        writer.add(lines(3))
        writer.close()
        await task
        assert await stored(database) == 3
