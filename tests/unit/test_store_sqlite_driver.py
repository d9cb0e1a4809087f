"""SQLite's driver: one trip to the thread for a statement, more only for more rows than come at once."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from runnel.reducer.store import sqlite_driver

pytestmark = pytest.mark.unit

ROWS = 1_200


class Counting(sqlite_driver.Connection):
    """Counts the trips to its thread."""

    trips = 0

    async def _execute(self, *call: Any, **options: Any) -> Any:
        self.trips += 1
        return await super()._execute(*call, **options)


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[Counting]:
    opened = Counting(lambda: sqlite3.connect(tmp_path / "a.db", check_same_thread=False), iter_chunk_size=64)
    async with opened:
        cursor = opened.cursor()
        await cursor.execute("CREATE TABLE number (n INTEGER PRIMARY KEY)")
        await cursor.executemany("INSERT INTO number VALUES (?)", [(n,) for n in range(ROWS)])
        await opened.commit()
        opened.trips = 0
        yield opened


async def test_a_statement_with_its_rows_and_the_end_of_its_cursor_is_one_trip(connection: Counting) -> None:
    cursor = connection.cursor()
    await cursor.execute("SELECT n FROM number WHERE n < ? ORDER BY n", (3,))
    assert [name for name, *_ in cursor.description] == ["n"]
    assert await cursor.fetchall() == [(0,), (1,), (2,)]
    assert await cursor.fetchall() == []
    await cursor.close()
    assert connection.trips == 1


async def test_what_a_statement_did_is_told_after_its_trip(connection: Counting) -> None:
    cursor = connection.cursor()
    await cursor.execute("INSERT INTO number VALUES (5000)")
    assert (cursor.lastrowid, cursor.rowcount) == (5000, 1)
    assert not cursor.description
    await cursor.execute("DELETE FROM number WHERE n < 10")
    assert cursor.rowcount == 10
    assert await cursor.fetchone() is None
    assert connection.trips == 2


@pytest.mark.parametrize("size", [1, 7, 500, 501, 5_000])
async def test_rows_that_do_not_come_at_once_all_come(connection: Counting, size: int) -> None:
    cursor = connection.cursor()
    await cursor.execute("SELECT n FROM number ORDER BY n")
    found: list[int] = []
    while batch := await cursor.fetchmany(size):
        assert len(batch) == min(size, ROWS - len(found))
        found += [n for (n,) in batch]
    assert found == list(range(ROWS))
    assert connection.trips == 3  # 500, 500 and the last 200


async def test_rows_are_fetched_one_by_one_and_the_rest_at_once(connection: Counting) -> None:
    cursor = connection.cursor()
    await cursor.execute("SELECT n FROM number ORDER BY n")
    assert [await cursor.fetchone() for _ in range(2)] == [(0,), (1,)]
    assert [n for (n,) in await cursor.fetchall()] == list(range(2, ROWS))


async def test_a_cursor_that_is_left_early_holds_nothing(connection: Counting) -> None:
    cursor = connection.cursor()
    await cursor.execute("SELECT n FROM number ORDER BY n")
    await cursor.fetchone()
    await cursor.close()
    assert await cursor.fetchall() == []
    await connection.execute("DROP TABLE number")  # which SQLite refuses while a statement reads it


async def test_what_is_wrong_with_a_statement_is_raised(connection: Counting) -> None:
    cursor = connection.cursor()
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        await cursor.executemany("INSERT INTO number VALUES (?)", [(1,)])
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await cursor.execute("SELECT * FROM letter")
    await cursor.execute("SELECT count(*) FROM number")
    assert await cursor.fetchone() == (ROWS,)


async def test_a_short_transaction_takes_a_trip_for_its_commit_only(connection: Counting) -> None:
    connection.short = True
    cursor = connection.cursor()
    await cursor.execute("SELECT n FROM number WHERE n < ? ORDER BY n", (2,))
    assert await cursor.fetchall() == [(0,), (1,)]
    await cursor.executemany("INSERT INTO number VALUES (?)", [(-1,), (-2,)])
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        await cursor.execute("INSERT INTO number VALUES (1)")
    await cursor.close()
    assert connection.trips == 0
    await connection.commit()
    await connection.rollback()  # of nothing
    assert connection.trips == 1


async def test_many_rows_are_not_written_while_others_wait(connection: Counting) -> None:
    connection.short = True
    await connection.cursor().executemany("INSERT INTO number VALUES (?)", [(-n,) for n in range(1, 1_000)])
    assert connection.trips == 1
    await connection.rollback()
    cursor = connection.cursor()
    await cursor.execute("SELECT count(*) FROM number")
    assert await cursor.fetchall() == [(ROWS,)]


async def test_who_waits_for_another_process_does_so_in_the_thread(connection: Counting, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db")) as shell:
        shell.execute("BEGIN IMMEDIATE")
        connection.short = True
        cursor = connection.cursor()
        writing = asyncio.create_task(cursor.execute("INSERT INTO number VALUES (9999)"))
        await asyncio.wait([writing], timeout=0.1)
        assert not writing.done()
        assert connection.trips == 1
        shell.rollback()
        await writing
    await connection.commit()
    assert connection.trips == 2
    await cursor.execute("SELECT count(*) FROM number WHERE n = 9999")
    assert await cursor.fetchone() == (1,)
    assert connection.trips == 2


async def test_what_is_wrong_with_a_statement_at_hand_is_raised_at_once(connection: Counting) -> None:
    connection.short = True
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await connection.cursor().execute("SELECT n FROM missing")
    assert connection.trips == 0


async def test_a_trip_is_over_before_whoever_was_cancelled_meanwhile_goes_on(connection: Counting) -> None:
    connection.short = True
    held, cursor = threading.Event(), connection.cursor()
    waiting = asyncio.create_task(connection._execute(held.wait, 5))
    await asyncio.sleep(0)
    for _ in range(3):
        waiting.cancel()
        await asyncio.sleep(0)
        assert not waiting.done()
    held.set()
    await asyncio.wait((waiting,))
    assert waiting.cancelled()
    await cursor.execute("SELECT count(*) FROM number")
    assert await cursor.fetchall() == [(ROWS,)]
    assert connection.trips == 1


async def test_a_close_ends_though_the_thread_is_stopped_meanwhile(connection: Counting) -> None:
    held = threading.Event()
    before = asyncio.create_task(connection._execute(held.wait, 5))
    closing = asyncio.create_task(connection.close())
    await asyncio.sleep(0)
    connection.stop()
    held.set()
    async with asyncio.timeout(30):
        await asyncio.gather(before, closing)
