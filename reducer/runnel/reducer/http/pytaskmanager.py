"""The routes of PyTaskManager's master below ``/ptm``, for scripts and clients that were written for it.

They ask for no token, so theirs may be part of the address: ``/ptm/TOKEN/client`` is ``/ptm/client`` with that token.
An error is told with the status 200, as there, but for a token that is wrong and a body that is too large.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from pydantic import ConfigDict, Field, StrictInt, StrictStr, ValidationError, field_validator
from starlette.types import ASGIApp, Receive, Scope, Send

from runnel.common.errors import InvalidInput, NotFound, RunnelError, TooLarge, Unauthenticated
from runnel.reducer.http.access import CallerDep
from runnel.reducer.http.document import Document
from runnel.reducer.pytaskmanager import PtmMaster, PtmSite, Registration
from runnel.transport.status import problem_of

PREFIX = "/ptm"
_WITH_TOKEN = re.compile(rf"{PREFIX}/(?!client(?:/|$))([^/]+)(/.*)?", re.DOTALL)


class TokenInPath:
    """Takes the token out of addresses below ``/ptm`` before anything else sees, logs or answers them.

    Args:
        app: what is behind; there it is a token in a header, like any other.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on."""
        if scope["type"] == "http" and (found := _WITH_TOKEN.fullmatch(scope["path"])):
            path = f"{PREFIX}{found[2] or ''}"
            kept = [(name, value) for name, value in scope["headers"] if name != b"authorization"]
            bearer = (b"authorization", f"Bearer {unquote(found[1])}".encode("latin-1", "replace"))
            # In place: the handler of unexpected errors is in front of this, and logs the path.
            scope.update(path=path, raw_path=path.encode(), headers=[*kept, bearer])
        await self._app(scope, receive, send)


class _Route(APIRoute):
    """Tells errors as that master does: ``{"success": false, "message": …}``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except RunnelError as error:
                # The rest of what is too large is read before an answer, but not before one of 200.
                status = problem_of(error)["status"] if isinstance(error, (Unauthenticated, TooLarge)) else 200
                return JSONResponse({"success": False, "message": str(error)}, status_code=status)
            except RequestValidationError:
                message = f"{request.url.path} has no such clients or tasks: these are numbers."
                return JSONResponse({"success": False, "message": message})

        return answer


router = APIRouter(prefix=PREFIX, route_class=_Route, include_in_schema=False)


def _master(request: Request) -> PtmMaster:
    master: PtmMaster = request.app.state.ptm
    return master


Master = Annotated[PtmMaster, Depends(_master)]


class _Body(Document):
    # Their clients send the whole of their configuration, and scripts whatever they like.
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


_B = TypeVar("_B", bound=_Body)


class _Site(_Body):
    name: StrictStr = Field(min_length=1, max_length=255)
    email: StrictStr = Field(max_length=255)
    institute: StrictStr = Field(max_length=255)
    country: StrictStr = Field(max_length=255)


class _Task(_Body):
    run_id: StrictStr | StrictInt = Field(alias="runId")
    image: StrictStr
    text: StrictStr = Field(alias="inputString")
    profile: StrictStr | None = None

    @field_validator("run_id")
    @classmethod
    def _as_text(cls, value: str | int) -> str:
        if not 0 < len(str(value)) <= 255:
            raise ValueError("it has 1 to 255 characters")
        return str(value)


class _Result(_Body):
    response: StrictStr
    log: StrictStr


@router.get("")
@router.get("/")
async def index(caller: CallerDep) -> PlainTextResponse:
    """Their clients begin when this is answered well."""
    return PlainTextResponse("Hello, World")


@router.get("/client")
async def sites(master: Master, caller: CallerDep) -> JSONResponse:
    """List the sites."""
    return JSONResponse([_site(each) for each in await master.sites(caller)])


@router.post("/client/add")
async def add_site(request: Request, master: Master, caller: CallerDep) -> JSONResponse:
    """Register a site that asks for its tasks."""
    body = await _read(request, _Site)
    said = Registration(name=body.name, email=body.email, institute=body.institute, country=body.country)
    address = request.client.host if request.client else ""
    return JSONResponse({"success": True, "clientId": await master.register(caller, said, address=address)})


@router.get("/client/{site}/task")
async def open_tasks(site: int, master: Master, caller: CallerDep) -> JSONResponse:
    """List the tasks of a site that have no result."""
    found = await master.open_tasks(caller, site)
    return JSONResponse(
        [{"id": each.id, "runId": each.run_id, "input": each.input, "image": each.image} for each in found]
    )


@router.post("/client/{site}/task/add")
async def add_task(site: int, request: Request, master: Master, caller: CallerDep) -> JSONResponse:
    """Give a site a task."""
    body = await _read(request, _Task)
    number = await master.add_task(
        caller, site, run_id=str(body.run_id), image=body.image, text=body.text, profile=body.profile
    )
    return JSONResponse({"success": True, "taskId": number})


@router.get("/client/{site}/task/{task}/result")
async def results(site: int, task: int, master: Master, caller: CallerDep) -> JSONResponse:
    """List the results of a task."""
    found = await master.results(caller, site, task)
    return JSONResponse(
        [{"id": each.id, "task": each.task, "response": each.response, "log": each.log} for each in found]
    )


@router.get("/client/{site}/task/{task}/result/output")
async def output(site: int, task: int, master: Master, caller: CallerDep) -> Response:
    """Return the response of the first result as it is."""
    found = await master.results(caller, site, task)
    return PlainTextResponse(found[0].response) if found else _nothing_yet(task)


@router.get("/client/{site}/task/{task}/result/log")
async def result_log(site: int, task: int, master: Master, caller: CallerDep) -> Response:
    """Return the log of the first result as it is."""
    found = await master.results(caller, site, task)
    return PlainTextResponse(found[0].log) if found else _nothing_yet(task)


@router.post("/client/{site}/task/{task}/result/add")
async def add_result(site: int, task: int, request: Request, master: Master, caller: CallerDep) -> JSONResponse:
    """Take the result of a site that asks for its tasks. What it calls a task id is the number of the result."""
    body = await _read(request, _Result)
    number = await master.add_result(caller, site, task, response=body.response, log=body.log)
    return JSONResponse({"success": True, "taskId": number})


def _nothing_yet(task: int) -> JSONResponse:
    # Whoever takes the body as it is must not take this for a result.
    error = NotFound(f"Task {task} has no result yet.", hint="GET …/result is an empty list until it has.")
    return JSONResponse({"success": False, "message": str(error)}, status_code=404)


def _site(site: PtmSite) -> Mapping[str, Any]:
    seen = None if site.last_seen is None else str(site.last_seen.astimezone(UTC).replace(tzinfo=None))
    return {
        "id": site.id,
        "name": site.name,
        "email": site.email,
        "institute": site.institute,
        "country": site.country,
        "ip": site.ip,
        "last_seen": seen,
    }


async def _read(request: Request, kind: type[_B]) -> _B:
    """Return the body, JSON whatever its media type says."""
    try:
        read = json.loads(await request.body())
        json.dumps(read, ensure_ascii=False).encode()
        return kind.model_validate(read)
    except UnicodeError as error:
        raise InvalidInput("The body has text that is not Unicode.") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise InvalidInput(f"The body is not as expected: {problems}.") from error
    except ValueError as error:
        raise InvalidInput(f"The body should be JSON but is not: {error}.") from error
