"""What the containers of tasks ask: the sites of their network, sub-tasks, and what has become of these.

A run asks for no more than its task could have asked for itself: of its own organisation, with its own image, from the
databases that its task named. Whoever asked for the task asked for its sub-tasks, and they end with the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import func, select

from runnel.common.errors import CapacityExceeded, Conflict, Forbidden, IllegalState, NotFound
from runnel.common.ids import new_id
from runnel.common.protocol import ENDED, BlobRef, Failure, NodeKind, ResultFile, RunResult, RunState
from runnel.common.tasks import Contract, TaskSpec, task_spec
from runnel.common.tasks.asks import LookAtTask, NewTask, Site, SitesAsk, SubRun, TaskAnswer, TaskAsk
from runnel.reducer.engine.engine import Engine
from runnel.reducer.store import run_files, task_ledger
from runnel.reducer.store.journal import Journal
from runnel.reducer.store.tables import RunFileRow, RunRow, TaskBlobRow, TaskRow
from runnel.reducer.store.task_ledger import Submission
from runnel.transport import NodeIdentity

SUB_TASK_BEGINS = timedelta(hours=1)
"""A sub-task that a site has not begun after so long fails there: somebody waits for it."""

MAX_SUB_TASKS = 10_000
"""That one run may ask for."""

_INPUT_KEPT = timedelta(hours=1)  # and as long as a task that names it has not ended
_MARGIN_S = 2.0  # before the deadline of who asks

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asker:
    run_id: str
    client: str
    organisation: str
    token_id: str
    user: str
    spec: TaskSpec


class RunAsks:
    """Answers containers; an ``AskHandler``.

    Args:
        engine: knows who is attached, and gives runs to sites.
        journal: the durable state.
    """

    def __init__(self, engine: Engine, journal: Journal) -> None:
        self._engine = engine
        self._journal = journal
        self._creating = asyncio.Lock()

    async def ask(self, identity: NodeIdentity, ask: TaskAsk, *, deadline_s: float) -> TaskAnswer:
        """Return the answer to what came by the attached node ``identity``.

        Raises:
            Forbidden: the run is not one of the client, or may not ask this; the client is not below ``identity``.
            IllegalState: the run has ended.
            NotFound: it has no such sub-task.
            InvalidInput: what it asks for can't be.
            CapacityExceeded: it asked for too much.
        """
        asker = await self._asker(identity, ask)
        match ask.body:
            case SitesAsk():
                return self._sites(asker)
            case NewTask() as new:
                async with self._creating:  # so that the same key twice at once is one task
                    return await self._create(asker, new)
            case LookAtTask() as look:
                return await self._look(asker, look, min(look.wait_s, deadline_s - _MARGIN_S))

    async def _asker(self, identity: NodeIdentity, ask: TaskAsk) -> _Asker:
        if identity.name not in self._engine.roster.ways(ask.client):
            raise Forbidden(
                f"{identity.name} asks for a run of {ask.client}, who is not below it.",
                run=ask.run_id,
                client=ask.client,
            )
        async with self._journal.database.read() as tx:
            run = (await task_ledger.runs_by_id(tx, [ask.run_id])).get(ask.run_id)
            task = await task_ledger.task_of_run(tx, ask.run_id)
        if run is None or task is None or run.client != ask.client:
            raise Forbidden(f"{ask.client} has no run {ask.run_id}.", run=ask.run_id, client=ask.client)
        if run.finished_at is not None:
            raise IllegalState(f"Run {ask.run_id} has ended, and asks for nothing any more.", run=ask.run_id)
        spec = task_spec(task.spec, source=f"task {task.id}")
        if not spec.central and spec.contract is not Contract.VANTAGE6:
            raise Forbidden(
                f"Run {ask.run_id} is of a task that is not central.",
                hint="Only central tasks ask for sub-tasks.",
                run=ask.run_id,
            )
        return _Asker(
            run_id=run.id,
            client=run.client,
            organisation=task.organisation_id,
            token_id=task.token_id,
            user=task.asked_by,
            spec=spec,
        )

    def _sites(self, asker: _Asker) -> TaskAnswer:
        members = self._engine.members(asker.organisation)
        names = {each.name for each in members if each.kind is NodeKind.CLIENT and each.task_slots}
        return TaskAnswer(sites=tuple(Site(name=name, attached=True) for name in sorted(names | {asker.client})))

    # ---- new tasks

    async def _create(self, asker: _Asker, new: NewTask) -> TaskAnswer:
        spec = task_spec(new.spec, source=f"run {asker.run_id}")
        _require_within(asker, spec)
        task_id = _sub_task_id(asker.run_id, new.idempotency_key)
        async with self._journal.database.read() as tx:
            known = await tx.get(TaskRow, task_id)
            asked = await tx.scalar(select(func.count()).where(TaskRow.parent_run == asker.run_id)) or 0
        if known is not None:
            if known.parent_run != asker.run_id:
                raise Conflict(f"The task {task_id} is another's.", hint="Ask with another key.")
            return TaskAnswer(task_id=task_id)
        if asked >= MAX_SUB_TASKS:
            raise CapacityExceeded(f"Run {asker.run_id} has asked for {asked:,} sub-tasks already.", run=asker.run_id)
        await self._take_inputs(asker, spec)
        await self._engine.tasks.start(
            Submission(
                task_id=task_id,
                organisation=asker.organisation,
                token_id=asker.token_id,
                user=asker.user,
                spec=spec,
                sites=tuple(dict.fromkeys(new.sites)),
                expires_at=datetime.now(UTC) + SUB_TASK_BEGINS,
                parent_run=asker.run_id,
            )
        )
        log.info("sub-task", run=asker.run_id, task=task_id, sites=len(new.sites))
        return TaskAnswer(task_id=task_id)

    async def _take_inputs(self, asker: _Asker, spec: TaskSpec) -> None:
        """Let files that the run pushed be inputs of its sub-task."""
        blobs = task_ledger.blobs_of(spec)
        if not blobs:
            return
        async with self._journal.transaction() as tx:
            pushed = await run_files.pushed(tx.session, asker.run_id)
            for blob in blobs:
                if pushed.get(blob.sha256) != blob.size_bytes:
                    continue  # stored by people, or not at all, which the ledger tells
                if await tx.session.get(TaskBlobRow, (asker.organisation, blob.sha256)) is None:
                    ref = BlobRef(sha256=blob.sha256, size_bytes=blob.size_bytes)
                    await run_files.add_blob(tx.session, asker.organisation, ref, keep=_INPUT_KEPT)

    # ---- what has become of them

    async def _look(self, asker: _Asker, look: LookAtTask, wait_s: float) -> TaskAnswer:
        with self._engine.tasks.endings.watching(look.task_id) as changed, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, wait_s)):
                while not _all_ended(await self._rows(asker, look.task_id)):
                    await changed.wait()
                    changed.clear()
        rows = await self._rows(asker, look.task_id)
        async with self._journal.database.read() as tx:
            files = await run_files.files_of(tx, [row.id for row in rows])
        runs = tuple(
            SubRun(
                run_id=row.id,
                site=row.client,
                state=row.state,
                result=None if row.finished_at is None else _result(row, files.get(row.id, ())),
            )
            for row in rows
        )
        return TaskAnswer(task_id=look.task_id, runs=runs)

    async def _rows(self, asker: _Asker, task_id: str) -> list[RunRow]:
        async with self._journal.database.read() as tx:
            task = await tx.get(TaskRow, task_id)
            if task is None or task.parent_run != asker.run_id:
                raise NotFound(f"Run {asker.run_id} has no sub-task {task_id}.", run=asker.run_id)
            return list(await tx.scalars(select(RunRow).where(RunRow.task_id == task_id).order_by(RunRow.client)))


def _require_within(asker: _Asker, spec: TaskSpec) -> None:
    """Refuse a sub-task that asks for more than its parent might have.

    Raises:
        Forbidden: what it asks for.
    """
    own = asker.spec
    odd = [
        what
        for what, beyond in (
            ("another contract", spec.contract is not own.contract),
            ("data instead of an image", not spec.executors),
            ("other images", {each.image for each in spec.executors} - {each.image for each in own.executors}),
            ("other databases", set(spec.databases) - set(own.databases)),
            ("other selections", [each for each in spec.selections if each not in own.selections]),
            ("another group", spec.group not in (None, own.group)),
            ("to be central itself", spec.central),
        )
        if beyond
    ]
    if odd:
        raise Forbidden(
            f"A sub-task of run {asker.run_id} asks for {', '.join(odd)}.",
            hint="It may have what the task that it comes from has.",
            run=asker.run_id,
        )


def _sub_task_id(run_id: str, key: str) -> str:
    """Return the id that a run's sub-task of this key has, whenever it is asked for."""
    digest = hashlib.sha256(f"{run_id}\0{key}".encode()).digest()
    return new_id("tsk", random=lambda bits: int.from_bytes(digest, "big") >> (256 - bits))


def _all_ended(rows: Sequence[RunRow]) -> bool:
    return all(RunState(row.state) in ENDED for row in rows)


def _result(row: RunRow, files: Sequence[RunFileRow]) -> RunResult:
    failure = None
    if row.error_code is not None:
        failure = Failure(code=row.error_code, message=row.error or "", log_tail="")
    return RunResult(
        failure=failure,
        exit_code=row.exit_code,
        files=tuple(
            ResultFile(
                name=str(file.name),
                media_type=file.media_type,
                blob=BlobRef(sha256=file.digest, size_bytes=file.size_bytes),
            )
            for file in files
        ),
        elapsed_s={name: float(each) for name, each in row.elapsed_s.items()},
        image_digest=row.image_digest,
        attempt=row.attempt,
    )
