"""Lines of entry points on their way into the state, in batches, with a limit for each client's piece of work."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import structlog

from runnel.common.protocol import AssignmentKey, LogLine, LogLines
from runnel.reducer.store import ledger
from runnel.reducer.store.database import Database

log = structlog.get_logger()

_BATCH_PAUSE_S = 0.25
_LINES_KEPT = 5_000
_CHARACTERS_KEPT = 2 << 20
_LINES_WAITING = 100_000
_CHARACTERS_WAITING = 32 << 20
_KEYS_REMEMBERED = 10_000


class LogWriter:
    """Collects lines and writes them in one transaction each quarter of a second; idle when there are none.

    Clients limit what they send; dropped here, so that no package and no client can fill the reducer, is what is beyond
    5,000 lines or 2 Mi characters of one client's work, what waits behind a full disk beyond 100,000 lines or 32 Mi
    characters, and what tells of work that the client was not asked for.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[LogLines] = []
        self._lines_waiting = 0
        self._characters_waiting = 0
        self._kept: OrderedDict[tuple[AssignmentKey, str], tuple[int, int]] = OrderedDict()
        self._wake = asyncio.Event()
        self._closed = False

    def add(self, lines: LogLines) -> None:
        """Take lines, without waiting."""
        source = (lines.key, lines.client)
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
            self._waiting.append(LogLines(key=lines.key, client=lines.client, lines=tuple(taken)))
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

    async def _write(self, batch: list[LogLines]) -> None:
        asked: dict[tuple[AssignmentKey, str], bool] = {}
        async with self._database.write() as tx:
            for lines in batch:
                source = (lines.key, lines.client)
                if source not in asked:
                    asked[source] = await ledger.slot_state(tx, lines.key, lines.client) is not None
                    if not asked[source]:
                        log.warning("log lines of work that was not asked", client=lines.client, key=str(lines.key))
                if asked[source]:
                    await ledger.add_log(tx, lines)
