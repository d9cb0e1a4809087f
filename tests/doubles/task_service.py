"""Tasks of a reducer without engine and store: what interfaces over them are tested against."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from runnel.common.catalogue import Catalogue
from runnel.common.errors import IllegalState, InvalidInput, NotFound
from runnel.common.protocol import ENDED, RunState
from runnel.common.tasks import TaskSpec
from runnel.reducer.domain.datasets import DatasetDetails, DatasetView, together
from runnel.reducer.domain.task_views import (
    BlobView,
    RunFileView,
    RunLineView,
    RunView,
    TaskFilter,
    TaskStatus,
    TaskView,
)
from runnel.reducer.domain.values import Page
from runnel.reducer.service import ALL_SITES, Caller

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class InMemoryTasks:
    """Implements :class:`runnel.reducer.service.TaskService`; a test moves the runs by :meth:`move`.

    ``sites`` are the clients that there are, ``published`` what they tell of their data.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sites = ["site-1", "site-2", "site-3"]
        self.published: dict[str, Catalogue] = {}
        self.blobs: dict[str, int] = {}
        self.lines_of_runs: dict[str, list[RunLineView]] = {}
        self._tasks: dict[str, TaskView] = {}
        self._contents: dict[tuple[str, str], bytes] = {}

    async def add_blob(self, caller: Caller, body: AsyncIterator[bytes]) -> BlobView:
        data = b"".join([block async for block in body])
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = len(data)
        return BlobView(sha256=digest, size_bytes=len(data), kept_until=BEGAN + timedelta(days=7))

    async def start_task(
        self, caller: Caller, *, spec: TaskSpec, sites: Sequence[str], expires_in_s: float | None = None
    ) -> TaskView:
        wanted = self.sites if tuple(sites) == (ALL_SITES,) else list(sites)
        if unknown := sorted({*wanted} - {*self.sites}):
            raise InvalidInput(f"No client has joined under the name: {', '.join(unknown)}.")
        number = len(self._tasks)
        task = f"tsk-{number:010d}"
        runs = tuple(_run(f"run-{number:05d}{place:05d}", task, site) for place, site in enumerate(sorted(wanted)))
        self._tasks[task] = TaskView(
            task=task,
            name=spec.name,
            organisation=caller.organisation,
            user=caller.token_id,
            status=TaskStatus.QUEUED,
            spec=spec,
            created_at=BEGAN + timedelta(seconds=number),
            expires_at=None if expires_in_s is None else BEGAN + timedelta(seconds=expires_in_s),
            finished_at=None,
            parent_run="",
            counts={"queued": len(runs)},
            runs=runs,
        )
        return self._tasks[task]

    async def datasets(self, caller: Caller) -> Sequence[DatasetView]:
        ids = sorted({each.id for told in self.published.values() for each in told.datasets})
        found = [await self.dataset(caller, dataset) for dataset in ids]
        return [
            DatasetView(
                id=each.id, title=each.title, creator=each.creator, description=each.description, sites=each.sites
            )
            for each in found
        ]

    async def dataset(self, caller: Caller, dataset: str) -> DatasetDetails:
        at_sites = {site: each for site, told in self.published.items() for each in told.datasets if each.id == dataset}
        if not at_sites:
            raise NotFound(f"There is no dataset {dataset!r}.")
        return together(dataset, at_sites)

    async def tasks(self, caller: Caller, wanted: TaskFilter, cursor: str | None, limit: int) -> Page[TaskView]:
        found = [each for each in reversed(self._tasks.values()) if _fits(each, wanted)]
        start = int(cursor or 0)
        items = tuple(replace(each, runs=()) for each in found[start : start + limit])
        return Page(items=items, next_cursor=str(start + limit) if start + limit < len(found) else None)

    async def task(self, caller: Caller, task: str) -> TaskView:
        found = [each for name, each in self._tasks.items() if name.startswith(task)]
        if len(found) != 1:
            raise NotFound(f"There is no task {task!r}.")
        return found[0]

    async def cancel_task(self, caller: Caller, task: str) -> TaskView:
        view = await self.task(caller, task)
        if view.status.ended:
            raise IllegalState(f"All runs of task {view.task} have ended already.")
        for run in view.runs:
            if run.state not in ENDED:
                self.move(run.run, RunState.CANCELLED)
        return self._tasks[view.task]

    async def run(self, caller: Caller, run: str) -> RunView:
        return self._run(run)

    async def run_logs(self, caller: Caller, run: str, cursor: str | None, limit: int) -> Page[RunLineView]:
        lines = self.lines_of_runs.get(self._run(run).run, [])
        start = int(cursor or 0)
        following = str(start + limit) if start + limit < len(lines) else None
        return Page(items=tuple(lines[start : start + limit]), next_cursor=following)

    @asynccontextmanager
    async def run_file(self, caller: Caller, run: str, name: str) -> AsyncIterator[tuple[RunFileView, Path]]:
        view = next((each for each in self._run(run).files if each.name == name), None)
        if view is None:
            raise NotFound(f"Run {run} has no file {name!r}.")
        path = self.folder / view.sha256
        await asyncio.to_thread(path.write_bytes, self._contents[(self._run(run).run, name)])
        yield view, path

    async def release_run(
        self, caller: Caller, run: str, *, release: bool, reason: str = "", once: bool = False
    ) -> RunView:
        view = self._run(run)
        if view.state is not RunState.AWAITING_RELEASE:
            raise IllegalState(f"Run {view.run} is {view.state.value}.")
        return self.move(view.run, RunState.PUSHING if release else RunState.REJECTED)

    # ---- what a test makes happen

    def give_out(self, run: str, name: str, data: bytes, media_type: str = "application/octet-stream") -> None:
        """Add a result file to a run."""
        view = self._run(run)
        made = RunFileView(
            name=name, media_type=media_type, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data)
        )
        self._contents[(view.run, name)] = data
        self._replace(replace(view, files=(*view.files, made)))

    def move(self, run: str, state: RunState, **changes: Any) -> RunView:
        """Put a run into a state."""
        finished = BEGAN + timedelta(minutes=1) if state in ENDED else None
        moved = replace(self._run(run), state=state, started_at=BEGAN, finished_at=finished, **changes)
        self._replace(moved)
        return moved

    def _run(self, run: str) -> RunView:
        for task in self._tasks.values():
            for each in task.runs:
                if each.run.startswith(run):
                    return each
        raise NotFound(f"There is no run {run!r}.")

    def _replace(self, run: RunView) -> None:
        task = self._tasks[run.task]
        runs = tuple(run if each.run == run.run else each for each in task.runs)
        states = [each.state for each in runs]
        status = TaskStatus.RUNNING
        if all(state in ENDED for state in states):
            status = TaskStatus.DONE if set(states) == {RunState.DONE} else TaskStatus.FAILED
            status = TaskStatus.CANCELLED if RunState.CANCELLED in states else status
        counts = {state.value: states.count(state) for state in states}
        finished = BEGAN + timedelta(minutes=1) if status.ended else None
        self._tasks[run.task] = replace(task, runs=runs, status=status, counts=counts, finished_at=finished)


def _run(run: str, task: str, site: str) -> RunView:
    return RunView(
        run=run,
        task=task,
        site=site,
        state=RunState.QUEUED,
        detail="",
        created_at=BEGAN,
        started_at=None,
        finished_at=None,
        exit_code=None,
        error_code=None,
        error=None,
        log_tail=None,
        image_digest="",
        attempt=1,
        elapsed_s={},
        files=(),
        kept_until=None,
        removed_at=None,
    )


def _fits(task: TaskView, wanted: TaskFilter) -> bool:
    tags = {} if task.spec is None else task.spec.tags
    return (
        wanted.status in {None, task.status}
        and task.name.startswith(wanted.name)
        and (not wanted.site or any(run.site == wanted.site for run in task.runs))
        and wanted.parent_run in {None, task.parent_run}
        and all(key in tags and (not value or tags[key] == value) for key, value in wanted.tags.items())
    )
