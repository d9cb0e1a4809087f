"""What PyTaskManager's master offers, on this network: its sites and tasks by integers, its results as two texts.

The network's own clients are sites here, and their tasks the network's. A site that runs PyTaskManager's client instead
of this one asks for its tasks by HTTP and tells their results so: its tasks are known only here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncSession

from runnel.common.errors import Conflict, Forbidden, IllegalState, TooLarge
from runnel.common.tasks import MAX_WITHIN, Blob
from runnel.common.tasks.pytaskmanager import pytaskmanager_task
from runnel.reducer.authority import RESEARCHERS, require
from runnel.reducer.domain.task_views import RunView
from runnel.reducer.domain.values import NodeView, Page, Role
from runnel.reducer.service import Caller, TaskService
from runnel.reducer.store import access
from runnel.reducer.store import pytaskmanager as store
from runnel.reducer.store.journal import Journal
from runnel.reducer.store.pytaskmanager_tables import PtmSiteRow, PtmTaskRow
from runnel.reducer.store.tables import NodeRow

_REGISTRARS = RESEARCHERS | {Role.CLIENT}
_PAGE = 1000
_MAX_TEXT = 32 << 20
_INTERNAL_LOG = "=======================INTERNAL FILE LOG====================="
_NODE = "client"


@dataclass(frozen=True, slots=True, kw_only=True)
class PtmSite:
    """A site. ``ip``: where it registered from; None of the network's own clients."""

    id: int
    name: str
    email: str | None
    institute: str | None
    country: str | None
    ip: str | None
    last_seen: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PtmTask:
    """A task that has no result yet."""

    id: int
    run_id: str
    input: str
    image: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PtmResult:
    """What a task gave: ``response`` is its output, ``log`` what it printed and its own log."""

    id: int
    task: int
    response: str
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What a site says of itself."""

    name: str
    email: str
    institute: str
    country: str


class TaskNetwork(TaskService, Protocol):
    """What it needs of :class:`runnel.reducer.service.ReducerService`."""

    async def nodes(self, caller: Caller, cursor: str | None, limit: int) -> Page[NodeView]:
        """List clients and combiners by name."""


class PtmMaster:
    """The master that PyTaskManager's scripts and clients see.

    Args:
        service: starts the tasks and has their results.
        journal: has the numbers.
    """

    def __init__(self, service: TaskNetwork, journal: Journal) -> None:
        self._service = service
        self._journal = journal

    async def sites(self, caller: Caller) -> list[PtmSite]:
        """Return the sites of the caller's organisation; each of its clients gets a number by that."""
        require(caller, RESEARCHERS)
        nodes = await self._nodes(caller)
        async with self._journal.transaction() as tx:
            await store.number_nodes(tx.session, caller.organisation, nodes.keys())
            return [_site(row, nodes.get(row.name)) for row in await store.sites(tx.session, caller.organisation)]

    async def register(self, caller: Caller, said: Registration, *, address: str) -> int:
        """Add a site that asks by HTTP and return its number; one that comes again with its token keeps it.

        Raises:
            Conflict: a client of the network, or a site with another token, has the name.
        """
        require(caller, _REGISTRARS)
        async with self._journal.transaction() as tx:
            node = await tx.session.get(NodeRow, said.name)
            if node is not None and node.organisation_id == caller.organisation:
                raise Conflict(
                    f"{said.name!r} is a client of this network: it gets its tasks from there.",
                    hint="GET client tells its number.",
                    name=said.name,
                )
            await access.ensure_organisation(tx.session, caller.organisation)
            row = await store.polling_site(tx.session, caller.organisation, said.name)
            if row is None:
                row = PtmSiteRow(
                    organisation_id=caller.organisation, name=said.name, node=False, token_id=caller.token_id
                )
                tx.session.add(row)
            elif row.token_id != caller.token_id:
                raise Conflict(f"Another site is registered as {said.name!r}.", hint="Choose another name.")
            row.email, row.institute, row.country = said.email, said.institute, said.country
            row.ip, row.last_seen = address, datetime.now(UTC)
            await tx.session.flush()
            return row.id

    async def open_tasks(self, caller: Caller, site: int) -> list[PtmTask]:
        """Return the tasks of a site that have no result, oldest first.

        Raises:
            NotFound: there is no such site.
            Forbidden: it is another site's token.
        """
        require(caller, _REGISTRARS)
        async with self._journal.transaction() as tx:
            row = await self._of(tx.session, caller, site)
            if not row.node and row.token_id == caller.token_id:
                row.last_seen = datetime.now(UTC)
            tasks = await store.open_tasks(tx.session, site)
        if row.node:
            tasks = [each for each in tasks if await self._ended(caller, each) is None]
        return [PtmTask(id=each.id, run_id=each.run_id, input=each.input, image=each.image) for each in tasks]

    async def add_task(
        self, caller: Caller, site: int, *, run_id: str, image: str, text: str, profile: str | None
    ) -> int:
        """Have an image run at a site and return the number of the task.

        Raises:
            NotFound: there is no such site.
            InvalidInput: it is no task.
        """
        require(caller, RESEARCHERS)
        async with self._journal.database.read() as tx:
            row = await store.site(tx, caller.organisation, site)
        data = text.encode()
        content: bytes | Blob = data
        if row.node and len(data) > MAX_WITHIN:
            stored = await self._service.add_blob(caller, _blocks(data))
            content = Blob(sha256=stored.sha256, size_bytes=stored.size_bytes)
        spec = pytaskmanager_task(
            image=image,
            run_id=run_id,
            text=content if row.node else b"",
            profile=profile,
            source="the request",
            name=f"{image} ({run_id})"[:200],
        )
        task_id = None
        if row.node:
            task_id = (await self._service.start_task(caller, spec=spec, sites=(row.name,))).task
        fields = {"run_id": run_id, "image": image, "input": text}
        async with self._journal.transaction() as writing:
            return await store.add_task(writing.session, row, fields, task_id=task_id, now=datetime.now(UTC))

    async def results(self, caller: Caller, site: int, task: int) -> list[PtmResult]:
        """Return the results of a task, none while it has not ended.

        Raises:
            NotFound: there is no such task.
            Gone: its results were removed, as their time was over.
            TooLarge: a text has more than 32 MiB.
        """
        require(caller, RESEARCHERS)
        async with self._journal.database.read() as tx:
            row = await store.task(tx, caller.organisation, site, task)
            told = await store.results(tx, task)
        if row.task_id is None:
            return [PtmResult(id=each.id, task=task, response=each.response, log=each.log) for each in told]
        run = await self._ended(caller, row)
        if run is None:
            return []
        response, out, err, own = [
            await self._text(caller, run, name) for name in ("output", "stdout", "stderr", "log")
        ]
        if run.error:
            err = f"{err}\r\n{run.error}"
        log = f"{out}\r\n{err}{_INTERNAL_LOG}{own}"
        return [PtmResult(id=task, task=task, response=response, log=log)]

    async def add_result(self, caller: Caller, site: int, task: int, *, response: str, log: str) -> int:
        """Take the result of a site that asks by HTTP and return its number; the same one again is the first.

        Raises:
            NotFound: there is no such task.
            IllegalState: the site is a client of the network, which tells its results itself.
        """
        require(caller, _REGISTRARS)
        async with self._journal.transaction() as tx:
            row = await self._of(tx.session, caller, site)
            if row.node:
                raise IllegalState(f"{row.name!r} is a client of this network, which tells its results there.")
            if row.token_id == caller.token_id:
                row.last_seen = datetime.now(UTC)
            of = await store.task(tx.session, caller.organisation, site, task)
            return await store.add_result(tx.session, of, response=response, log=log, now=datetime.now(UTC))

    async def _of(self, tx: AsyncSession, caller: Caller, site: int) -> PtmSiteRow:
        row = await store.site(tx, caller.organisation, site)
        if caller.role is Role.CLIENT and (row.node or row.token_id != caller.token_id):
            raise Forbidden(f"Client {site} was not registered with this token.", client=site)
        return row

    async def _ended(self, caller: Caller, row: PtmTaskRow) -> RunView | None:
        assert row.task_id is not None
        run = (await self._service.task(caller, row.task_id)).runs[0]
        if run.finished_at is None:
            return None
        if not row.ended:
            async with self._journal.transaction() as tx:
                (await store.task(tx.session, row.organisation_id, row.site_id, row.id)).ended = True
        return run

    async def _nodes(self, caller: Caller) -> dict[str, NodeView]:
        found: dict[str, NodeView] = {}
        cursor: str | None = None
        while True:
            page = await self._service.nodes(caller, cursor, _PAGE)
            for node in page.items:
                if node.kind == _NODE and node.organisation == caller.organisation:
                    found[node.name] = node
            if (cursor := page.next_cursor) is None:
                return found

    async def _text(self, caller: Caller, run: RunView, name: str) -> str:
        if name not in {file.name for file in run.files}:
            return ""
        async with self._service.run_file(caller, run.run, name) as (view, path):
            if view.size_bytes > _MAX_TEXT:
                raise TooLarge(
                    f"{name} of run {run.run} has {view.size_bytes:,} bytes; as text at most {_MAX_TEXT:,} are told.",
                    hint=f"Get the file: runnel task results {run.task}.",
                    run=run.run,
                )
            return (await asyncio.to_thread(path.read_bytes)).decode(errors="replace")


def _site(row: PtmSiteRow, node: NodeView | None) -> PtmSite:
    seen = node.last_seen_at if row.node and node is not None else row.last_seen
    return PtmSite(
        id=row.id,
        name=row.name,
        email=row.email,
        institute=row.institute,
        country=row.country,
        ip=row.ip,
        last_seen=seen,
    )


async def _blocks(data: bytes) -> AsyncIterator[bytes]:
    yield data
