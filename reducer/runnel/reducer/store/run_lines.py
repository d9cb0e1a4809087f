"""Lines that runs write, for who watches them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from runnel.common.errors import InvalidInput
from runnel.common.protocol import LogLine
from runnel.reducer.domain.task_views import RunLineView
from runnel.reducer.domain.values import Page
from runnel.reducer.store.pages import decode_cursor, encode_cursor
from runnel.reducer.store.tables import RunLineRow, RunRow


async def is_run_of(tx: AsyncSession, run_id: str, client: str) -> bool:
    """Whether there is this run, of this client."""
    return await tx.scalar(select(RunRow.client).where(RunRow.id == run_id)) == client


async def add_lines(tx: AsyncSession, run_id: str, lines: Sequence[LogLine]) -> None:
    """Store lines of a run."""
    rows = [
        {
            "run_id": run_id,
            "at": datetime.fromtimestamp(line.at_ms / 1000, UTC),
            "stream": line.stream,
            "text": line.text,
        }
        for line in lines
    ]
    if rows:
        await tx.execute(insert(RunLineRow), rows)


async def lines_of(tx: AsyncSession, run_id: str, cursor: str | None, limit: int) -> Page[RunLineView]:
    """Return stored lines of a run, oldest first."""
    query = select(RunLineRow).where(RunLineRow.run_id == run_id).order_by(RunLineRow.id).limit(limit + 1)
    if cursor is not None:
        after = decode_cursor(cursor)[0]
        if not isinstance(after, int) or not 0 <= after < 1 << 63:
            raise InvalidInput(f"{cursor!r} is no cursor of this listing.", hint="Use `next` of the page before.")
        query = query.where(RunLineRow.id > after)
    rows = list(await tx.scalars(query))
    items = tuple(
        RunLineView(id=row.id, run=row.run_id, at=row.at, stream=row.stream, text=row.text) for row in rows[:limit]
    )
    return Page(items=items, next_cursor=encode_cursor(items[-1].id) if len(rows) > limit else None)
