"""The event log of the network over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response

from runnel.reducer.http.access import CallerDep, Limit, Service, sequence_number
from runnel.reducer.http.answers import Event, Listing, listing
from runnel.reducer.http.event_stream import EventStream
from runnel.reducer.service import Caller, ReducerService

router = APIRouter(prefix="/events", tags=["events"])

After = Annotated[str | None, Query(description="Only events after this sequence number; 0: all that were kept.")]
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="As `after`; browsers send it when they connect again.")
]

EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events as they happen, or a page of them",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


async def follow(
    request: Request,
    service: ReducerService,
    caller: Caller,
    session: str | None,
    *,
    after: str | None,
    last_event_id: str | None,
    limit: int,
) -> Response:
    """Answer with the events of ``session``, or of all, as the caller's ``Accept`` asks."""
    # A browser that connects again repeats its address: what it saw last wins over what it asked for first.
    start = 0
    if last_event_id:
        start = sequence_number(last_event_id, source="Last-Event-ID")
    elif after is not None:
        start = sequence_number(after, source="after")
    as_page = _wants_json(request)
    # Also tells whether the caller may, and whether the session exists, while it can still be an HTTP status.
    page = await service.events(caller, session, start, limit if as_page else 1)
    if not as_page:
        return EventStream(service.follow(caller, session, start), closing=request.app.state.closing)
    return Response(listing(page, Event.of).model_dump_json(), media_type="application/json")


@router.get("", summary="Follow the network", responses=EVENTS, response_model=Listing[Event])
async def events(
    request: Request,
    service: Service,
    caller: CallerDep,
    after: After = None,
    last_event_id: LastEventId = None,
    limit: Limit = 200,
) -> Response:
    """What happened and what happens: as server-sent events, or a page of JSON with `Accept: application/json`.

    Kept events carry a sequence number and a hash over the one before, so that the log shows when it was changed.
    """
    return await follow(request, service, caller, None, after=after, last_event_id=last_event_id, limit=limit)


def _wants_json(request: Request) -> bool:
    accept = request.headers.get("accept", "")
    return "application/json" in accept and "text/event-stream" not in accept
