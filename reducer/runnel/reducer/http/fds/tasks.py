"""The routes of the Task Execution Service: create, list, get, cancel, and what the service is."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from runnel.common.errors import IllegalState, InvalidInput, NotFound
from runnel.common.json_object import read_object
from runnel.common.tasks import Language
from runnel.reducer.authority import READERS
from runnel.reducer.domain.datasets import check_query
from runnel.reducer.domain.task_views import TaskFilter, TaskView
from runnel.reducer.http.access import Service
from runnel.reducer.http.fds.access import CallerDep, RecordedRoute, refusal
from runnel.reducer.http.fds.answers import View, task_document
from runnel.reducer.http.fds.bodies import FORM_TAG, Wanted, read_task
from runnel.reducer.http.fds.documents import Form
from runnel.reducer.http.fds.reading import written_by
from runnel.reducer.http.fds.states import TesState, legacy_status, needs_runs, task_state
from runnel.reducer.service import ALL_SITES, Caller, ReducerService

STANDARD = "/ga4gh/tes/v1"
"""Where the standard's own routes are; below the other prefixes there are the same."""

MAX_BODY = 1 << 20
MAX_PAGE = 2047
_PAGES = {View.MINIMAL: MAX_PAGE, View.BASIC: 256, View.FULL: 32}
"""Tasks of a page at most: a page may have fewer than was asked for, and the longer views are read task by task."""

standard = APIRouter(route_class=RecordedRoute, include_in_schema=False)
sharing = APIRouter(route_class=RecordedRoute, include_in_schema=False)

ViewQuery = Annotated[View, Query()]


@standard.get("/service-info")
@standard.get("/tasks/service-info")
async def service_info(request: Request, service: Service, caller: CallerDep) -> JSONResponse:
    """What this service is, in the words of GA4GH and of Federated Data Sharing."""
    status = await service.status(caller)
    here = str(request.base_url).rstrip("/")
    document: dict[str, Any] = {
        "id": "org.runnel.tes",
        "name": "Runnel",
        "type": {"group": "org.ga4gh", "artifact": "tes", "version": "1.1.0"},
        "description": "Runs the containers of a task at sites that keep their data.",
        "organization": {"name": status.organisation, "url": here},
        "version": version("runnel"),
        # Nothing is written elsewhere: results are fetched here.
        "storage": [f"{here}/tasks/"],
    }
    if not request.url.path.startswith(STANDARD):
        document |= {"doc": f"{here}/docs", "registries": [_registry(host) for host in request.app.state.registries]}
    return JSONResponse(document)


def _registry(host: str) -> dict[str, str]:
    return {
        "registry_id": host,
        "registry_name": host,
        "registry_host": host,
        "registry_url": f"https://{host}",
    }


@standard.post("/tasks")
async def create(request: Request, service: Service, caller: CallerDep) -> JSONResponse:
    """Start a task that comes in one of the three forms; the answer has the shape that its form's clients read."""
    wanted = read_task(await _body(request))
    for blob in wanted.blobs:
        await service.add_blob(caller, _blocks(blob))
    view = await service.start_task(caller, spec=wanted.spec, sites=wanted.sites or (ALL_SITES,))
    return _created(view, wanted, standard=request.url.path.startswith(STANDARD))


def _created(view: TaskView, wanted: Wanted, *, standard: bool) -> JSONResponse:
    if wanted.form is Form.LEGACY and not standard:
        return JSONResponse({"data": {"id": view.task, "status": legacy_status(TesState.QUEUED)}})
    if wanted.form is Form.FEDERATED_NODE and not standard:
        return JSONResponse({"task_id": view.task}, status_code=201)
    return JSONResponse({"id": view.task})


