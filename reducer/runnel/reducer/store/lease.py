"""Who acts on a PostgreSQL database: one reducer, fenced by a token.

Three things together, all by the clock and the locks of the database, so that the clocks of machines do not matter:

* A row says who holds the lease and until when; the holder renews it each third of its length. Whoever finds it expired
  takes it: also from a process that hangs, was stopped or is cut off.
* The holder's connection has an advisory lock. PostgreSQL frees it when the connection ends, so that a reducer that was
  killed is followed by the next at once.
* Each holder's *token* is one more than the one before. Every write transaction sees it under a row lock that taking
  the lease has to wait for: nothing of an earlier holder is committed after the lease was taken from it (the fencing
  token of Kleppmann 2016, *How to do distributed locking*).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import structlog
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from runnel.common.errors import Conflict, Unreachable
from runnel.reducer.store.database_errors import reason

log = structlog.get_logger()

# Serialises reducers that start, with their migrations; the second number is 0, which is nobody's token.
_STARTING = 0x52554E4C

_LOOK = text(
    "SELECT token, name, host, pid, since, expires_at > clock_timestamp() AS valid,"
    " extract(epoch FROM expires_at - clock_timestamp()) AS left_s FROM lease WHERE id = 1 FOR UPDATE"
)
_TAKE = text(
    "INSERT INTO lease (id, token, name, host, pid, since, expires_at)"
    " VALUES (1, :token, :name, :host, :pid, clock_timestamp(), clock_timestamp() + make_interval(secs => :lease_s))"
    " ON CONFLICT (id) DO UPDATE SET token = excluded.token, name = excluded.name, host = excluded.host,"
    " pid = excluded.pid, since = excluded.since, expires_at = excluded.expires_at"
)
_RENEW = text(
    "UPDATE lease SET expires_at = clock_timestamp() + make_interval(secs => :lease_s) WHERE id = 1 AND token = :token"
)
_RELEASE = text("UPDATE lease SET expires_at = clock_timestamp() WHERE id = 1 AND token = :token")
_WHO = text("SELECT name, host, pid, since FROM lease WHERE id = 1")
# The row lock holds off whoever takes the lease until this transaction has ended.
_FENCE = text("UPDATE lease SET writes = writes + 1 WHERE id = 1 RETURNING token, writes")
_WROTE = text("SELECT token, writes FROM lease WHERE id = 1 FOR SHARE NOWAIT")
_LOCK_NOT_AVAILABLE = "55P03"
_TRY_LOCK = text("SELECT pg_try_advisory_lock(CAST(CAST(CAST('lease' AS regclass) AS oid) AS int), :token)")
_UNLOCK = text("SELECT pg_advisory_unlock(CAST(CAST(CAST('lease' AS regclass) AS oid) AS int), :token)")


class Lease:
    """The right to act on a database.

    Args:
        engine: of PostgreSQL.
        database: its name, for people.
        name: of this reducer, for whoever is refused because of it.
        lease_s: seconds without a renewal after which another may take over.
    """

    def __init__(self, engine: AsyncEngine, *, database: str, name: str, lease_s: float) -> None:
        self._engine = engine
        self._database = database
        self._name = name
        self._lease_s = lease_s
        self._token = 0
        self._connection: AsyncConnection | None = None
        self._locked = False
        self._doubt = asyncio.Event()
        self.lost: Unreachable | None = None

    async def take(self, migrate: Callable[[Connection], None]) -> None:
        """Take the lease, and bring the schema up to date under it, in one transaction.

        Raises:
            Conflict: another reducer has it; host, process and time are named. Nothing was changed.
        """
        connection = self._connection = await self._engine.connect()
        try:
            # A migration may take long, and so may the server's end of a holder that stopped in the middle of a write.
            await connection.execute(text("SET LOCAL statement_timeout = 0"))
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key, 0)"), {"key": _STARTING})
            before = await self._require_free(connection)
            await connection.run_sync(migrate)
            self._token = before + 1
            values: dict[str, Any] = {
                "token": self._token,
                "name": self._name,
                "host": socket.gethostname()[:255],
                "pid": os.getpid(),
                "lease_s": self._lease_s,
            }
            await connection.execute(_TAKE, values)
            self._locked = bool(await connection.scalar(_TRY_LOCK, {"token": self._token}))
            await connection.commit()
            self._connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
        except BaseException:
            await self._disconnect()
            raise
        log.info("lease taken", database=self._database, number=self._token, lease_s=self._lease_s)

    async def _require_free(self, connection: AsyncConnection) -> int:
        """Return the newest token, whose holder is gone."""
        if not await connection.run_sync(lambda sync: inspect(sync).has_table("lease")):
            return 0
        row = (await connection.execute(_LOOK)).one_or_none()
        if row is None:
            return 0
        token = int(row.token)
        if row.valid:
            if not await connection.scalar(_TRY_LOCK, {"token": token}):
                raise Conflict(
                    f"The reducer {row.name} on {row.host} (process {row.pid}) acts on the database {self._database}"
                    f" since {_shown(row.since)}.",
                    hint=f"Stop it first, or give this one another database. If it is dead or cut off, its lease ends"
                    f" by itself in {max(1.0, float(row.left_s)):.0f} s.",
                    host=row.host,
                    pid=row.pid,
                    since=_shown(row.since),
                )
            await connection.execute(_UNLOCK, {"token": token})
            log.info("the holder of the lease is gone", name=row.name, host=row.host, pid=row.pid)
        return token

    async def keep(self) -> None:
        """Renew until it is lost.

        A database that does not answer is no loss: nothing can be written meanwhile, and when it is back the token
        tells whether another took over.

        Raises:
            Unreachable: another reducer has taken the lease; this one must end.
        """
        answers = True
        while self.lost is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._lease_s / 3 if answers else min(1.0, self._lease_s / 3)):
                    await self._doubt.wait()
            self._doubt.clear()
            try:
                async with asyncio.timeout(self._lease_s):
                    await self._renew()
            except (SQLAlchemyError, TimeoutError) as error:
                await self._disconnect()
                if answers:
                    log.warning("lease can't be renewed", database=self._database, error=reason(error))
                answers = False
            else:
                if not answers and self.lost is None:
                    log.info("lease renewed", database=self._database)
                answers = True
        raise self.lost

    async def _renew(self) -> None:
        if self._connection is None:
            connection = self._connection = await self._engine.connect()
            self._connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
        connection = self._connection
        renewed = await connection.execute(_RENEW, {"lease_s": self._lease_s, "token": self._token})
        if renewed.rowcount != 1:
            self._lose((await connection.execute(_WHO)).one_or_none())
        elif not self._locked:
            # After a loss of the connection; the server may still think that the old one lives.
            self._locked = bool(await connection.scalar(_TRY_LOCK, {"token": self._token}))

    async def fence(self, session: AsyncSession) -> int:
        """Open a write transaction: see that the lease is still ours, and hold it fast until the transaction ends.

        Returns:
            The number of the transaction, by which :meth:`committed` tells how it ended.

        Raises:
            Unreachable: another reducer has taken the lease.
        """
        if self.lost is not None:
            raise self.lost
        row = (await session.execute(_FENCE)).one_or_none()
        if row is None or row.token != self._token:
            await session.rollback()
            lost = self._lose((await session.execute(_WHO)).one_or_none())
            self._doubt.set()  # the keeper looks at once, and ends this reducer
            raise lost
        return int(row.writes)

    async def committed(self, number: int) -> bool | None:
        """Tell how a transaction ended whose connection broke at its commit; None: it has not ended yet.

        It is to be asked before the next transaction is opened. PostgreSQL's own numbers of transactions would not do:
        after a crash they are given out again.

        Raises:
            Unreachable: another reducer has taken the lease.
        """
        try:
            async with self._engine.connect() as connection:
                row = (await connection.execute(_WROTE)).one_or_none()
                if row is None or row.token != self._token:
                    raise self._lose((await connection.execute(_WHO)).one_or_none())
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
                return None
            raise
        return int(row.writes) == number

    async def release(self) -> None:
        """Give the lease back, so that the next need not wait; without the database it expires by itself."""
        try:
            if self.lost is None and self._connection is not None:
                async with asyncio.timeout(self._lease_s):
                    await self._connection.execute(_RELEASE, {"token": self._token})
        except (SQLAlchemyError, TimeoutError) as error:
            log.warning("lease not given back", database=self._database, error=reason(error))
        finally:
            await self._disconnect()

    def _lose(self, row: Any) -> Unreachable:
        who = f"{row.name} on {row.host} (process {row.pid}) took it at {_shown(row.since)}" if row else "it is gone"
        self.lost = Unreachable(
            f"This reducer no longer has the lease of the database {self._database}: {who}.",
            hint=f"It was silent for more than {self._lease_s:g} s. Nothing that was committed is lost, and the other"
            " one goes on with it.",
        )
        return self.lost

    async def _disconnect(self) -> None:
        connection, self._connection, self._locked = self._connection, None, False
        if connection is not None:
            # Closed for good, not given back to the pool: the advisory lock lives as long as the connection.
            await connection.invalidate()
            await connection.close()


def _shown(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds")
