"""Selections of Federated Data Sharing: whether a query fits what is published, and the data where a site gives them.

A selection is a task that runs nothing: it waits, is judged by the policy of its site, reviewed, recorded and
cancelled as every task is. Level 2 sites refuse it.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runnel.common.catalogue import problems
from runnel.common.errors import BadQuery, Forbidden, InvalidInput, RunnelError, UnknownData, Unsupported
from runnel.common.json_object import read_object
from runnel.common.protocol import RunState
from runnel.common.tasks import Language, Selection, TaskSpec
from runnel.reducer.domain.datasets import DatasetDetails, check_query
from runnel.reducer.domain.task_views import TaskView
from runnel.reducer.http.access import Service
from runnel.reducer.http.fds.access import CallerDep, RecordedRoute, refusal
from runnel.reducer.http.fds.archives import only_file
from runnel.reducer.http.fds.results import BLOCKED, PENDING, results, review_status
from runnel.reducer.http.files import Held
from runnel.reducer.service import Caller, ReducerService

MAX_BODY = 256 << 10

_WAIT_S = 25.0
"""How long an answer waits for the data, before it tells where they will be: shorter than proxies wait."""

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.5
_CSV = "text/csv; charset=utf-8; header=present"

router = APIRouter(route_class=RecordedRoute, include_in_schema=False)


class _Body(BaseModel):
    """What comes as JSON; as text there is the query alone, and all else is in the address."""

    model_config = ConfigDict(extra="forbid", defer_build=True)

    type: Language = Language.GRAPHQL
    query: str = Field(min_length=1)
    dataset_id: str = ""
    sites: list[str] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    language: Language
    query: str
    details: DatasetDetails
    sites: tuple[str, ...]


@router.post("/selection/validate")
async def validate(request: Request, service: Service, caller: CallerDep) -> Response:
    """Say whether a query is one, and all that it names is published; a 400 that names what is not."""
    asked = await _asked(request, service, caller)
    try:
        _require_checked(asked)
    except InvalidInput as error:
        return refusal(error, request, success=False)
    return JSONResponse({"success": True, "type": asked.language.value, "query": asked.query})


@router.post("/selection/select")
async def select(request: Request, service: Service, caller: CallerDep, held: Held) -> Response:
    """Give what a query selects: the CSV file of one table of one site, else a ZIP archive.

    Where a site takes its time, or somebody there has to look at it first, a 202 says by which task it can be had.
    """
    asked = await _asked(request, service, caller)
    if asked.language is Language.GRAPHQL and any(each.tables for each in asked.details.at_sites.values()):
        _require_checked(asked)
    selection = Selection(
        query=asked.query,
        language=asked.language,
        database=asked.details.id,
        name=None if asked.language is Language.GRAPHQL else asked.details.id,
    )
    spec = TaskSpec(name="selection", executors=(), selections=(selection,), tags={"dataset_id": asked.details.id})
    view = await service.start_task(caller, spec=spec, sites=asked.sites)
    view = await _ended(request, service, caller, view)
    status = review_status(view)
    if status == BLOCKED:
        return JSONResponse({"id": view.task, "status": status}, status_code=HTTPStatus.BAD_REQUEST)
    if status == PENDING or not view.status.ended:
        return _later(view)
    _require_some(view)
    return await _given(view, service, caller, held)


@router.post("/selection/beacon")
@router.post("/selection/preview")
@router.post("/selection/profile")
async def experimental(request: Request, caller: CallerDep) -> Response:
    """Not there: what they tell of single rows is a site's to give, which it does by tasks."""
    raise Unsupported(
        f"{request.url.path} is not implemented here.", hint="Validate and select are; an image can compute the rest."
    )


# ---- what is asked


