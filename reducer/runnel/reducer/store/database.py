"""The connection to the reducer's database: one engine, migrated on start."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

import structlog
from sqlalchemy import URL, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from runnel.reducer.store import sqlite_driver
from runnel.reducer.store.database_errors import database_errors, is_away, reason
from runnel.reducer.store.database_url import database_name, read_database_url
from runnel.reducer.store.lease import Lease
from runnel.reducer.store.schema import migrate

log = structlog.get_logger()

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 1.0
_STATEMENT_S = 30


class Database:
    """Reads run side by side; writes take turns, so that the event log is one chain and SQLite never has to wait.

    On PostgreSQL it also holds the lease of the database, see :mod:`runnel.reducer.store.lease`. When that is lost the
    task that entered is cancelled, and leaving raises an exception group with the reason; every transaction raises it
    from then on. SQLite is guarded by the lock on the state folder.

    Args:
        url: ``sqlite+aiosqlite:///state/reducer.db`` or ``postgresql://user:password@host/name``.
        name: of this reducer, for another one that is refused because of it.
        lease_s: seconds of silence after which another reducer may take over a PostgreSQL database.
        patience_s: a transaction waits so long for a database that does not answer before it raises Unreachable.
        clock: monotonic seconds.

    Raises:
        BadSettings: the URL makes no sense, or the state is that of a newer version.
        Conflict: another reducer acts on the database.
        Unreachable: it does not answer.
    """

    def __init__(
        self,
        url: str | URL,
        *,
        name: str = "reducer",
        lease_s: float = 15.0,
        patience_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        read = read_database_url(url) if isinstance(url, str) else url
        self.shown = database_name(read)
        self._patience_s = patience_s
        self._clock = clock
        self._write_lock = asyncio.Lock()
        self._lease: Lease | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._group = asyncio.TaskGroup()
        self._engine: AsyncEngine
        # Statements may be shown in a traceback, what is stored by them not: hashes of tokens, what scripts wrote.
        if read.get_backend_name() == "sqlite":
            self._engine = create_async_engine(
                read, hide_parameters=True, connect_args={"async_creator_fn": sqlite_driver.connect}
            )
            event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)
        else:
            self._engine = create_async_engine(
                read, hide_parameters=True, pool_pre_ping=True, connect_args=_connect_args(read, lease_s)
            )
            self._lease = Lease(self._engine, database=self.shown, name=name, lease_s=lease_s)

    async def __aenter__(self) -> Database:
        try:
            with database_errors(self.shown):
                if self._lease is None:
                    async with self._engine.begin() as connection:
                        await connection.run_sync(migrate)
                else:
                    await self._take(self._lease)
        except BaseException:
            await self._engine.dispose()
            raise
        if self._lease is not None:
            await self._group.__aenter__()
            self._keeper = self._group.create_task(self._lease.keep(), name="lease")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._lease is not None and self._keeper is not None:
                self._keeper.cancel()
                try:
                    await self._group.__aexit__(kind, error, trace)
                finally:
                    await self._lease.release()
        finally:
            await self._engine.dispose()

    @asynccontextmanager
    async def write(self, *, short: bool = False) -> AsyncIterator[AsyncSession]:
        """Open a transaction that is committed at the end of the block.

        ``short``: its statements touch few rows, found by an index, and are not worth the way to SQLite's thread.

        Raises:
            StorageFull: the disk of the database has no room.
            InvalidInput: a value does not fit its column.
            Unreachable: the database does not answer, or the lease is lost. Nothing was committed, except if it was
                the commit that got no answer and none came later either.
        """
        deadline = self._clock() + self._patience_s
        async with self._write_lock:
            with database_errors(self.shown):
                async with AsyncSession(self._engine, expire_on_commit=False) as session:
                    number = await self._begin(session, deadline, self._lease, short=short)
                    yield session
                    await session.flush()
                    await self._commit(session, number)

    @asynccontextmanager
    async def read(self, *, short: bool = False) -> AsyncIterator[AsyncSession]:
        """Open a session for reading; ``short``: as for :meth:`write`.

        Raises:
            Unreachable: the database does not answer, or the lease is lost.
        """
        if self._lease is not None and self._lease.lost is not None:
            raise self._lease.lost
        with database_errors(self.shown):
            async with AsyncSession(self._engine) as session:
                await self._begin(session, self._clock() + self._patience_s, None, short=short)
                yield session

    async def _take(self, lease: Lease) -> None:
        """Take the lease of a database that may just be starting itself."""
        told = ""
        for pause in self._pauses(self._clock() + self._patience_s):
            try:
                await lease.take(migrate)
            except SQLAlchemyError as error:
                if pause is None or not is_away(error):
                    raise
                if told != (told := reason(error)):
                    log.warning("waiting for the database", database=self.shown, error=told)
                await asyncio.sleep(pause)
            else:
                return

    async def _begin(self, session: AsyncSession, deadline: float, lease: Lease | None, *, short: bool) -> int | None:
        """Begin a transaction, waiting for the database if need be; return its number if it writes to PostgreSQL."""
        for pause in self._pauses(deadline):
            try:
                connection = await session.connection()
                driver = (await connection.get_raw_connection()).driver_connection
                if isinstance(driver, sqlite_driver.Connection):
                    driver.short = short
                return None if lease is None else await lease.fence(session)
            except SQLAlchemyError as error:
                await session.close()
                if pause is None or not is_away(error):
                    raise
                await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _commit(self, session: AsyncSession, number: int | None) -> None:
        try:
            await session.commit()
        except SQLAlchemyError as error:
            # The answer is lost, not necessarily the commit: the database knows.
            if number is None or not is_away(error) or not await self._was_committed(number):
                raise
            log.warning("commit confirmed over another connection", database=self.shown, error=reason(error))

    async def _was_committed(self, number: int) -> bool:
        assert self._lease is not None
        for pause in self._pauses(self._clock() + self._patience_s):
            try:
                verdict = await self._lease.committed(number)
            except SQLAlchemyError as error:
                if not is_away(error):
                    raise
                verdict = None
            if verdict is not None:
                return verdict
            if pause is not None:
                await asyncio.sleep(pause)
        return False

    def _pauses(self, deadline: float) -> Iterator[float | None]:
        """Yield for each attempt how long to wait after it, longer and longer; None: it is the last."""
        pause = _FIRST_PAUSE_S
        while self._clock() < deadline:
            yield pause * random.uniform(0.8, 1.2)  # noqa: S311
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        yield None


def _connect_args(url: URL, lease_s: float) -> dict[str, Any]:
    """Return parameters of libpq by which neither side waits long for the other; those in the URL win."""
    session = {
        "statement_timeout": f"{_STATEMENT_S}s",
        # Ends the transaction of a reducer that stopped inside of it, which would keep the next one from taking over.
        "idle_in_transaction_session_timeout": f"{math.ceil(lease_s)}s",
        # East of it the end of the year 9999, which a client's clock may tell, is in a year that Python has not.
        "timezone": "UTC",
    }
    given = url.query.get("options", "")
    options = [f"-c {key}={value}" for key, value in session.items()]
    wanted = {
        "application_name": "runnel reducer",
        "connect_timeout": 5,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
    }
    kept = {key: value for key, value in wanted.items() if key not in url.query}
    return kept | {"options": " ".join([*options, given if isinstance(given, str) else " ".join(given)]).strip()}


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # FULL: what was answered to those below must outlive a power cut, as they forget their copy.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={sqlite_driver.PATIENCE_MS}")
    cursor.close()
