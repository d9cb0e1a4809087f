"""The connection to the reducer's database: one engine, migrated on start."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from runnel.common.errors import StorageFull

_MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """Reads run side by side; writes take turns, so that the event log is one chain and SQLite never has to wait.

    Args:
        url: of SQLAlchemy, async driver, e.g. ``sqlite+aiosqlite:///state/reducer.db``.
    """

    def __init__(self, url: str) -> None:
        self._engine: AsyncEngine = create_async_engine(url)
        self._write_lock = asyncio.Lock()
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)

    async def __aenter__(self) -> Database:
        async with self._engine.begin() as connection:
            await connection.run_sync(_migrate)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._engine.dispose()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """Open a transaction that is committed at the end of the block.

        Raises:
            StorageFull: the disk of the database has no room.
        """
        async with self._write_lock:
            try:
                async with AsyncSession(self._engine, expire_on_commit=False) as session, session.begin():
                    yield session
            except OperationalError as err:
                if isinstance(err.orig, sqlite3.Error) and err.orig.sqlite_errorname == "SQLITE_FULL":
                    raise StorageFull(
                        f"The disk of the reducer's database {self._engine.url.database} is full.",
                        hint="Free some space; nothing that was committed is lost.",
                    ) from err
                raise

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """Open a session for reading."""
        async with AsyncSession(self._engine) as session:
            yield session


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # FULL: what was answered to those below must outlive a power cut, as they forget their copy.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()


def _migrate(connection: Connection) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")
