"""Lines of entry points on their way into the state, in batches, with a limit for each client's piece of work."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import structlog
from sqlalchemy.exc import SQLAlchemyError

from runnel.common.errors import RunnelError
from runnel.common.protocol import AssignmentKey, LogLines
from runnel.reducer.store import ledger
from runnel.reducer.store.database import Database

log = structlog.get_logger()

_BATCH_PAUSE_S = 0.25
_LINES_KEPT = 5_000
_WAITING_LINES = 100_000
_KEYS_REMEMBERED = 10_000


class LogWriter:
    """Collects lines and writes them in one transaction each quarter of a second; idle when there are none.

    Clients limit what they send; what is beyond ``_LINES_KEPT`` lines of one client's work, or waits behind a full
    disk beyond ``_WAITING_LINES``, is dropped here, so that no package can fill the reducer.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[LogLines] = []
        self._lines_waiting = 0
        self._kept: OrderedDict[tuple[AssignmentKey, str], int] = OrderedDict()
        self._wake = asyncio.Event()
        self._closed = False

    def add(self, lines: LogLines) -> None:
        """Take lines, without waiting."""
        source = (lines.key, lines.client)
        kept = self._kept.pop(source, 0)
        room = min(_LINES_KEPT - kept, _WAITING_LINES - self._lines_waiting)
        taken = lines.lines[: max(0, room)]
        self._kept[source] = kept + len(taken)
        if len(self._kept) > _KEYS_REMEMBERED:
            self._kept.popitem(last=False)
        if taken:
            self._waiting.append(LogLines(key=lines.key, client=lines.client, lines=taken))
            self._lines_waiting += len(taken)
            self._wake.set()

    def close(self) -> None:
        """Write what is left and end :meth:`run`."""
        self._closed = True
        self._wake.set()

    async def run(self) -> None:
        """Write until closed."""
        while not self._closed or self._waiting:
            if not self._closed:
                await self._wake.wait()
                await asyncio.sleep(_BATCH_PAUSE_S)
            self._wake.clear()
            batch, self._waiting, self._lines_waiting = self._waiting, [], 0
            try:
                async with self._database.write() as tx:
                    for lines in batch:
                        await ledger.add_log(tx, lines)
            except (RunnelError, SQLAlchemyError) as err:
                # Lines are not worth more than the sessions: whatever is wrong with them ends here.
                log.error("log lines lost", lines=sum(len(b.lines) for b in batch), error=str(err))
