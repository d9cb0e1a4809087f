"""Errors as HTTP answers: problem details (RFC 9457) for everything that goes wrong.

Besides the standard members a problem has ``code`` (stable, names the class of
:class:`runnel.common.errors.RunnelError`), ``hint`` (what to do) and ``fields`` (identifiers and values), from which
a caller makes the same error again.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from runnel.common.errors import InvalidInput, NotFound, RunnelError, Unauthenticated
from runnel.transport.status import problem_of

MEDIA_TYPE = "application/problem+json"
_MAX_GOT = 200

log = structlog.get_logger()


class Problem(JSONResponse):
    """An error as ``application/problem+json``."""

    media_type = MEDIA_TYPE


def problem(error: RunnelError, /, *, instance: str, status: int | None = None, **members: Any) -> Problem:
    """Make the answer that tells ``error``; ``members`` are added to the document."""
    document = problem_of(error) | {"instance": instance} | members
    if status is not None:
        document["status"] = status
    headers = {"WWW-Authenticate": 'Bearer realm="runnel"'} if isinstance(error, Unauthenticated) else None
    return Problem(document, status_code=document["status"], headers=headers)


def validation_problem(errors: list[dict[str, Any]], *, instance: str) -> Problem:
    """Make the 422 that lists each field that was refused, what came and what is allowed."""
    listed = [refused_field(item) for item in errors]
    detail = " ".join(f"{item['field']}: {item['message']}." for item in listed)
    error = InvalidInput(detail, field=listed[0]["field"] if listed else "", got=listed[0]["got"] if listed else "")
    return problem(error, instance=instance, status=422, errors=listed)


def refused_field(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return where a value was refused, why, and what came, of an error of pydantic's."""
    place = [str(part) for part in item.get("loc", ())]
    if place and place[0] in {"body", "query", "path", "header"}:
        place = place[1:] or [place[0]]
    kind, message = str(item.get("type", "")), str(item.get("msg", "")).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        message = "there is no such field"
    elif kind == "json_invalid":
        place, message = ["body"], f"not valid JSON ({item.get('ctx', {}).get('error', message)})"
    got = repr(item.get("input"))
    got = got if len(got) <= _MAX_GOT else got[:_MAX_GOT] + "…"
    if kind not in {"missing", "json_invalid"}:
        message = f"{message}; came {got}"
    return {"field": ".".join(place), "message": message, "got": got}


def install(app: FastAPI) -> None:
    """Have ``app`` answer every error as a problem."""

    async def on_runnel_error(request: Request, error: Exception) -> Problem:
        assert isinstance(error, RunnelError)
        return problem(error, instance=request.url.path)

    async def on_validation_error(request: Request, error: Exception) -> Problem:
        assert isinstance(error, RequestValidationError)
        return validation_problem(list(error.errors()), instance=request.url.path)

    async def on_http_exception(request: Request, error: Exception) -> Problem:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, RunnelError):
            # Raised while FastAPI read the body, which makes a 400 of whatever happens then.
            return problem(error.__cause__, instance=request.url.path)
        typed = _of_http(error, f"{request.method} {request.url.path}")
        answer = problem(typed, instance=request.url.path, status=error.status_code)
        answer.headers.update(error.headers or {})
        return answer

    async def on_unexpected(request: Request, error: Exception) -> Problem:
        incident = secrets.token_hex(6)
        log.error("http request failed", incident=incident, path=request.url.path, exc_info=error)
        unexpected = RunnelError(
            f"Something unexpected happened in the reducer (incident {incident}).",
            hint="Its operator finds the cause in the log under that incident.",
            incident=incident,
        )
        return problem(unexpected, instance=request.url.path, status=500)

    app.add_exception_handler(RunnelError, on_runnel_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_unexpected)


def _of_http(error: HTTPException, asked: str) -> RunnelError:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return NotFound(f"There is nothing at {asked}.", hint="GET /api/v1/openapi.json lists what there is.")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another method")
        return InvalidInput(f"{asked} is not possible; allowed: {allowed}.")
    return InvalidInput(f"{asked}: {error.detail}")
