"""What time does to tasks: runs that have not begun expire, and files are removed when they were kept long enough."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import structlog

from runnel.common.errors import RunnelError
from runnel.common.protocol import Failure, RunResult, RunState
from runnel.reducer.domain.tasks import NOT_BEGUN, RunBook
from runnel.reducer.engine.retention import Retention
from runnel.reducer.store import run_files, task_ledger
from runnel.reducer.store.journal import Journal
from runnel.reducer.store.tables import RunRow

log = structlog.get_logger()

_TICK_S = 0.2
_LONGEST_S = 3600.0


class TaskClock:
    """Waits for the next moment at which something is due, and does it.

    Args:
        journal: the durable state.
        book: the runs that may expire.
        retention: removes files that were given up.
        ended: is told of runs that expired, once that is durable.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        journal: Journal,
        book: RunBook,
        *,
        retention: Retention,
        ended: Callable[[Sequence[RunRow]], None],
        clock: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._book = book
        self._retention = retention
        self._ended = ended
        self._clock = clock
        self._changed = asyncio.Event()

    def look(self) -> None:
        """Something may be due earlier than it was."""
        self._changed.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            self._changed.clear()  # before it is looked: what changes from here on is looked at again
            old: datetime | None = None
            with _going_on("what time does to runs waits"):
                await self._expire()
                old = await self._remove_old()
            await asyncio.sleep(_TICK_S)
            moments = [self._book.next_due(), None if old is None else old.timestamp()]
            wait_s = min((at - self._clock() for at in moments if at is not None), default=_LONGEST_S)
            with contextlib.suppress(TimeoutError):  # it is due
                async with asyncio.timeout(min(max(wait_s, 0.0), _LONGEST_S)):
                    await self._changed.wait()

    async def _expire(self) -> None:
        due = self._book.due(self._clock())
        if not due:
            return
        expired = []
        try:
            async with self._journal.transaction() as tx:
                rows = await task_ledger.runs_by_id(tx.session, [run.run_id for run in due])
                for row in rows.values():
                    if RunState(row.state) in NOT_BEGUN:
                        failure = Failure(code="expired", message="The site had not begun it when its time was over.")
                        await task_ledger.end(tx, row, RunState.FAILED, RunResult(failure=failure))
                        expired.append(row)
        except BaseException:
            self._book.again(due)
            raise
        self._ended(expired)

    async def _remove_old(self) -> datetime | None:
        """Remove what was kept long enough; return when the next file's time is over."""
        while True:
            now = datetime.fromtimestamp(self._clock(), UTC)
            async with self._journal.database.read() as tx:
                old = await run_files.next_old(tx)
            if old is None or old > now:
                return old
            async with self._journal.transaction() as tx:
                await run_files.give_up_old(tx.session, now)
            await self._retention.remove_files()


@contextlib.contextmanager
def _going_on(what: str) -> Iterator[None]:
    """Log what went wrong, and let it be tried again: what is durable stands."""
    try:
        yield
    except RunnelError as error:
        log.warning(what, error=str(error))
    except Exception:
        log.exception(what)
