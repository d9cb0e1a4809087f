"""Sessions over HTTP: start, look, stop, resume, extend, update, follow."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from runnel.reducer.http.access import CallerDep, Cursor, Limit, Service
from runnel.reducer.http.answers import Event, Line, Listing, Session, listing
from runnel.reducer.http.events import EVENTS, After, LastEventId, follow
from runnel.reducer.http.idempotency import OnceDep
from runnel.reducer.http.requests import ExtendRequest, SessionRequest, UpdateRequest

router = APIRouter(prefix="/sessions", tags=["sessions"])


@router.post("", status_code=201, response_model=Session, summary="Start a session")
async def start(
    request: Request, wanted: SessionRequest, service: Service, caller: CallerDep, once: OnceDep
) -> Response:
    """Trains the seed model with the package for some rounds; the answer comes at once, training goes on."""

    async def act() -> Session:
        view = await service.start_session(
            caller, name=wanted.name, package=wanted.package, seed=wanted.seed, config=wanted.config()
        )
        return Session.of(view)

    return await once.answer(act, status=201, body=await request.body())


@router.get("", response_model=Listing[Session], summary="List sessions")
async def sessions(service: Service, caller: CallerDep, cursor: Cursor = None, limit: Limit = 50) -> Listing[Session]:
    """Newest first, without their rounds."""
    return listing(await service.sessions(caller, cursor, limit), Session.of)


@router.get("/{session}", response_model=Session, summary="Show a session")
async def session_entry(
    session: str,
    service: Service,
    caller: CallerDep,
    clients: Annotated[bool, Query(description="Add each client's part in each round.")] = False,
) -> Session:
    """With its rounds; the same shape while it runs and after."""
    return Session.of(await service.session(caller, session, clients=clients))


@router.post("/{session}/stop", response_model=Session, summary="Stop a session")
async def stop(session: str, service: Service, caller: CallerDep, once: OnceDep) -> Response:
    """Calls the work off; the newest model stays, and the session can be resumed."""

    async def act() -> Session:
        return Session.of(await service.stop_session(caller, session))

    return await once.answer(act, status=200)


@router.post("/{session}/resume", response_model=Session, summary="Resume a session")
async def resume(session: str, service: Service, caller: CallerDep, once: OnceDep) -> Response:
    """Goes on with a stopped or failed session where it ended."""

    async def act() -> Session:
        return Session.of(await service.resume_session(caller, session))

    return await once.answer(act, status=200)


@router.post("/{session}/extend", response_model=Session, summary="Add rounds to a session")
async def extend(
    request: Request, session: str, wanted: ExtendRequest, service: Service, caller: CallerDep, once: OnceDep
) -> Response:
    """An ended session goes on."""

    async def act() -> Session:
        return Session.of(await service.extend_session(caller, session, wanted.rounds))

    return await once.answer(act, status=200, body=await request.body())


@router.post("/{session}/update", response_model=Session, summary="Give a session another package")
async def update(
    request: Request, session: str, wanted: UpdateRequest, service: Service, caller: CallerDep, once: OnceDep
) -> Response:
    """From the next round that begins; the one under way, its retries too, keeps the package that it has.

    The model goes on as it is, so the new package has to take and to give the same arrays.
    """

    async def act() -> Session:
        return Session.of(await service.update_session(caller, session, wanted.package))

    return await once.answer(act, status=200, body=await request.body())


@router.get("/{session}/logs", response_model=Listing[Line], summary="Read what the entry points wrote")
async def logs(
    session: str,
    service: Service,
    caller: CallerDep,
    round: Annotated[int | None, Query(ge=1, description="Only of this round.")] = None,
    client: Annotated[str | None, Query(description="Only of this client.")] = None,
    cursor: Cursor = None,
    limit: Limit = 200,
) -> Listing[Line]:
    """Oldest first."""
    page = await service.session_logs(caller, session, round_number=round, client=client, cursor=cursor, limit=limit)
    return listing(page, Line.of)


@router.get("/{session}/events", summary="Follow a session", responses=EVENTS, response_model=Listing[Event])
async def events(
    request: Request,
    session: str,
    service: Service,
    caller: CallerDep,
    after: After = None,
    last_event_id: LastEventId = None,
    limit: Limit = 200,
) -> Response:
    """What happened and what happens in it: as server-sent events, or a page of JSON with `Accept: application/json`.

    Kinds: session.created, session.updated, session.phase, round.committed, session.ended, client.failed; and progress,
    which passes and is not kept. The stream has no end: a session that ended may be resumed.
    """
    return await follow(request, service, caller, session, after=after, last_event_id=last_event_id, limit=limit)
