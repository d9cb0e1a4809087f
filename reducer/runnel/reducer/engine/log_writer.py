"""Lines of entry points on their way into the state, in batches, with a limit for each client's piece of work."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import OrderedDict

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from runnel.common.protocol import AssignmentKey, LogLine, LogLines, TaskNews
from runnel.reducer.store import ledger, run_lines
from runnel.reducer.store.database import Database

log = structlog.get_logger()

_BATCH_PAUSE_S = 0.25
_LINES_KEPT = 5_000
_CHARACTERS_KEPT = 2 << 20
_LINES_WAITING = 100_000
_CHARACTERS_WAITING = 32 << 20
_KEYS_REMEMBERED = 10_000

Lines = LogLines | TaskNews
"""Lines of a client's work in a round, or those in the news of a run."""

_Source = tuple[AssignmentKey | str, str]


class LogWriter:
    """Collects lines and writes them in one transaction each quarter of a second; idle when there are none.

    Clients limit what they send; dropped here, so that no package and no client can fill the reducer, is what is beyond
    5,000 lines or 2 Mi characters of one client's work, what waits behind a full disk beyond 100,000 lines or 32 Mi
    characters, and what tells of work that the client was not asked for.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[Lines] = []
        self._lines_waiting = 0
        self._characters_waiting = 0
        self._kept: OrderedDict[_Source, tuple[int, int]] = OrderedDict()
        self._wake = asyncio.Event()
        self._closed = False

    def add(self, lines: Lines) -> None:
        """Take lines, without waiting."""
        source = _source(lines)
        kept_lines, kept_characters = self._kept.pop(source, (0, 0))
        taken: list[LogLine] = []
        for line in lines.lines:
            size = len(line.text)
            if (
                kept_lines >= _LINES_KEPT
                or kept_characters + size > _CHARACTERS_KEPT
                or self._lines_waiting >= _LINES_WAITING
                or self._characters_waiting + size > _CHARACTERS_WAITING
            ):
                break
            taken.append(line)
            kept_lines, kept_characters = kept_lines + 1, kept_characters + size
            self._lines_waiting += 1
            self._characters_waiting += size
        self._kept[source] = (kept_lines, kept_characters)
        if len(self._kept) > _KEYS_REMEMBERED:
            self._kept.popitem(last=False)
        if taken:
            self._waiting.append(dataclasses.replace(lines, lines=tuple(taken)))
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
            batch, self._waiting = self._waiting, []
            self._lines_waiting = self._characters_waiting = 0
            try:
                await self._write(batch)
            except Exception as err:  # noqa: BLE001 - a full or failing disk: sessions matter more than lines of logs
                log.error("log lines lost", lines=sum(len(b.lines) for b in batch), error=str(err))

    async def _write(self, batch: list[Lines]) -> None:
        asked: dict[_Source, bool] = {}
        async with self._database.write() as tx:
            for lines in batch:
                source = _source(lines)
                if source not in asked:
                    asked[source] = await _was_asked(tx, lines)
                    if not asked[source]:
                        log.warning("log lines of work that was not asked", client=lines.client, work=str(source[0]))
                if not asked[source]:
                    continue
                if isinstance(lines, TaskNews):
                    await run_lines.add_lines(tx, lines.run_id, lines.lines)
                else:
                    await ledger.add_log(tx, lines)


def _source(lines: Lines) -> _Source:
    return (lines.run_id if isinstance(lines, TaskNews) else lines.key), lines.client


async def _was_asked(tx: AsyncSession, lines: Lines) -> bool:
    if isinstance(lines, TaskNews):
        return await run_lines.is_run_of(tx, lines.run_id, lines.client)
    # No node has a colon in its name: what a package prints at the reducer comes from nobody below.
    return ":" in lines.client or await ledger.slot_state(tx, lines.key, lines.client) is not None
