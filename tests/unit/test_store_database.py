"""The database: its schema, its transactions, and what a full disk is called."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, event, insert, inspect, select, text
from sqlalchemy.exc import IntegrityError, StatementError

from runnel.common.errors import BadSettings, Conflict, StorageFull
from runnel.reducer.store.database import Database
from runnel.reducer.store.migrating import apply_migrations
from runnel.reducer.store.schema import migrate
from runnel.reducer.store.state_lock import StateLock
from runnel.reducer.store.tables import Base, OrganisationRow, SlotRow
from tests.doubles.reducer_state import database_in
from tests.eventually import eventually
from tests.schema_shape import schema_shape

pytestmark = pytest.mark.unit

NOW = datetime(2026, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


def test_the_migrations_make_what_the_tables_say(tmp_path: Path) -> None:
    made, migrated = (create_engine(f"sqlite:///{tmp_path / name}") for name in ("made.db", "migrated.db"))
    try:
        with made.begin() as connection:
            migrate(connection)
            expected, newest = schema_shape(connection), MigrationContext.configure(connection).get_current_revision()
        with migrated.begin() as connection:
            apply_migrations(connection)
            context = MigrationContext.configure(
                connection, opts={"compare_type": True, "compare_server_default": True}
            )
            assert list(compare_metadata(context, Base.metadata)) == []
            assert schema_shape(connection) == expected
            assert context.get_current_revision() == newest
    finally:
        made.dispose()
        migrated.dispose()


def test_an_older_schema_is_brought_to_the_newest_and_a_newer_one_refused(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'reducer.db'}")
    try:
        with engine.begin() as connection:
            apply_migrations(connection, "0012")
        with engine.begin() as connection:
            migrate(connection)
            assert "ix_slot_counted" in {index["name"] for index in inspect(connection).get_indexes("slot")}
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with engine.begin() as connection, pytest.raises(BadSettings, match=r"schema 9999.*newer version"):
            migrate(connection)
    finally:
        engine.dispose()


@pytest.mark.parametrize("make", [migrate, apply_migrations])
@pytest.mark.parametrize(
    ("condition", "index"),
    [("removed_at IS NULL", "ix_model_kept"), ("optimizer_state IS NOT NULL", "ix_model_with_state")],
)
def test_what_retention_asks_is_found_without_the_whole_trail(
    tmp_path: Path, make: Callable[[Connection], None], condition: str, index: str
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'reducer.db'}")
    query = f"EXPLAIN QUERY PLAN SELECT * FROM model WHERE session_id = 's' AND {condition}"
    try:
        with engine.begin() as connection:
            make(connection)
            assert index in str(connection.execute(text(query)).all())
    finally:
        engine.dispose()


def test_a_first_start_that_ends_on_the_way_leaves_no_table(tmp_path: Path) -> None:
    engine, left = create_engine(f"sqlite:///{tmp_path / 'reducer.db'}"), [5]

    def killed(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        if statement.lstrip().startswith("CREATE TABLE"):
            left[0] -= 1
            if left == [0]:
                raise InterruptedError

    event.listen(engine, "before_cursor_execute", killed)
    try:
        with pytest.raises(InterruptedError), engine.begin() as connection:
            migrate(connection)
        with engine.begin() as connection:
            assert inspect(connection).get_table_names() == []
            migrate(connection)
            assert "slot" in inspect(connection).get_table_names()
    finally:
        engine.dispose()


@pytest.mark.parametrize("killed_at", range(1, 100, 9))
def test_an_upgrade_that_ends_on_the_way_is_done_by_the_next_start(tmp_path: Path, killed_at: int) -> None:
    engine, left = create_engine(f"sqlite:///{tmp_path / 'reducer.db'}"), [killed_at]

    def killed(*_: object) -> None:
        left[0] -= 1
        if left == [0]:
            raise InterruptedError

    try:
        with engine.begin() as connection:
            apply_migrations(connection, "0001")
            connection.execute(insert(OrganisationRow).values(id="a", created_at=NOW))
        event.listen(engine, "before_cursor_execute", killed)
        with suppress(InterruptedError), engine.begin() as connection:
            migrate(connection)
        event.remove(engine, "before_cursor_execute", killed)
        with engine.begin() as connection:
            migrate(connection)
            assert "ix_slot_counted" in {index["name"] for index in inspect(connection).get_indexes("slot")}
            assert connection.scalars(select(OrganisationRow.id)).all() == ["a"]
    finally:
        engine.dispose()


@pytest.mark.usefixtures("each_database")
async def test_opening_again_keeps_what_is_there(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database, database.write() as tx:
        tx.add(OrganisationRow(id="a", created_at=NOW))
    async with database_in(tmp_path) as database, database.read() as tx:
        assert [row.id for row in await tx.scalars(select(OrganisationRow))] == ["a"]


@pytest.mark.usefixtures("each_database")
async def test_what_fails_inside_is_not_written(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database:

        async def fail() -> None:
            async with database.write() as tx:
                tx.add(OrganisationRow(id="a", created_at=NOW))
                await tx.flush()
                raise RuntimeError("halfway")

        with pytest.raises(RuntimeError, match="halfway"):
            await fail()
        async with database.read() as tx:
            assert list(await tx.scalars(select(OrganisationRow))) == []


@pytest.mark.usefixtures("each_database")
async def test_a_reader_sees_only_what_is_committed(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database, database.write() as writer:
        writer.add(OrganisationRow(id="a", created_at=NOW))
        await writer.flush()
        async with database.read() as reader:
            assert list(await reader.scalars(select(OrganisationRow))) == []


@pytest.mark.parametrize("times", [1, 2, 20])
async def test_a_transaction_that_is_cancelled_leaves_no_task_and_no_thread(tmp_path: Path, times: int) -> None:
    async with database_in(tmp_path) as database:
        before = asyncio.all_tasks()
        for at_work in (database.read, database.write):
            held, asked = threading.Event(), asyncio.Event()

            async def ask(
                at_work: Callable[[], Any] = at_work, held: threading.Event = held, asked: asyncio.Event = asked
            ) -> None:
                async with at_work() as tx:
                    raw = await (await tx.connection()).get_raw_connection()
                    await raw.driver_connection.create_function("hold", 0, lambda: held.wait(5))
                    asked.set()
                    await tx.execute(text("SELECT hold()"))

            asking = asyncio.create_task(ask())
            await asked.wait()
            asking.cancel()
            held.set()
            for _ in range(times - 1):
                await asyncio.sleep(0)
                asking.cancel()
            await asyncio.wait((asking,))
            assert asking.cancelled()
            await eventually(lambda: asyncio.all_tasks() == before)
        async with database.write() as tx:
            tx.add(OrganisationRow(id="a", created_at=NOW))
    await eventually(lambda: not [each for each in threading.enumerate() if "_connection_worker" in each.name])


@pytest.mark.usefixtures("each_database")
async def test_rows_of_nothing_are_refused(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database:
        with pytest.raises(IntegrityError):
            async with database.write() as tx:
                tx.add(SlotRow(session_id="none", round=1, work="train", client="a", state="open"))


async def test_what_was_answered_outlives_a_power_cut(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database, database.read() as tx:
        assert await tx.scalar(text("PRAGMA journal_mode")) == "wal"
        assert await tx.scalar(text("PRAGMA synchronous")) == 2


# ---- times


@pytest.mark.usefixtures("each_database")
async def test_times_are_utc_whatever_zone_they_came_in(tmp_path: Path) -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=-7)))
    async with database_in(tmp_path) as database:
        async with database.write() as tx:
            tx.add(OrganisationRow(id="a", created_at=elsewhere))
        async with database.read() as tx:
            row = await tx.get_one(OrganisationRow, "a")
            assert row.created_at == NOW
            assert row.created_at.utcoffset() == timedelta(0)
            assert await tx.scalar(select(OrganisationRow.id).where(OrganisationRow.created_at == elsewhere)) == "a"


@pytest.mark.usefixtures("each_database")
async def test_a_time_without_a_zone_is_refused(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database:
        with pytest.raises(StatementError, match="without a zone"):
            async with database.write() as tx:
                tx.add(OrganisationRow(id="a", created_at=NOW.replace(tzinfo=None)))


# ---- a full disk


async def limit_pages(database: Database) -> None:
    """Allow the database no more pages than it has, as a full disk would."""
    async with database.read() as tx:
        pages = await tx.scalar(text("PRAGMA page_count"))
        await tx.execute(text(f"PRAGMA max_page_count = {pages}"))


async def test_a_full_disk_is_named_and_nothing_that_was_committed_is_lost(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database:
        async with database.write() as tx:
            tx.add(OrganisationRow(id="first", created_at=NOW))
        await limit_pages(database)
        with pytest.raises(StorageFull, match=r"reducer\.db") as caught:
            async with database.write() as tx:
                tx.add_all(OrganisationRow(id=f"{n:064}", created_at=NOW) for n in range(5000))
        assert isinstance(caught.value.__cause__, Exception)
        async with database.read() as tx:
            assert [row.id for row in await tx.scalars(select(OrganisationRow))] == ["first"]
        async with database.write() as tx:
            await tx.execute(text("PRAGMA max_page_count = 100000"))
        async with database.write() as tx:
            tx.add_all(OrganisationRow(id=f"{n:064}", created_at=NOW) for n in range(5000))


async def test_other_errors_keep_their_name(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database:
        with pytest.raises(Exception, match="no such table") as caught:
            async with database.write() as tx:
                await tx.execute(text("SELECT * FROM missing"))
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)


# ---- one reducer for one folder


def test_a_second_reducer_of_the_same_folder_is_refused(tmp_path: Path) -> None:
    with StateLock(tmp_path), pytest.raises(Conflict, match=str(tmp_path)), StateLock(tmp_path):
        pass
    with StateLock(tmp_path):
        pass