@sharing.post("/tasks/validate")
async def validate(request: Request, service: Service, caller: CallerDep) -> Response:
    """Say whether a task is understood, naming what is wrong and what nobody knows; a 400 if nothing can be made of it.

    What it selects is looked for in what its sites publish. Whether they take it is theirs to say, when they are asked.
    """
    document = await _body(request)
    try:
        wanted = read_task(document)
    except InvalidInput as error:
        return refusal(error, request, success="false")
    try:
        await _require_published(wanted, service, caller)
    except InvalidInput as error:
        return JSONResponse({"success": "false", "message": str(error)})
    if wanted.unknown:
        message = f"Nothing here knows: {', '.join(wanted.unknown)}."
        return JSONResponse({"success": "false", "message": message, "unknown": list(wanted.unknown)})
    return JSONResponse({"success": "true"})


async def _require_published(wanted: Wanted, service: ReducerService, caller: Caller) -> None:
    """Refuse selections of tables or fields that a site does not publish; of one that publishes none, none is."""
    if caller.role not in READERS:
        return
    for each in wanted.spec.selections:
        if each.language is not Language.GRAPHQL:
            continue
        try:
            details = await service.dataset(caller, each.database)
        except NotFound:
            continue
        sites = [site for site in wanted.sites or details.sites if site in details.at_sites]
        check_query(each.query, details, [site for site in sites if details.at_sites[site].tables])


@standard.get("/tasks")
async def tasks(
    request: Request,
    service: Service,
    caller: CallerDep,
    name_prefix: str = "",
    state: TesState | None = None,
    tag_key: Annotated[list[str] | None, Query(max_length=32)] = None,
    tag_value: Annotated[list[str] | None, Query(max_length=32)] = None,
    page_size: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 256,
    page_token: str | None = None,
    view: ViewQuery = View.MINIMAL,
) -> JSONResponse:
    """List tasks, newest first."""
    keys, values = tag_key or [], tag_value or []
    if len(values) > len(keys):
        raise InvalidInput(
            f"{len(values)} tag_value came for {len(keys)} tag_key: each goes with the key of its place."
        )
    tags = dict(itertools.zip_longest(keys, values, fillvalue=""))
    page = await service.tasks(
        caller, TaskFilter(name=name_prefix, tags=tags), page_token or None, min(page_size, _PAGES[view])
    )
    listed = []
    for each in page.items:
        task = await service.task(caller, each.task) if view is not View.MINIMAL or needs_runs(each) else each
        if state is None or task_state(task) is state:
            listed.append(await _document(request, service, caller, task, view))
    following = {"next_page_token": page.next_cursor} if page.next_cursor is not None else {}
    return JSONResponse({"tasks": listed} | following)


@standard.get("/tasks/{task}")
async def task(
    request: Request, task: str, service: Service, caller: CallerDep, view: ViewQuery = View.MINIMAL
) -> JSONResponse:
    """Show a task; one that came in the legacy form also as its clients know it."""
    found = await service.task(caller, task)
    document = await _document(request, service, caller, found, view)
    legacy = found.spec is not None and found.spec.tags.get(FORM_TAG) == Form.LEGACY.value
    if legacy and not request.url.path.startswith(STANDARD):
        document["status"] = legacy_status(task_state(found))
    return JSONResponse(document)


@standard.post("/tasks/{task}:cancel")
@standard.post("/tasks/{task}/cancel")
async def cancel(task: str, service: Service, caller: CallerDep) -> JSONResponse:
    """End what has not ended of a task; one that has ended stays as it is."""
    found = await service.task(caller, task)
    if not found.status.ended:
        try:
            await service.cancel_task(caller, found.task)
        except IllegalState:
            if not (await service.task(caller, found.task)).status.ended:
                raise  # it has not just ended by itself
    return JSONResponse({})


async def _document(
    request: Request, service: ReducerService, caller: Caller, task: TaskView, view: View
) -> dict[str, Any]:
    written = await written_by(service, caller, task) if view is View.FULL else {}
    return task_document(task, view, here=str(request.base_url).rstrip("/"), written=written)


async def _body(request: Request) -> dict[str, Any]:
    try:
        text = (await request.body()).decode()
    except UnicodeDecodeError as error:
        raise InvalidInput("The body should be JSON, which is UTF-8, and is not.") from error
    return read_object(text, what="A task", most_bytes=MAX_BODY)


async def _blocks(data: bytes) -> AsyncIterator[bytes]:
    yield data
