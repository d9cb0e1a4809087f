"""The ledger of tasks: what was asked, how far each run is, and its one end."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from runnel.common.errors import InvalidInput
from runnel.common.protocol import ENDED, NodeKind, RunResult, RunState, TaskNews, TaskOrder, TaskRelease
from runnel.common.tasks import Blob, TaskSpec
from runnel.reducer.domain.task_views import TaskStatus
from runnel.reducer.domain.tasks import OpenRun, moves
from runnel.reducer.store import run_files
from runnel.reducer.store.access import batches
from runnel.reducer.store.journal import Transaction
from runnel.reducer.store.tables import NodeRow, RunRow, TaskBlobRow, TaskInputRow, TaskRow, TaskTagRow

_SHOWN = 20
_ENDED = tuple(state.value for state in ENDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What somebody asks: ``spec`` at ``sites``. ``token_id`` and ``user``: who; ``parent_run``: of a sub-task."""

    task_id: str
    organisation: str
    token_id: str
    user: str
    spec: TaskSpec
    sites: tuple[str, ...]
    expires_at: datetime | None
    parent_run: str = ""


def blobs_of(spec: TaskSpec) -> list[Blob]:
    """Return the files that a description names and does not have within."""
    contents = [spec.payload, *(each.content for each in spec.inputs)]
    return [content.blob for content in contents if content is not None and content.blob is not None]


def open_run(run: RunRow, task: TaskRow) -> OpenRun:
    """Return a run that has not ended, as it is given out."""
    return OpenRun(
        run_id=run.id,
        task_id=task.id,
        client=run.client,
        submitter=f"{task.organisation_id}/{task.token_id}",
        state=RunState(run.state),
        expires_at=None if task.expires_at is None else task.expires_at.timestamp(),
        sub=bool(task.parent_run),
        asked_at=run.created_at.timestamp(),
    )


async def add_task(tx: Transaction, wanted: Submission, new_run_ids: Iterator[str]) -> list[OpenRun]:
    """Store a task with a queued run for each site.

    Raises:
        InvalidInput: a site is no client of the organisation, or a blob is not there; all are named.
    """
    await _require_sites(tx.session, wanted.organisation, wanted.sites)
    blobs = {blob.sha256: blob.size_bytes for blob in blobs_of(wanted.spec)}
    await _require_blobs(tx.session, wanted.organisation, blobs)
    now = datetime.now(UTC)
    task = TaskRow(
        id=wanted.task_id,
        organisation_id=wanted.organisation,
        name=wanted.spec.name,
        token_id=wanted.token_id,
        asked_by=wanted.user,
        spec=wanted.spec.as_json(),
        status=TaskStatus.QUEUED.value,
        parent_run=wanted.parent_run,
        created_at=now,
        expires_at=wanted.expires_at,
    )
    tx.session.add(task)
    await tx.session.flush()
    tx.session.add_all(TaskInputRow(task_id=task.id, digest=digest) for digest in blobs)
    tx.session.add_all(
        TaskTagRow(task_id=task.id, key=key[:200], value=value) for key, value in wanted.spec.tags.items()
    )
    runs = [
        RunRow(
            id=run_id,
            task_id=task.id,
            organisation_id=wanted.organisation,
            client=site,
            state=RunState.QUEUED.value,
            detail="",
            created_at=now,
            image_digest="",
            attempt=1,
            released_by="",
            released_why="",
        )
        for site, run_id in zip(wanted.sites, new_run_ids, strict=False)
    ]
    tx.session.add_all(runs)
    await tx.record(
        "task.created",
        wanted.organisation,
        task.id,
        name=task.name,
        sites=list(wanted.sites),
        user=wanted.user,
        by=wanted.token_id,
    )
    return [open_run(run, task) for run in runs]


async def _require_sites(tx: AsyncSession, organisation: str, sites: Sequence[str]) -> None:
    known: set[str] = set()
    for names in batches(sites):
        query = select(NodeRow.name).where(
            NodeRow.name.in_(names), NodeRow.organisation_id == organisation, NodeRow.kind == NodeKind.CLIENT.value
        )
        known |= set(await tx.scalars(query))
    # Those of other organisations are told like those that are not there: their names are not everybody's to know.
    if unknown := [site for site in sites if site not in known]:
        named = ", ".join(unknown[:_SHOWN]) + (" …" if len(unknown) > _SHOWN else "")
        raise InvalidInput(
            f"No client of the organisation {organisation} has joined this network under the name: {named}.",
            hint="`runnel node list` shows those that have.",
            sites=named,
        )