async def _asked(request: Request, service: ReducerService, caller: Caller) -> _Asked:
    body = await _body(request)
    dataset = body.dataset_id or request.query_params.get("dataset_id", "")
    if not dataset:
        there = [each.id for each in await service.datasets(caller)]
        if len(there) != 1:
            raise InvalidInput(
                f"The selection does not say of which dataset it is; there are {', '.join(there[:20]) or 'none'}.",
                hint="Name one by dataset_id.",
            )
        dataset = there[0]
    details = await service.dataset(caller, dataset)
    sites = tuple(body.sites or request.query_params.getlist("site") or details.sites)
    if unknown := sorted(set(sites) - set(details.sites)):
        raise InvalidInput(
            f"{', '.join(unknown[:20])[:500]} does not publish the dataset {details.id}.",
            hint=f"These do: {', '.join(details.sites[:20])}.",
        )
    return _Asked(language=body.type, query=body.query, details=details, sites=sites)


async def _body(request: Request) -> _Body:
    try:
        text = (await request.body()).decode()
    except UnicodeDecodeError as error:
        raise InvalidInput("The body should be a query, which is UTF-8, and is not.") from error
    if len(text) > MAX_BODY:
        raise InvalidInput(f"A selection has at most {MAX_BODY:,} characters, and this has {len(text):,}.")
    as_json = request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
    document = read_object(text, what="A selection", most_bytes=MAX_BODY) if as_json else {"query": text}
    try:
        return _Body.model_validate(document)
    except ValidationError as error:
        raise InvalidInput(f"The selection is not as expected: {problems(error)}.") from error


def _require_checked(asked: _Asked) -> None:
    if asked.language is not Language.GRAPHQL:
        raise Unsupported(
            f"A query in {asked.language.value} is checked by the site that it runs at.",
            hint="What is checked here is written { table { field field } }.",
        )
    check_query(asked.query, asked.details, asked.sites)


# ---- what is given


async def _ended(request: Request, service: ReducerService, caller: Caller, view: TaskView) -> TaskView:
    """Return a task when it has ended, or is left to wait."""
    pause_s, closing = _FIRST_PAUSE_S, request.app.state.closing
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_WAIT_S):
            while not (view.status.ended or review_status(view) is not None or closing.is_set()):
                await asyncio.sleep(pause_s)
                pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)
                view = await service.task(caller, view.task)
    return view


def _later(view: TaskView) -> Response:
    told: dict[str, Any] = {"id": view.task, "status": review_status(view) or "Running"}
    headers = {"Location": f"/tasks/{view.task}/results"}
    return JSONResponse(told, status_code=HTTPStatus.ACCEPTED, headers=headers)


def _require_some(view: TaskView) -> None:
    """Refuse what no site gave, with what the first of them said."""
    if any(run.state is RunState.DONE for run in view.runs):
        return
    why = " ".join(f"{run.site}: {run.error or run.state.value}" for run in view.runs)[:2000]
    if all(run.state is RunState.REJECTED for run in view.runs):
        raise Forbidden(f"No site gives out what is selected. {why}", task=view.task)
    if any(run.error_code in {BadQuery.code, UnknownData.code} for run in view.runs):
        raise InvalidInput(why, task=view.task)
    raise RunnelError(f"No site gave what is selected. {why}", task=view.task)


async def _given(view: TaskView, service: ReducerService, caller: Caller, held: Held) -> Response:
    if len(view.runs) == 1:
        _, path = await held.enter_async_context(service.run_file(caller, view.runs[0].run, "output"))
        single = await asyncio.to_thread(only_file, path, most_bytes=_MOST_WITHIN)
        if single is not None:
            name, data = single
            headers = {
                "Content-Disposition": f'attachment; filename="{_plain(name)}"',
                "Location": f"/tasks/{view.task}",
            }
            return Response(data, media_type=_CSV, headers=headers)
    return await results(view.task, service, caller, held)


_MOST_WITHIN = 64 << 20


def _plain(name: str) -> str:
    """Return the name of a file as a header can have it."""
    return "".join(each if (each.isascii() and each.isalnum()) or each in "._-" else "_" for each in name)
