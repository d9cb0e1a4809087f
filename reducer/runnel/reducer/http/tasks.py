"""Tasks over HTTP: start, look, follow, cancel, and what came of them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response

from runnel.common.errors import InvalidInput
from runnel.reducer.domain.task_views import TaskFilter, TaskStatus
from runnel.reducer.http.access import CallerDep, Cursor, Limit, Service
from runnel.reducer.http.answers import Event, Listing, listing
from runnel.reducer.http.events import EVENTS, After, LastEventId, follow
from runnel.reducer.http.files import Held, file_answer, upload_schema
from runnel.reducer.http.idempotency import OnceDep
from runnel.reducer.http.task_documents import ReleaseRequest, Run, RunLine, StoredBlob, Task, TaskRequest
from runnel.reducer.http.uploads import body_blocks, request_identity

router = APIRouter(tags=["tasks"])


@router.post(
    "/blobs",
    status_code=201,
    response_model=StoredBlob,
    summary="Store a file for tasks",
    openapi_extra=upload_schema("The file, as it is."),
)
async def add_blob(request: Request, service: Service, caller: CallerDep, once: OnceDep) -> Response:
    """For inputs of more than 64 KiB. `Content-Digest` (RFC 9530, sha-256) is verified when given."""

    async def act() -> StoredBlob:
        return StoredBlob.of(await service.add_blob(caller, body_blocks(request)))

    return await once.answer(act, status=201, body=request_identity(request))


@router.post("/tasks", status_code=201, response_model=Task, summary="Start a task")
async def start(request: Request, wanted: TaskRequest, service: Service, caller: CallerDep, once: OnceDep) -> Response:
    """Runs once at each of the sites; the answer comes at once. A site that is away gets it when it returns."""

    async def act() -> Task:
        view = await service.start_task(caller, spec=wanted.spec, sites=wanted.sites, expires_in_s=wanted.expires_in_s)
        return Task.of(view)

    return await once.answer(act, status=201, body=await request.body())


@router.get("/tasks", response_model=Listing[Task], summary="List tasks")
async def tasks(
    service: Service,
    caller: CallerDep,
    status: Annotated[TaskStatus | None, Query(description="Only those that are so.")] = None,
    name: Annotated[str, Query(max_length=200, description="Only those whose name begins so.")] = "",
    site: Annotated[str, Query(max_length=64, description="Only those of this site.")] = "",
    tag: Annotated[
        list[str] | None, Query(max_length=20, description="KEY=VALUE, or KEY whatever its value; may be repeated.")
    ] = None,
    parent_run: Annotated[
        str | None, Query(max_length=64, description="Only sub-tasks that this run asked for.")
    ] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Listing[Task]:
    """Newest first, without their runs."""
    wanted = TaskFilter(status=status, name=name, site=site, tags=_tags(tag or []), parent_run=parent_run)
    return listing(await service.tasks(caller, wanted, cursor, limit), Task.of)


def _tags(given: list[str]) -> dict[str, str]:
    tags = {}
    for text in given:
        key, _, value = text.partition("=")
        if not key:
            raise InvalidInput(f"tag: {text!r} came; it has to be KEY=VALUE or KEY.", got=text)
        tags[key] = value
    return tags


@router.get("/tasks/{task}", response_model=Task, summary="Show a task")
async def task_entry(task: str, service: Service, caller: CallerDep) -> Task:
    """With its run at each site."""
    return Task.of(await service.task(caller, task))


@router.post("/tasks/{task}/cancel", response_model=Task, summary="Cancel a task")
async def cancel(task: str, service: Service, caller: CallerDep, once: OnceDep) -> Response:
    """Ends what has not ended of it, and of the sub-tasks that its runs asked for; what is done stays."""

    async def act() -> Task:
        return Task.of(await service.cancel_task(caller, task))

    return await once.answer(act, status=200)


@router.get("/tasks/{task}/events", summary="Follow a task", responses=EVENTS, response_model=Listing[Event])
async def events(
    request: Request,
    task: str,
    service: Service,
    caller: CallerDep,
    after: After = None,
    last_event_id: LastEventId = None,
    limit: Limit = 200,
) -> Response:
    """What happened and what happens to it: as server-sent events, or a page of JSON with `Accept: application/json`.

    Kinds: task.created, run.state, run.release, task.ended; and progress, which passes and is not kept.
    """
    found = await service.task(caller, task)
    return await follow(request, service, caller, found.task, after=after, last_event_id=last_event_id, limit=limit)


@router.get("/runs/{run}", response_model=Run, summary="Show a run")
async def run_entry(run: str, service: Service, caller: CallerDep) -> Run:
    """A task at one site."""
    return Run.of(await service.run(caller, run))


@router.get("/runs/{run}/logs", response_model=Listing[RunLine], summary="Read what a run wrote")
async def logs(
    run: str, service: Service, caller: CallerDep, cursor: Cursor = None, limit: Limit = 200
) -> Listing[RunLine]:
    """As it came while it ran, oldest first. Its files `stdout` and `stderr` have all of it."""
    return listing(await service.run_logs(caller, run, cursor, limit), RunLine.of)


@router.get("/runs/{run}/files/{name}", response_class=FileResponse, summary="Download a result file")
async def content(run: str, name: str, service: Service, caller: CallerDep, held: Held) -> FileResponse:
    """Byte for byte as the site gave it out; `Range` is served. 410 when its time is over.

    Whatever its media type is, it is answered as a file to be saved: what a container wrote is nothing that a browser
    should show as a page of the network.
    """
    view, file = await held.enter_async_context(service.run_file(caller, run, name))
    return file_answer(file, sha256=view.sha256, filename=f"{run}-{name}{_SUFFIXES.get(view.media_type, '')}")


_SUFFIXES = {"application/zip": ".zip", "text/plain": ".txt", "text/csv": ".csv", "application/json": ".json"}


@router.post("/runs/{run}/release", response_model=Run, summary="Decide about results that await release")
async def release(
    request: Request, run: str, wanted: ReleaseRequest, service: Service, caller: CallerDep, once: OnceDep
) -> Response:
    """Tells the site, whose policy says whether it listens to the caller; what comes of it is the run's state."""

    async def act() -> Run:
        return Run.of(await service.release_run(caller, run, release=wanted.release, reason=wanted.reason))

    return await once.answer(act, status=200, body=await request.body())