async def _require_blobs(tx: AsyncSession, organisation: str, blobs: Mapping[str, int]) -> None:
    if not blobs:
        return
    query = select(TaskBlobRow.digest, TaskBlobRow.size_bytes).where(
        TaskBlobRow.organisation_id == organisation, TaskBlobRow.digest.in_(blobs)
    )
    found = {row.digest: row.size_bytes for row in await tx.execute(query)}
    for digest, size in blobs.items():
        if found.get(digest) != size:
            raise InvalidInput(
                f"The task names a file of {size:,} bytes with the SHA-256 {digest}, which is not stored here.",
                hint="Store it first: POST /api/v1/blobs.",
                sha256=digest,
            )


# ---- what is open


async def open_runs(tx: AsyncSession) -> list[OpenRun]:
    """Return the runs that have not ended, oldest first."""
    query = (
        select(RunRow, TaskRow)
        .join(TaskRow, TaskRow.id == RunRow.task_id)
        .where(RunRow.finished_at.is_(None))
        .order_by(RunRow.created_at, RunRow.task_id, RunRow.id)
    )
    return [open_run(run, task) for run, task in await tx.execute(query)]


async def orders(tx: AsyncSession, run_ids: Collection[str]) -> list[TaskOrder]:
    """Return what clients are sent for those of the runs that have not ended, in the order of ``run_ids``."""
    found: dict[str, TaskOrder] = {}
    for some in batches(run_ids):
        query = select(RunRow, TaskRow).join(TaskRow, TaskRow.id == RunRow.task_id)
        for run, task in await tx.execute(query.where(RunRow.id.in_(some), RunRow.finished_at.is_(None))):
            found[run.id] = TaskOrder(
                run_id=run.id,
                client=run.client,
                task_id=task.id,
                organisation=task.organisation_id,
                user=task.asked_by,
                spec=task.spec,
                expires_at_ms=None if task.expires_at is None else max(1, int(task.expires_at.timestamp() * 1000)),
                parent_run=task.parent_run,
            )
    return [found[run_id] for run_id in run_ids if run_id in found]


async def runs_by_id(tx: AsyncSession, run_ids: Iterable[str]) -> dict[str, RunRow]:
    """Return those of the runs that there are, by id."""
    found: dict[str, RunRow] = {}
    for some in batches(dict.fromkeys(run_ids)):
        found |= {row.id: row for row in await tx.scalars(select(RunRow).where(RunRow.id.in_(some)))}
    return found


async def task_of_run(tx: AsyncSession, run_id: str) -> TaskRow | None:
    """Return the task of a run."""
    query = select(TaskRow).join(RunRow, RunRow.task_id == TaskRow.id).where(RunRow.id == run_id)
    return await tx.scalar(query)


async def releases(tx: AsyncSession, run_ids: Collection[str]) -> list[TaskRelease]:
    """Return what was decided from afar about those of the runs that still await release."""
    rows = await runs_by_id(tx, run_ids)
    return [
        release_of(row)
        for row in rows.values()
        if row.released is not None and row.state == RunState.AWAITING_RELEASE.value
    ]


def release_of(row: RunRow) -> TaskRelease:
    """Return what was decided from afar about a run's results."""
    return TaskRelease(
        run_id=row.id,
        client=row.client,
        release=bool(row.released),
        user=row.released_by,
        reason=row.released_why,
    )


# ---- how far runs are


