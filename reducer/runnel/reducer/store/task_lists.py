"""Tasks and runs as values for people: found by id, listed, and with what belongs to them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from runnel.common.protocol import RunState
from runnel.common.tasks import TaskSpec, task_spec
from runnel.reducer.domain.task_views import RunFileView, RunView, TaskFilter, TaskStatus, TaskView
from runnel.reducer.domain.values import Page
from runnel.reducer.store import run_files
from runnel.reducer.store.pages import after_cursor, page_of
from runnel.reducer.store.registry import by_prefix, not_there
from runnel.reducer.store.tables import RunFileRow, RunRow, TaskRow, TaskTagRow

_LISTS_RUNS = "runnel task show TASK"


async def find_task(tx: AsyncSession, organisation: str, task: str, *, user: str | None = None) -> TaskRow:
    """Return the task whose id starts with ``task``; ``user``: for whom only their own are there."""
    row: TaskRow = await by_prefix(tx, TaskRow, TaskRow.id, organisation, task, "task")
    if user not in {None, row.asked_by}:
        raise not_there("task", task)
    return row


async def find_run(tx: AsyncSession, organisation: str, run: str, *, user: str | None = None) -> RunRow:
    """Return the run whose id starts with ``run``; ``user``: for whom only those of their own tasks are there."""
    row: RunRow = await by_prefix(tx, RunRow, RunRow.id, organisation, run, "run", listed_by=_LISTS_RUNS)
    if user is not None and (await tx.get_one(TaskRow, row.task_id)).asked_by != user:
        raise not_there("run", run, listed_by=_LISTS_RUNS)
    return row


def file_view(row: RunFileRow) -> RunFileView:
    """Return a named file as a value."""
    return RunFileView(name=row.name or "", media_type=row.media_type, sha256=row.digest, size_bytes=row.size_bytes)


def run_view(row: RunRow, files: Iterable[RunFileRow] = ()) -> RunView:
    """Return a run as a value."""
    return RunView(
        run=row.id,
        task=row.task_id,
        site=row.client,
        state=RunState(row.state),
        detail=row.detail,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        exit_code=row.exit_code,
        error_code=row.error_code,
        error=row.error,
        log_tail=row.log_tail,
        image_digest=row.image_digest,
        attempt=row.attempt,
        elapsed_s=row.elapsed_s,
        files=tuple(file_view(each) for each in files),
        kept_until=row.kept_until,
        removed_at=row.removed_at,
    )


def task_view(
    row: TaskRow, *, spec: TaskSpec | None, counts: dict[str, int], runs: tuple[RunView, ...] = ()
) -> TaskView:
    """Return a task as a value."""
    return TaskView(
        task=row.id,
        name=row.name,
        organisation=row.organisation_id,
        user=row.asked_by,
        status=TaskStatus(row.status),
        spec=spec,
        created_at=row.created_at,
        expires_at=row.expires_at,
        finished_at=row.finished_at,
        parent_run=row.parent_run,
        counts=counts,
        runs=runs,
    )


def spec_of(row: TaskRow) -> TaskSpec:
    """Return what a stored task describes."""
    return task_spec(row.spec, source=f"the stored task {row.id}")


async def one_run(tx: AsyncSession, row: RunRow) -> RunView:
    """Return a run with its files."""
    return run_view(row, (await run_files.files_of(tx, [row.id])).get(row.id, ()))


async def one_task(tx: AsyncSession, row: TaskRow, *, described: bool) -> TaskView:
    """Return a task with its runs, by site; with what it describes if ``described``."""
    rows = list(await tx.scalars(select(RunRow).where(RunRow.task_id == row.id).order_by(RunRow.client)))
    files = await run_files.files_of(tx, [each.id for each in rows])
    runs = tuple(run_view(each, files.get(each.id, ())) for each in rows)
    counts = await _counts(tx, [row.id])
    return task_view(row, spec=spec_of(row) if described else None, counts=counts.get(row.id, {}), runs=runs)


async def tasks(
    tx: AsyncSession,
    organisation: str,
    wanted: TaskFilter,
    cursor: str | None,
    limit: int,
    *,
    described: bool,
    user: str | None = None,
) -> Page[TaskView]:
    """List tasks, newest first, without their runs; ``user``: only those that this one asked for."""
    query = select(TaskRow).where(TaskRow.organisation_id == organisation, *_conditions(wanted))
    if user is not None:
        query = query.where(TaskRow.asked_by == user)
    rows = list(await tx.scalars(after_cursor(query, TaskRow.created_at, TaskRow.id, cursor, limit)))
    counts = await _counts(tx, [row.id for row in rows[:limit]])
    return page_of(
        rows,
        limit,
        lambda row: (row.created_at, row.id),
        lambda row: task_view(row, spec=spec_of(row) if described else None, counts=counts.get(row.id, {})),
    )


def _conditions(wanted: TaskFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.status is not None:
        conditions.append(TaskRow.status == wanted.status.value)
    if wanted.name:
        # LIKE takes capitals for small letters in SQLite.
        conditions.append(func.substr(TaskRow.name, 1, len(wanted.name)) == wanted.name)
    if wanted.site:
        conditions.append(TaskRow.id.in_(select(RunRow.task_id).where(RunRow.client == wanted.site)))
    if wanted.parent_run is not None:
        conditions.append(TaskRow.parent_run == wanted.parent_run)
    for key, value in wanted.tags.items():
        tagged = select(TaskTagRow.task_id).where(TaskTagRow.key == key)
        conditions.append(TaskRow.id.in_(tagged.where(TaskTagRow.value == value) if value else tagged))
    return conditions


async def _counts(tx: AsyncSession, task_ids: Collection[str]) -> dict[str, dict[str, int]]:
    """Return how many runs of each task are in which state."""
    query = (
        select(RunRow.task_id, RunRow.state, func.count().label("number"))
        .where(RunRow.task_id.in_(task_ids))
        .group_by(RunRow.task_id, RunRow.state)
        .order_by(RunRow.task_id, RunRow.state)
    )
    found: dict[str, dict[str, int]] = {}
    for row in await tx.execute(query):
        found.setdefault(row.task_id, {})[row.state] = int(row.number)
    return found
