"""The reducer's answers to people about tasks: :class:`runnel.reducer.service.TaskService`."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from runnel.common.errors import InvalidInput
from runnel.common.ids import new_id
from runnel.common.protocol import BlobRef, NodeKind
from runnel.common.tasks import MAX_SPEC, TaskSpec
from runnel.reducer.authority import READERS, RESEARCHERS, require
from runnel.reducer.domain.datasets import DatasetDetails, DatasetView, together, usual
from runnel.reducer.domain.task_views import BlobView, RunFileView, RunLineView, RunView, TaskFilter, TaskView
from runnel.reducer.domain.values import Page, Role
from runnel.reducer.engine.engine import Engine
from runnel.reducer.service import ALL_SITES, Caller
from runnel.reducer.store import access, catalogues, registry, run_files, run_lines, task_lists
from runnel.reducer.store.blobs import Blobs
from runnel.reducer.store.journal import Journal
from runnel.reducer.store.tables import RunRow
from runnel.reducer.store.task_ledger import Submission
from runnel.reducer.uploads import removed

TASK_PREFIX = "tsk-"
"""The ids of tasks begin so."""

MAX_SITES = 10_000
"""Sites of one task."""

DEFAULT_EXPIRY_S = 7 * 86_400.0
MAX_EXPIRY_S = 365 * 86_400.0


class TaskOperations:
    """See :class:`runnel.reducer.service.TaskService`.

    Args:
        engine: gives the runs to the sites.
        journal: the durable state.
        blobs: files of tasks.
        max_blob_bytes: of a file that is stored for tasks.
    """

    def __init__(self, *, engine: Engine, journal: Journal, blobs: Blobs, max_blob_bytes: int) -> None:
        self._engine = engine
        self._journal = journal
        self._blobs = blobs
        self._max_blob_bytes = max_blob_bytes

    async def add_blob(self, caller: Caller, body: AsyncIterator[bytes]) -> BlobView:
        """Store a file that tasks are to name."""
        require(caller, RESEARCHERS)
        ref = await self._blobs.files.put_stream(body, limit_bytes=self._max_blob_bytes)
        try:
            await self._blobs.keep(ref.sha256)
            async with self._journal.transaction() as tx:
                await access.ensure_organisation(tx.session, caller.organisation)
                # Within the transaction that names it: nobody removes it then.
                if not await asyncio.to_thread(self._blobs.lasts, ref.sha256):
                    raise removed(ref)
                return await run_files.add_blob(tx.session, caller.organisation, ref, keep=self._engine.tasks.keep)
        except BaseException:
            async with self._journal.database.write() as session:
                if not await registry.is_used(session, ref.sha256):
                    await self._blobs.discard(ref.sha256)
            raise

    async def start_task(
        self, caller: Caller, *, spec: TaskSpec, sites: Sequence[str], expires_in_s: float | None = None
    ) -> TaskView:
        """Have ``spec`` run once at each of ``sites``."""
        require(caller, RESEARCHERS)
        expiry_s = DEFAULT_EXPIRY_S if expires_in_s is None else expires_in_s
        if not 0 < expiry_s <= MAX_EXPIRY_S:
            raise InvalidInput(f"A task expires after up to {MAX_EXPIRY_S:,.0f} seconds, not {expiry_s:g}.")
        if len(spec.as_json()) > MAX_SPEC:
            raise InvalidInput(f"A task has at most {MAX_SPEC:,} characters.", hint="Store larger files as blobs.")
        wanted = Submission(
            task_id=new_id(TASK_PREFIX.rstrip("-")),
            organisation=caller.organisation,
            token_id=caller.token_id,
            user=await self._user(caller),
            spec=spec,
            sites=self._sites(caller, sites),
            expires_at=datetime.now(UTC) + timedelta(seconds=expiry_s),
        )
        await self._engine.tasks.start(wanted)
        return await self.task(caller, wanted.task_id)

    async def _user(self, caller: Caller) -> str:
        async with self._journal.database.read() as tx:
            return await access.token_name(tx, caller.token_id)

    @staticmethod
    async def _own(tx: AsyncSession, caller: Caller) -> str | None:
        """Return whose tasks there are for the caller; None: those of all."""
        return await access.token_name(tx, caller.token_id) if caller.role is Role.RESEARCHER else None

    async def _find_run(self, tx: AsyncSession, caller: Caller, run: str) -> RunRow:
        return await task_lists.find_run(tx, caller.organisation, run, user=await self._own(tx, caller))

    def _sites(self, caller: Caller, sites: Sequence[str]) -> tuple[str, ...]:
        if tuple(sites) == (ALL_SITES,):
            members = self._engine.members(caller.organisation)
            found = sorted(each.name for each in members if each.kind is NodeKind.CLIENT and each.task_slots)
            if not found:
                raise InvalidInput(
                    "No client that takes tasks is attached now.", hint="Name the sites: they may be away."
                )
            return tuple(found)
        if not 0 < len(sites) <= MAX_SITES:
            raise InvalidInput(f"A task has 1 to {MAX_SITES:,} sites, not {len(sites):,}.")
        twice = sorted(site for site, times in Counter(sites).items() if times > 1)
        if twice:
            raise InvalidInput(f"Named twice: {', '.join(twice[:20])}.", hint="A task runs once at each site.")
        return tuple(sites)

    async def tasks(self, caller: Caller, wanted: TaskFilter, cursor: str | None, limit: int) -> Page[TaskView]:
        """List tasks, newest first, without their runs."""
        require(caller, READERS)
        described = caller.role in RESEARCHERS
        async with self._journal.database.read() as tx:
            user = await self._own(tx, caller)
            return await task_lists.tasks(
                tx, caller.organisation, wanted, cursor, limit, described=described, user=user
            )

    async def task(self, caller: Caller, task: str) -> TaskView:
        """Return one task with its runs."""
        require(caller, READERS)
        async with self._journal.database.read() as tx:
            row = await task_lists.find_task(tx, caller.organisation, task, user=await self._own(tx, caller))
            return await task_lists.one_task(tx, row, described=caller.role in RESEARCHERS)

    async def cancel_task(self, caller: Caller, task: str) -> TaskView:
        """End what has not ended of a task and of its sub-tasks."""
        require(caller, RESEARCHERS)
        async with self._journal.database.read() as tx:
            task_id = (await task_lists.find_task(tx, caller.organisation, task, user=await self._own(tx, caller))).id
            user = await access.token_name(tx, caller.token_id)
        await self._engine.tasks.cancel(task_id, f"cancelled by {user}" if user else "cancelled")
        return await self.task(caller, task_id)

    async def run(self, caller: Caller, run: str) -> RunView:
        """Return one run."""
        require(caller, READERS)
        async with self._journal.database.read() as tx:
            return await task_lists.one_run(tx, await self._find_run(tx, caller, run))

    async def run_logs(self, caller: Caller, run: str, cursor: str | None, limit: int) -> Page[RunLineView]:
        """Return what a run wrote so far, oldest first."""
        require(caller, RESEARCHERS)
        async with self._journal.database.read() as tx:
            row = await self._find_run(tx, caller, run)
            return await run_lines.lines_of(tx, row.id, cursor, limit)

    @asynccontextmanager
    async def run_file(self, caller: Caller, run: str, name: str) -> AsyncIterator[tuple[RunFileView, Path]]:
        """Give a result file."""
        require(caller, RESEARCHERS)
        async with self._journal.database.read() as tx:
            row = await self._find_run(tx, caller, run)
            view = task_lists.file_view(await run_files.require_file(tx, row, name))
        async with self._blobs.held(BlobRef(sha256=view.sha256, size_bytes=view.size_bytes)) as file:
            yield view, file

    async def release_run(
        self, caller: Caller, run: str, *, release: bool, reason: str = "", once: bool = False
    ) -> RunView:
        """Tell the site what the caller decides about results that await release."""
        require(caller, RESEARCHERS)
        async with self._journal.database.read() as tx:
            run_id = (await self._find_run(tx, caller, run)).id
            user = await access.token_name(tx, caller.token_id)
        await self._engine.tasks.release(run_id, release=release, user=user, reason=reason, once=once)
        return await self.run(caller, run_id)

    async def datasets(self, caller: Caller) -> Sequence[DatasetView]:
        """List what sites publish of their data."""
        require(caller, READERS)
        async with self._journal.database.read() as tx:
            found = await catalogues.listed(tx, caller.organisation)
        return [
            DatasetView(
                id=dataset,
                title=usual(each.title for each in said),
                creator=usual(each.creator for each in said),
                description=usual(each.description for each in said),
                sites=tuple(each.site for each in said),
            )
            for dataset, group in itertools.groupby(found, lambda each: each.id)
            for said in [list(group)]
        ]

    async def dataset(self, caller: Caller, dataset: str) -> DatasetDetails:
        """Return a dataset as its sites describe it."""
        require(caller, READERS)
        async with self._journal.database.read() as tx:
            at_sites = await catalogues.at_sites(tx, caller.organisation, dataset)
        if not at_sites:
            raise registry.not_there("dataset", dataset[:100])
        return await asyncio.to_thread(together, dataset, at_sites)