async def take_news(tx: Transaction, run: RunRow, news: TaskNews, *, keep: timedelta | None) -> bool:
    """Enter what a client says of its run; return whether that moved it.

    Args:
        tx: a write transaction.
        run: as it is stored.
        news: of this run.
        keep: for how long its files are kept; None: for ever.

    Raises:
        InvalidInput: it names files that did not come. Nothing is changed.
    """
    if not moves(RunState(run.state), news.state):
        return False
    if news.result is None:
        run.state, run.detail = news.state.value, news.detail
        if run.started_at is None and news.state is not RunState.ASSIGNED:
            run.started_at = datetime.now(UTC)
        await _moved(tx, run)
        if news.state is RunState.ASSIGNED:
            await _running(tx.session, run.task_id)
        return True
    await run_files.name_files(tx.session, run.id, news.result.files)
    await end(tx, run, news.state, news.result, detail=news.detail, keep=keep)
    return True


async def end(
    tx: Transaction, run: RunRow, state: RunState, result: RunResult, *, detail: str = "", keep: timedelta | None = None
) -> None:
    """Enter the end of a run, which has not ended; what it pushed and does not name is given up."""
    now = datetime.now(UTC)
    failure = result.failure
    run.state, run.detail, run.finished_at = state.value, detail, now
    run.exit_code, run.image_digest, run.attempt = result.exit_code, result.image_digest, result.attempt
    run.elapsed_s = dict(result.elapsed_s)
    if failure is not None:
        run.error_code, run.error, run.log_tail = failure.code[:64], failure.message, failure.log_tail
    if keep is not None:
        run.kept_until = now + keep
    await run_files.drop_unnamed(tx.session, [run.id])
    await _moved(tx, run)
    await _conclude(tx, run.task_id)


async def _moved(tx: Transaction, run: RunRow) -> None:
    told = {} if run.error_code is None else {"error_code": run.error_code}
    if run.exit_code is not None:
        told["exit_code"] = str(run.exit_code)
    await tx.record("run.state", run.organisation_id, run.task_id, run=run.id, site=run.client, state=run.state, **told)


async def _running(tx: AsyncSession, task_id: str) -> None:
    waiting = (TaskRow.id == task_id, TaskRow.status == TaskStatus.QUEUED.value)
    await tx.execute(update(TaskRow).where(*waiting).values(status=TaskStatus.RUNNING.value))


async def _conclude(tx: Transaction, task_id: str) -> None:
    """Bring a task's status up to date after one of its runs has ended."""
    await tx.session.flush()
    query = select(RunRow.state, func.count()).where(RunRow.task_id == task_id).group_by(RunRow.state)
    states = {RunState(state): int(count) for state, count in await tx.session.execute(query)}
    task = await tx.session.get_one(TaskRow, task_id)
    status = status_of(states)
    if task.status == status.value:
        return
    task.status = status.value
    if status.ended:
        task.finished_at = datetime.now(UTC)
        await tx.record("task.ended", task.organisation_id, task.id, status=status.value)


def status_of(states: Mapping[RunState, int]) -> TaskStatus:
    """Return where a task is, given how many of its runs are in which state.

    >>> status_of({RunState.QUEUED: 2}), status_of({RunState.DONE: 1, RunState.QUEUED: 1})
    (<TaskStatus.QUEUED: 'queued'>, <TaskStatus.RUNNING: 'running'>)
    """
    present = {state for state, count in states.items() if count}
    if present <= {RunState.QUEUED}:
        return TaskStatus.QUEUED
    if not present <= ENDED:
        return TaskStatus.RUNNING
    if present == {RunState.DONE}:
        return TaskStatus.DONE
    return TaskStatus.CANCELLED if RunState.CANCELLED in present else TaskStatus.FAILED


async def unfinished(tx: AsyncSession, task_id: str) -> list[RunRow]:
    """Return the runs of a task that have not ended, by client."""
    query = select(RunRow).where(RunRow.task_id == task_id, RunRow.state.not_in(_ENDED))
    return list(await tx.scalars(query.order_by(RunRow.client)))


async def unfinished_below(tx: AsyncSession, run_ids: Collection[str]) -> list[RunRow]:
    """Return the runs of sub-tasks of these runs that have not ended."""
    query = (
        select(RunRow)
        .join(TaskRow, TaskRow.id == RunRow.task_id)
        .where(TaskRow.parent_run.in_(run_ids), RunRow.state.not_in(_ENDED))
    )
    return list(await tx.scalars(query.order_by(RunRow.id)))
