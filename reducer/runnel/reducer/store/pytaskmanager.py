"""Sites, tasks and results by the integers of PyTaskManager's routes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from runnel.common.errors import NotFound
from runnel.reducer.store.pytaskmanager_tables import PtmResultRow, PtmSiteRow, PtmTaskRow

_MAX_NUMBER = 2**31 - 1


async def sites(tx: AsyncSession, organisation: str) -> list[PtmSiteRow]:
    """Return the sites of an organisation that have a number, in the order of these."""
    query = select(PtmSiteRow).where(PtmSiteRow.organisation_id == organisation).order_by(PtmSiteRow.id)
    return list(await tx.scalars(query))


async def site(tx: AsyncSession, organisation: str, number: int) -> PtmSiteRow:
    """Return a site.

    Raises:
        NotFound: there is none with this number in the organisation.
    """
    row = await tx.get(PtmSiteRow, number) if 0 < number <= _MAX_NUMBER else None
    if row is None or row.organisation_id != organisation:
        raise NotFound(f"There is no client {number}.", hint="GET client lists those there are.", client=number)
    return row


async def polling_site(tx: AsyncSession, organisation: str, name: str) -> PtmSiteRow | None:
    """Return the site of this name that only asks by HTTP."""
    query = select(PtmSiteRow).where(
        PtmSiteRow.organisation_id == organisation, PtmSiteRow.name == name, PtmSiteRow.node.is_(False)
    )
    found: PtmSiteRow | None = await tx.scalar(query)
    return found


async def number_nodes(tx: AsyncSession, organisation: str, names: Collection[str]) -> None:
    """Give those of the clients ``names`` a number that have none."""
    query = select(PtmSiteRow.name).where(PtmSiteRow.organisation_id == organisation, PtmSiteRow.node.is_(True))
    known = set(await tx.scalars(query))
    for name in sorted(set(names) - known):
        tx.add(PtmSiteRow(organisation_id=organisation, name=name, node=True, token_id=""))
        await tx.flush()  # one after the other: numbers in the order of the names


async def task(tx: AsyncSession, organisation: str, site_number: int, number: int) -> PtmTaskRow:
    """Return a task of a site.

    Raises:
        NotFound: the site has no task with this number.
    """
    row = await tx.get(PtmTaskRow, number) if 0 < number <= _MAX_NUMBER else None
    if row is None or row.organisation_id != organisation or row.site_id != site_number:
        raise NotFound(f"Client {site_number} has no task {number}.", client=site_number, task=number)
    return row


async def open_tasks(tx: AsyncSession, site_number: int) -> list[PtmTaskRow]:
    """Return the tasks of a site that were not seen to have ended, oldest first."""
    query = select(PtmTaskRow).where(PtmTaskRow.site_id == site_number, PtmTaskRow.ended.is_(False))
    return list(await tx.scalars(query.order_by(PtmTaskRow.id)))


async def add_task(
    tx: AsyncSession, of: PtmSiteRow, fields: Mapping[str, str], *, task_id: str | None, now: datetime
) -> int:
    """Add a task (``run_id``, ``image``, ``input``) and return its number; ``task_id``: of the network's task."""
    row = PtmTaskRow(
        organisation_id=of.organisation_id, site_id=of.id, task_id=task_id, ended=False, created_at=now, **fields
    )
    tx.add(row)
    await tx.flush()
    return row.id


async def results(tx: AsyncSession, task_number: int) -> list[PtmResultRow]:
    """Return what a site that only asks by HTTP told of a task, oldest first."""
    query = select(PtmResultRow).where(PtmResultRow.ptm_task_id == task_number).order_by(PtmResultRow.id)
    return list(await tx.scalars(query))


async def add_result(tx: AsyncSession, of: PtmTaskRow, *, response: str, log: str, now: datetime) -> int:
    """Add a result, which ends the task, and return its number; the same one again adds nothing."""
    for known in await results(tx, of.id):
        if (known.response, known.log) == (response, log):
            return known.id
    row = PtmResultRow(ptm_task_id=of.id, response=response, log=log, created_at=now)
    tx.add(row)
    of.ended = True
    await tx.flush()
    return row.id
