"""Who asks on the routes of Federated Data Sharing, by token or basic authentication, and the record of the calls."""

from __future__ import annotations

import base64
import binascii
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

import structlog
from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute

from runnel.common.errors import Forbidden, InvalidInput, RunnelError, Unauthenticated
from runnel.reducer.http.access import Service, service_of
from runnel.reducer.http.problems import problem, refused_field
from runnel.reducer.service import Caller

PROJECT_HEADER = "project-name"

_LOOKS_S = 60.0
_LOOKS_KEPT = 4096

log = structlog.get_logger()


async def caller_of(request: Request, service: Service) -> Caller:
    """Return who asks.

    Raises:
        Unauthenticated: nobody that is known.
        Forbidden: the header ``project-name`` names another organisation than that of the token.
    """
    secret, client_id = presented(request)
    caller = await service.authenticate(secret, client_id=client_id)
    request.state.caller = caller
    project = request.headers.get(PROJECT_HEADER)
    if project is not None and project != caller.organisation:
        raise Forbidden(
            f"The token is one of the organisation {caller.organisation}, and {PROJECT_HEADER} says {project[:100]!r}."
        )
    return caller


CallerDep = Annotated[Caller, Depends(caller_of)]


def presented(request: Request) -> tuple[str | None, str | None]:
    """Return the secret that a request presents and whose it is said to be; raises Unauthenticated if it is no text."""
    scheme, _, rest = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip() or None, None
    if scheme.lower() != "basic":
        return None, None
    try:
        client_id, colon, secret = base64.b64decode(rest.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise Unauthenticated("The basic authorization is no base64 of ID:SECRET.") from error
    if not colon:
        raise Unauthenticated("The basic authorization is no base64 of ID:SECRET.")
    return secret or None, client_id


@dataclass(slots=True)
class _Look:
    recorded_at: float
    calls: int


class CallLog:
    """Has each call recorded in the event log; somebody who waits for a task asks again and again.

    So of reads that say nothing but how far a task is, the same one by the same caller is recorded once a minute at
    most, with how many there were. Everything else is recorded each time, before it is answered.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looks: OrderedDict[tuple[str, str, int], _Look] = OrderedDict()

    def due(self, caller: Caller, path: str, status: int) -> int:
        """Return how many calls are to be recorded for this look: 0 while the minute is not over."""
        key, now = (caller.token_id, path, status), self._clock()
        known = self._looks.pop(key, None)
        if known is not None and now < known.recorded_at + _LOOKS_S:
            known.calls += 1
            self._looks[key] = known
            return 0
        self._looks[key] = _Look(recorded_at=now, calls=0)
        while len(self._looks) > _LOOKS_KEPT:
            self._looks.popitem(last=False)
        return 1 + (known.calls if known is not None else 0)


_TELLING = ("/result", "/results", "/logs")


class RecordedRoute(APIRoute):
    """A route whose calls are recorded, and whose errors also say ``message``, which clients of the interface read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler."""
        handle = super().get_route_handler()
        looking = "GET" in (self.methods or ()) and not self.path.endswith(_TELLING)

        async def recorded(request: Request) -> Response:
            try:
                response = await handle(request)
            except RequestValidationError as error:
                response = _validation_refusal(error, request)
            except RunnelError as error:
                response = refusal(error, request)
            caller: Caller | None = getattr(request.state, "caller", None)
            if caller is None:
                log.warning("call refused", method=request.method, path=request.url.path, status=response.status_code)
                return response
            calls = 1
            if looking:
                calls = request.app.state.fds_calls.due(caller, request.url.path, response.status_code)
            if calls:
                await service_of(request).note_call(
                    caller, method=request.method, path=request.url.path, status=response.status_code, calls=calls
                )
            return response

        return recorded


def refusal(error: RunnelError, request: Request, /, *, status: int | None = None, **members: Any) -> Response:
    """Answer an error as these clients understand it: what is wrong with a request is a 400."""
    if isinstance(error, InvalidInput):
        status = HTTPStatus.BAD_REQUEST
    return problem(error, instance=request.url.path, status=status, message=str(error), **members)


def _validation_refusal(error: RequestValidationError, request: Request) -> Response:
    listed = [refused_field(each) for each in error.errors()]
    return refusal(InvalidInput(" ".join(f"{each['field']}: {each['message']}." for each in listed)), request)
