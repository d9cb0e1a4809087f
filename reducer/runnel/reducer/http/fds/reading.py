"""What runs wrote, as far as it is here: lines while they go on, files when they have ended."""

from __future__ import annotations

import asyncio
from pathlib import Path

from runnel.common.errors import NotFound
from runnel.common.protocol import ENDED
from runnel.reducer.domain.task_views import RunView, TaskView
from runnel.reducer.http.fds.answers import Written
from runnel.reducer.service import Caller, ReducerService

STREAMS = ("stdout", "stderr")
TAIL_BYTES = 8 << 10
MAX_LINES = 1000


async def written_by(service: ReducerService, caller: Caller, task: TaskView) -> dict[str, Written]:
    """Return the end of what each run of a task wrote; of none if the caller may only look."""
    if task.spec is None:
        return {}
    return {run.run: await _written(service, caller, run) for run in task.runs if run.started_at is not None}


async def _written(service: ReducerService, caller: Caller, run: RunView) -> Written:
    if run.state in ENDED:
        stdout, stderr = [await _end_of_file(service, caller, run, name) for name in STREAMS]
        return Written(stdout=stdout, stderr=stderr)
    lines = await service.run_logs(caller, run.run, None, MAX_LINES)
    stdout, stderr = ["".join(f"{line.text}\n" for line in lines.items if line.stream == name) for name in STREAMS]
    return Written(stdout=stdout[-TAIL_BYTES:], stderr=stderr[-TAIL_BYTES:])


async def _end_of_file(service: ReducerService, caller: Caller, run: RunView, name: str) -> str:
    if run.removed_at is not None or not any(file.name == name for file in run.files):
        return ""
    try:
        async with service.run_file(caller, run.run, name) as (_, path):
            return await asyncio.to_thread(_end, path)
    except NotFound:  # its time was over between the two looks
        return ""


def _end(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode("utf-8", "replace")


async def lines_of(service: ReducerService, caller: Caller, task: TaskView) -> list[str]:
    """Return what the runs of a task wrote, site after site, and before each line its site if there are several."""
    lines = []
    for run in task.runs:
        page = await service.run_logs(caller, run.run, None, MAX_LINES)
        before = f"{run.site}: " if len(task.runs) > 1 else ""
        lines += [f"{before}{line.text}" for line in page.items]
    return lines
