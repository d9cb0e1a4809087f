"""Tasks in a database, without a network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from runnel.common.protocol import NodeKind
from runnel.common.tasks import TaskSpec
from runnel.reducer.domain.tasks import OpenRun
from runnel.reducer.store import access, task_ledger
from runnel.reducer.store.journal import Journal
from runnel.reducer.store.task_ledger import Submission

_NUMBERS = itertools.count()


async def join_sites(tx: AsyncSession, *names: str, organisation: str = "default") -> None:
    """Let clients be known."""
    for name in names:
        await access.note_joined(tx, name, f"id-{name}", NodeKind.CLIENT.value, organisation, "", attached=False)


async def add_task(
    journal: Journal, *sites: str, expires_at: datetime | None = None, parent_run: str = "", **spec: Any
) -> list[OpenRun]:
    """Store a task at sites that are known from now on; return its runs."""
    number = next(_NUMBERS)
    described = TaskSpec.model_validate({"executors": [{"image": "analysis:1"}]} | spec)
    async with journal.transaction() as tx:
        await join_sites(tx.session, *sites)
        await tx.session.flush()
        wanted = Submission(
            task_id=f"tsk-{number:04d}",
            organisation="default",
            token_id="tok-1",
            user="somebody",
            spec=described,
            sites=tuple(sites),
            expires_at=expires_at,
            parent_run=parent_run,
        )
        return await task_ledger.add_task(tx, wanted, _ids(number, sites))


def _ids(number: int, sites: Sequence[str]) -> Any:
    return iter([f"run-{number:04d}-{site}" for site in sites])
