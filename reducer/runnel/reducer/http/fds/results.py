"""Results of tasks over the routes of Federated Data Sharing: archives, logs, and what a reviewer decides."""

from __future__ import annotations

from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

from runnel.common.errors import IllegalState, NotFound, ResultsBlocked
from runnel.common.protocol import ENDED, RunState
from runnel.reducer.domain.task_views import RunView, TaskView
from runnel.reducer.http.access import Service
from runnel.reducer.http.fds.access import CallerDep, RecordedRoute, refusal
from runnel.reducer.http.fds.answers import ARCHIVES
from runnel.reducer.http.fds.archives import SiteOutput, combined
from runnel.reducer.http.fds.reading import lines_of
from runnel.reducer.http.files import Held
from runnel.reducer.service import Caller, ReducerService

ZIP = "application/zip"

PENDING, APPROVED, BLOCKED = "Pending Review", "Approved Release", "Blocked Release"

router = APIRouter(route_class=RecordedRoute, include_in_schema=False)


@router.get("/tasks/{task}/result")
@router.get("/tasks/{task}/results")
async def results(task: str, service: Service, caller: CallerDep, held: Held) -> Response:
    """The output of a task of one site as the zip that it is; of several, a folder for each and what became of all.

    Sites that failed are named there, and the others' results are given.
    """
    view = await service.task(caller, task)
    status = review_status(view)
    if status in {PENDING, BLOCKED}:
        return JSONResponse({"status": status}, status_code=400)
    outputs = await _outputs(service, caller, view, held)
    filename = f"{view.task}-results.zip"
    one_site = len(view.runs) == 1
    if one_site and len(outputs) == 1:
        return FileResponse(outputs[0].archive, media_type=ZIP, filename=filename)
    return StreamingResponse(
        combined(outputs, [] if one_site else [_summary(run) for run in view.runs]),
        media_type=ZIP,
        headers={"Content-Disposition": f'attachment; filename="{filename}"'},
    )


async def _outputs(service: ReducerService, caller: Caller, view: TaskView, held: AsyncExitStack) -> list[SiteOutput]:
    if not view.status.ended:
        going = ", ".join(f"{run.site} ({run.state.value})" for run in view.runs if run.state not in ENDED)
        raise IllegalState(f"Task {view.task} has no results yet: {going}.", hint="Ask again later.", task=view.task)
    outputs = []
    for run in view.runs:
        # A file that is gone is asked for too: the answer says until when it was there.
        for name in ARCHIVES[:1] if run.removed_at is not None else _archives(run):
            _, path = await held.enter_async_context(service.run_file(caller, run.run, name))
            outputs.append(SiteOutput(site=run.site, name=name, archive=path))
    if not outputs:
        why = " ".join(f"{run.site}: {run.error or run.state.value}." for run in view.runs)
        raise NotFound(f"No site gave out anything of task {view.task}. {why}", task=view.task)
    return outputs


def _archives(run: RunView) -> list[str]:
    there = {file.name for file in run.files}
    return [name for name in ARCHIVES if name in there]


def _summary(run: RunView) -> dict[str, Any]:
    return {
        "site": run.site,
        "run": run.run,
        "state": run.state.value,
        "exit_code": run.exit_code,
        "error": run.error,
        "output": bool(_archives(run)),
    }


@router.get("/tasks/{task}/logs")
async def logs(task: str, service: Service, caller: CallerDep) -> JSONResponse:
    """What the containers of a task wrote, and why a site failed."""
    view = await service.task(caller, task)
    failed = [f"{run.site}: {run.error}" for run in view.runs if run.error]
    return JSONResponse({"logs": [*await lines_of(service, caller, view), *failed]})


@router.post("/tasks/{task}/results/approve")
async def approve(request: Request, task: str, service: Service, caller: CallerDep) -> Response:
    """Have the results that wait at sites released, once; the policy of each site says whether it listens to this."""
    return await _decide(request, task, service, caller, release=True)


@router.post("/tasks/{task}/results/block")
async def block(request: Request, task: str, service: Service, caller: CallerDep) -> Response:
    """Have the results that wait at sites kept back, once and for good."""
    return await _decide(request, task, service, caller, release=False)


async def _decide(request: Request, task: str, service: ReducerService, caller: Caller, *, release: bool) -> Response:
    view = await service.task(caller, task)
    waiting = [run for run in view.runs if run.state is RunState.AWAITING_RELEASE]
    try:
        if not waiting:
            raise IllegalState(f"No results of task {view.task} wait for a decision.", task=view.task)
        for run in waiting:
            await service.release_run(caller, run.run, release=release, once=True)
    except IllegalState as error:
        return refusal(error, request, status=HTTPStatus.BAD_REQUEST)
    return JSONResponse({"status": APPROVED if release else BLOCKED}, status_code=HTTPStatus.CREATED)


def review_status(view: TaskView) -> str | None:
    """Return where the review of a task's results is; None: nothing of it was held back."""
    if any(run.state is RunState.AWAITING_RELEASE for run in view.runs):
        return PENDING
    kept_back = [run for run in view.runs if run.error_code == ResultsBlocked.code]
    if kept_back and not any(run.state is RunState.DONE for run in view.runs):
        return BLOCKED
    return None
