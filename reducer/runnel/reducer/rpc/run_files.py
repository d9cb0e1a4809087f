"""Files of runs, as nodes push them: durable when the answer says that they are complete."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from runnel.common.blobs import Leftovers, Spool, SpoolFile
from runnel.common.crash_points import CrashPoint, reach
from runnel.common.errors import Forbidden, IllegalState, NotFound, RunnelError, StorageFull, TooLarge, Unreachable
from runnel.common.protocol import BlobRef
from runnel.reducer.engine.tasks import Tasks
from runnel.reducer.store import registry, run_files, task_ledger
from runnel.reducer.store.blobs import Blobs
from runnel.reducer.store.journal import Journal, Transaction
from runnel.reducer.store.tables import TaskRow
from runnel.reducer.uploads import removed
from runnel.transport import NodeIdentity

log = structlog.get_logger()

_LOOK_LATER_S = 0.1  # than what was left is over
_BESIDES_BYTES = 64 << 20
"""A run's own limit is one of what it gives out; so much may come besides: what it wrote, and its log."""


@dataclass(slots=True, kw_only=True)
class _Note:
    """Whose a file is; ``done`` once that is durable or refused."""

    run_id: str
    ref: BlobRef
    done: bool = False
    error: RunnelError | None = None


class RunFiles:
    """Takes files of runs that have not ended, up to a limit for each run.

    A push may break and be taken up again, over another attachment too: the key is the run, which outlives them.

    Args:
        tasks: which runs take files, and of whom.
        journal: the durable state.
        blobs: where they last.
        spool: where they arrive.
        keep_s: for how long what a lost node had begun waits for it.
        max_bytes: of all files of one run.
    """

    def __init__(
        self, tasks: Tasks, *, journal: Journal, blobs: Blobs, spool: Spool, keep_s: float, max_bytes: int
    ) -> None:
        self._tasks = tasks
        self._journal = journal
        self._blobs = blobs
        self._spool = spool
        self._keep_s = keep_s
        self._left = Leftovers(spool, keep_s)
        self._max_bytes = max_bytes
        self._notes: list[_Note] = []  # that no transaction has taken yet
        self._noting = asyncio.Lock()
        self._begun: dict[str, set[str]] = {}  # runs of which files are under way, by node

    async def open(self, identity: NodeIdentity, run_id: str, ref: BlobRef) -> SpoolFile | None:
        """Return where a file of a run goes; None: it is here.

        Raises:
            IllegalState, Forbidden: the run takes nothing (of this node).
            TooLarge: its files would be too large together, or too many.
            StorageFull: there is no room.
        """
        self._tasks.require_push(run_id, identity.name)
        async with self._journal.database.read() as tx:
            pushed = await run_files.pushed(tx, run_id)
            if pushed.get(ref.sha256) == ref.size_bytes:
                return None
            task = await task_ledger.task_of_run(tx, run_id)
        self._require_fitting(run_id, pushed, ref, task)
        self.forget_ended()
        key = _key(run_id, identity)
        self._left.take_up(key, identity.name, ref.sha256)
        self._begun.setdefault(identity.name, set()).add(run_id)
        file = await asyncio.to_thread(self._spool.open, key, ref)
        try:
            await asyncio.to_thread(file.require_room)
            self._tasks.require_push(run_id, identity.name)
        except StorageFull as error:
            log.error("no room for a file of a run", child=identity.name, run=run_id, error=str(error))
            raise
        except (IllegalState, Forbidden):
            self._spool.forget(key)
            raise
        return file

    def forget_ended(self) -> None:
        """Remove what nodes had begun to push of runs that have ended, though they are attached."""
        for name, begun in self._begun.items():
            for run_id in [each for each in begun if self._tasks.book.find(each) is None]:
                begun.discard(run_id)
                self._spool.forget(f"{run_id}/{name}")

    def _require_fitting(self, run_id: str, pushed: dict[str, int], ref: BlobRef, task: TaskRow | None) -> None:
        limit = self._max_bytes
        if task is not None and '"output_bytes"' in task.spec:
            own = json.loads(task.spec).get("resources", {}).get("output_bytes")
            limit = limit if own is None else min(limit, own + _BESIDES_BYTES)
        total = sum(pushed.values()) + ref.size_bytes
        if total > limit:
            raise TooLarge(
                f"The files of run {run_id} would have {total:,} bytes together; at most {limit:,} are taken.",
                limit_bytes=limit,
                run=run_id,
            )
        if len(pushed) >= run_files.MAX_FILES:
            raise TooLarge(f"Run {run_id} has pushed {len(pushed)} files, and more are not taken.", run=run_id)

    async def keep(self, identity: NodeIdentity, run_id: str, ref: BlobRef, file: Path) -> None:
        """Make a verified file last, and note whose it is.

        Raises:
            IllegalState: the run has ended meanwhile; the file is gone.
            TooLarge: others came meanwhile, and it is too much now.
        """
        try:
            self._tasks.require_push(run_id, identity.name)
        except BaseException:
            await asyncio.to_thread(file.unlink, missing_ok=True)
            raise
        await asyncio.to_thread(self._blobs.files.adopt, file, ref)
        try:
            await self._blobs.keep(ref.sha256)
            reach(CrashPoint.RUN_FILE_KEPT)
            await self._noted(run_id, ref)
        except NotFound as error:
            raise removed(ref) from error
        except BaseException:
            await self._drop_unused(ref)
            raise
        self._begun.get(identity.name, set()).discard(run_id)

    async def _noted(self, run_id: str, ref: BlobRef) -> None:
        """Note whose a file is, together with all that came while an earlier transaction was under way."""
        mine = _Note(run_id=run_id, ref=ref)
        self._notes.append(mine)
        async with self._noting:
            if not mine.done:
                batch, self._notes = self._notes, []
                await self._note_all(batch)
        if mine.error is not None:
            raise mine.error

    async def _note_all(self, batch: Sequence[_Note]) -> None:
        try:
            async with self._journal.transaction() as tx:
                for note in batch:
                    try:
                        await self._note(tx, note.run_id, note.ref)
                    except RunnelError as error:
                        note.error = error
        except BaseException as error:
            # Nothing was stored, for nobody of them: each is told, and pushes again.
            failed = error if isinstance(error, RunnelError) else Unreachable("The file was not stored.")
            for note in batch:
                note.error = failed
            raise
        finally:
            for note in batch:
                note.done = True

    async def _note(self, tx: Transaction, run_id: str, ref: BlobRef) -> None:
        row = (await task_ledger.runs_by_id(tx.session, [run_id])).get(run_id)
        if row is None or row.finished_at is not None:
            raise IllegalState(f"Run {run_id} has ended; its file is not taken any more.", run=run_id)
        pushed = await run_files.pushed(tx.session, run_id)
        if pushed.get(ref.sha256) == ref.size_bytes:
            return
        self._require_fitting(run_id, pushed, ref, await task_ledger.task_of_run(tx.session, run_id))
        # Within the transaction that names it: nobody removes it then.
        if not await asyncio.to_thread(self._blobs.lasts, ref.sha256):
            raise removed(ref)
        await run_files.add_file(tx.session, run_id, ref)

    async def _drop_unused(self, ref: BlobRef) -> None:
        async with self._journal.database.write() as tx:
            if not await registry.is_used(tx, ref.sha256):
                await self._blobs.discard(ref.sha256)

    def detached(self, name: str) -> None:
        """A node is gone: what it had begun waits a while for it."""
        for run_id in self._begun.pop(name, ()):
            self._left.leave(f"{run_id}/{name}", name)
            asyncio.get_running_loop().call_later(self._keep_s + _LOOK_LATER_S, self._left.expire)


def _key(run_id: str, identity: NodeIdentity) -> str:
    return f"{run_id}/{identity.name}"
