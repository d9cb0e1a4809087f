"""SQLite below SQLAlchemy's asyncio engine with one trip to the connection's thread for most statements, or none.

aiosqlite makes four: for the cursor, the statement, its rows and the end of the cursor. Each wakes two threads, which
costs more than the small statements that a reducer asks. So those of a short transaction, which touch a few rows that
an index finds, are executed where they are asked; its commit, which waits for the disk, is not, and neither is what has
to wait for another process to let go of the file.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import aiosqlite

from runnel.common.blobs.threads import to_its_end

_AT_ONCE = 500  # rows that come with their statement; of more, as many with each further trip
PATIENCE_MS = 10_000  # for another process that holds the file: a backup, somebody's shell
_FEW = 64  # rows that a short transaction writes at once without a trip
_PRIMARY_CODE = 0xFF  # of an error's code; the rest tells it apart from others of its kind
_SERIALIZED = sqlite3.threadsafety == 3  # a connection may be used by several threads


class Connection(aiosqlite.Connection):
    """A connection whose cursors have their first rows as soon as the statement was executed.

    ``short``: whether the transaction is one, whose statements are executed without a trip.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.short = False
        self._patient = True
        self._end: asyncio.Future[Any] | None = None

    @property
    def at_hand(self) -> bool:
        """Whether statements may be executed right here."""
        return self.short and _SERIALIZED

    async def commit(self) -> None:
        """Commit the transaction, which waits for the disk, and without WAL for those who read."""
        await self._execute(self._commit)

    async def rollback(self) -> None:
        """Roll back the transaction, if there is one: a pool asks for it with each connection that it is given back."""
        if self._connection is None or self._connection.in_transaction:
            await super().rollback()

    def stop(self) -> asyncio.Future[Any] | None:
        """End the thread and return what is done when it has ended.

        Asked twice, by SQLAlchemy when it is cancelled while it closes, and by that close, it is one end: the thread
        would never answer the second.
        """
        self._end = self._end or super().stop()
        return self._end

    def wait_for_lock(self, patient: bool) -> None:
        """Let statements from now on wait for the file, or fail at once where they would."""
        if patient != self._patient:
            self._conn.execute(f"PRAGMA busy_timeout={PATIENCE_MS if patient else 0}").close()
            self._patient = patient

    async def _execute(self, fn: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call ``fn`` in the thread. Whoever is cancelled meanwhile goes on when that is over: then nobody else's
        transaction begins beside a commit that is still under way."""
        try:
            return await super()._execute(fn, *arguments, **options)  # type: ignore[no-untyped-call]
        except asyncio.CancelledError:
            with suppress(ValueError):  # it was closed meanwhile, by what came after ``fn`` in the thread
                await to_its_end(super()._execute(_nothing))  # type: ignore[no-untyped-call]
            raise

    def _commit(self) -> None:
        self.wait_for_lock(True)
        self._conn.commit()

    def cursor(self) -> Cursor:  # type: ignore[override]  # nothing to wait for, so not a coroutine
        """Return a cursor; costs nothing until it executes."""
        return Cursor(self)


class Cursor(aiosqlite.Cursor):
    """A cursor that is closed within the trip that brings its last rows."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, None)  # type: ignore[arg-type]  # comes with the statement
        self._connection = connection
        self._rows: list[Any] = []
        self._more = False

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> aiosqlite.Cursor:
        """Execute a statement and fetch its first rows."""
        return await self._begin(sqlite3.Cursor.execute, sql, parameters or ())

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> aiosqlite.Cursor:
        """Execute a statement for each of ``parameters``."""
        return await self._begin(sqlite3.Cursor.executemany, sql, parameters)

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        """Return the next rows: ``size`` of them, or fewer at the end; None: as many as are here, or come at once."""
        wanted = size or len(self._rows) or 1
        while self._more and len(self._rows) < wanted:
            await self._execute(self._fetch)  # type: ignore[no-untyped-call]
        rows, self._rows = self._rows[:wanted], self._rows[wanted:]
        return rows

    async def fetchone(self) -> Any:
        """Return the next row; None: there is none."""
        return next(iter(await self.fetchmany(1)), None)

    async def fetchall(self) -> list[Any]:
        """Return all rows that are left."""
        rows = await self.fetchmany()
        while self._more:
            rows += await self.fetchmany(_AT_ONCE)
        return rows

    async def close(self) -> None:
        """Forget the rows."""
        self._rows = []
        if self._more:
            self._more = False
            await super().close()

    async def _begin(self, how: Callable[..., Any], *statement: Any) -> aiosqlite.Cursor:
        await self.close()
        if self._connection.at_hand and (how is sqlite3.Cursor.execute or len(statement[1]) <= _FEW):
            try:
                self._run(False, how, *statement)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & _PRIMARY_CODE != sqlite3.SQLITE_BUSY:
                    raise
            else:
                return self
        await self._execute(self._run, True, how, *statement)  # type: ignore[no-untyped-call]
        return self

    def _run(self, patient: bool, how: Callable[..., Any], *statement: Any) -> None:
        self._connection.wait_for_lock(patient)
        self._cursor = self._connection._conn.cursor()
        try:
            how(self._cursor, *statement)
            self._fetch()
        except BaseException:
            self._cursor.close()
            raise

    def _fetch(self) -> None:
        rows = self._cursor.fetchmany(_AT_ONCE)
        self._rows += rows
        self._more = len(rows) == _AT_ONCE
        if not self._more:
            self._cursor.close()  # what it tells of the statement outlives that


def _nothing() -> None:
    """Tell whoever asked that the thread has done all that was asked before."""


def connect(*arguments: Any, **options: Any) -> Connection:
    """Return a connection to be awaited; the arguments are those of :func:`sqlite3.connect`."""
    options["check_same_thread"] = False  # never two at a time: a trip is over before whoever asked goes on
    connection = Connection(partial(sqlite3.connect, *arguments, **options), iter_chunk_size=64)
    connection._thread.daemon = True  # one that is lost must not hold up the end of the process
    return connection
