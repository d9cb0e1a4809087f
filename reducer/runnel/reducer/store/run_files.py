"""Files of tasks: those that runs give out, those that people store for tasks, and how long they are kept."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from runnel.common.errors import Gone, InvalidInput, NotFound
from runnel.common.protocol import BlobRef, ResultFile
from runnel.reducer.domain.task_views import BlobView
from runnel.reducer.store.access import batches
from runnel.reducer.store.tables import RemovalRow, RunFileRow, RunLineRow, RunRow, TaskBlobRow, TaskInputRow, TaskRow

MAX_FILES = 256
"""Files that one run may push."""

_AT_ONCE = 200


# ---- what runs push


async def pushed(tx: AsyncSession, run_id: str) -> dict[str, int]:
    """Return the lengths of the files that came of a run, by digest."""
    query = select(RunFileRow.digest, RunFileRow.size_bytes).where(RunFileRow.run_id == run_id)
    return {row.digest: row.size_bytes for row in await tx.execute(query)}


async def add_file(tx: AsyncSession, run_id: str, ref: BlobRef) -> None:
    """Store that a file of a run is here; its name is said with the end of the run."""
    tx.add(RunFileRow(run_id=run_id, digest=ref.sha256, size_bytes=ref.size_bytes, name=None, media_type=""))


async def name_files(tx: AsyncSession, run_id: str, files: Sequence[ResultFile]) -> None:
    """Give the files that came of a run their names.

    Raises:
        InvalidInput: one of them did not come; nothing is changed.
    """
    unnamed = select(RunFileRow).where(RunFileRow.run_id == run_id, RunFileRow.name.is_(None))
    rows = {row.digest: row for row in await tx.scalars(unnamed)}
    for file in files:
        row = rows.get(file.blob.sha256)
        if row is None or row.size_bytes != file.blob.size_bytes:
            raise InvalidInput(
                f"Run {run_id} ends with a file {file.name!r} that was not pushed: {file.blob.sha256}.",
                hint="Its files are pushed before its end is told.",
                run=run_id,
            )
    for file in files:
        row = rows[file.blob.sha256]
        if row.name is not None:  # of two files with the same bytes one came
            row = RunFileRow(run_id=run_id, digest=row.digest, size_bytes=row.size_bytes)
            tx.add(row)
        row.name, row.media_type = file.name, file.media_type
    await tx.flush()


async def drop_unnamed(tx: AsyncSession, run_ids: Collection[str]) -> None:
    """Give up what runs pushed and nobody named."""
    for some in batches(run_ids):
        unnamed = (RunFileRow.run_id.in_(some), RunFileRow.name.is_(None))
        await _give_up(tx, set(await tx.scalars(select(RunFileRow.digest).where(*unnamed))))
        await tx.execute(delete(RunFileRow).where(*unnamed))


async def files_of(tx: AsyncSession, run_ids: Collection[str]) -> dict[str, list[RunFileRow]]:
    """Return the named files of runs, by run."""
    found: dict[str, list[RunFileRow]] = {}
    for some in batches(run_ids):
        query = select(RunFileRow).where(RunFileRow.run_id.in_(some), RunFileRow.name.is_not(None))
        for row in await tx.scalars(query.order_by(RunFileRow.id)):
            found.setdefault(row.run_id, []).append(row)
    return found


async def require_file(tx: AsyncSession, run: RunRow, name: str) -> RunFileRow:
    """Return a result file that is here.

    Raises:
        NotFound: the run has none of this name.
        Gone: its time is over.
    """
    rows = (await files_of(tx, [run.id])).get(run.id, [])
    row = next((each for each in rows if each.name == name), None)
    if row is None:
        named = ", ".join(str(each.name) for each in rows)
        raise NotFound(
            f"Run {run.id} has no file {name!r}.",
            hint=f"It has: {named}." if named else f"It is {run.state} and has none.",
            run=run.id,
        )
    until = run.removed_at or run.kept_until
    if until is not None and (run.removed_at is not None or until <= datetime.now(UTC)):
        raise Gone(
            f"The results of run {run.id} were kept until {until:%Y-%m-%d %H:%M:%S} UTC.",
            hint="Run the task again; how long results are kept is a setting of the reducer (--keep-results).",
            run=run.id,
        )
    return row


# ---- what people store


async def add_blob(tx: AsyncSession, organisation: str, ref: BlobRef, *, keep: timedelta | None) -> BlobView:
    """Store that a file for tasks is here; again, and it is kept from now on."""
    now = datetime.now(UTC)
    until = None if keep is None else now + keep
    row = await tx.get(TaskBlobRow, (organisation, ref.sha256))
    if row is None:
        row = TaskBlobRow(
            organisation_id=organisation, digest=ref.sha256, size_bytes=ref.size_bytes, created_at=now, kept_until=until
        )
        tx.add(row)
    row.kept_until = until
    return BlobView(sha256=row.digest, size_bytes=row.size_bytes, kept_until=until)


# ---- retention


async def give_up_old(tx: AsyncSession, now: datetime) -> bool:
    """Give up files whose time is over, some at a time; return whether there were any.

    Their rows tell what there was. A file for tasks stays as long as a task that names it has not ended.
    """
    query = select(RunRow).where(RunRow.kept_until <= now, RunRow.removed_at.is_(None)).limit(_AT_ONCE)
    runs = list(await tx.scalars(query))
    for run in runs:
        run.removed_at = now
    await tx.flush()
    ids = [run.id for run in runs]
    await _give_up(tx, set(await tx.scalars(select(RunFileRow.digest).where(RunFileRow.run_id.in_(ids)))))
    await tx.execute(delete(RunLineRow).where(RunLineRow.run_id.in_(ids)))
    old = select(TaskBlobRow).where(TaskBlobRow.kept_until <= now, _not_needed())
    rows = list(await tx.scalars(old.limit(_AT_ONCE)))
    await _give_up(tx, {row.digest for row in rows})
    for row in rows:
        await tx.delete(row)
    return bool(runs or rows)


def _not_needed() -> ColumnElement[bool]:
    """Return the condition that no task that goes on names a blob."""
    needed = select(TaskInputRow.digest).join(TaskRow, TaskRow.id == TaskInputRow.task_id)
    return TaskBlobRow.digest.not_in(needed.where(TaskRow.finished_at.is_(None)))


async def next_old(tx: AsyncSession) -> datetime | None:
    """Return when the next file's time is over; None: there is none."""
    results = await tx.scalar(select(func.min(RunRow.kept_until)).where(RunRow.removed_at.is_(None)))
    blobs = await tx.scalar(select(func.min(TaskBlobRow.kept_until)).where(_not_needed()))
    return min((at for at in (results, blobs) if at is not None), default=None)


async def _give_up(tx: AsyncSession, digests: Collection[str]) -> None:
    for digest in sorted(digests):
        await tx.merge(RemovalRow(digest=digest))
