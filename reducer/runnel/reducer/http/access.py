"""Who asks, and of whom: the dependencies that every route shares."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from runnel.common.errors import InvalidInput
from runnel.reducer.service import Caller, ReducerService

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="A token of `runnel token create`, or the operator token that a reducer makes at its first start. "
    "An insecure network needs none.",
)

MAX_PAGE = 1000


def service_of(request: Request) -> ReducerService:
    """Return the service behind this app."""
    service: ReducerService = request.app.state.service
    return service


Service = Annotated[ReducerService, Depends(service_of)]


async def caller_of(
    service: Service, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Caller:
    """Return who asks; raises Unauthenticated."""
    return await service.authenticate(credentials.credentials if credentials else None)


CallerDep = Annotated[Caller, Depends(caller_of)]
Cursor = Annotated[str | None, Query(max_length=500, description="`next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many items at most.")]


def sequence_number(text: str, *, source: str) -> int:
    """Read the sequence number of an event; raises InvalidInput naming its source."""
    if text.isascii() and text.isdigit() and len(text) < 19:
        return int(text)
    raise InvalidInput(f"{source}: {text!r} came; it has to be the sequence number of an event, 0 or more.", got=text)
