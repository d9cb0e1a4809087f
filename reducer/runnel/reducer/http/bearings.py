"""Where a caller stands: what a page or program asks first."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field

from runnel.reducer.http.access import CallerDep, Service
from runnel.reducer.http.document import Document
from runnel.reducer.service import Caller, ReducerService

router = APIRouter(prefix="/bearings", tags=["network"])

_PAGE = 500


class Bearings(Document):
    """Who asks, and where the event log stands."""

    role: str = Field(description="What the token allows: operator, initiator, researcher or viewer.")
    organisation: str
    insecure: bool = Field(description="The network asks nobody for a token.")
    newest_event: int = Field(description="Follow the events after this one to hear only of what is still to come.")


@router.get("", response_model=Bearings, summary="Tell who asks, and where the event log stands")
async def bearings(service: Service, caller: CallerDep) -> Bearings:
    """What to ask first: then read what is needed, and follow `/events?after=` the newest event given here."""
    return Bearings(
        role=caller.role.value,
        organisation=caller.organisation,
        insecure=not caller.token_id,
        newest_event=await newest_event(service, caller),
    )


async def newest_event(service: ReducerService, caller: Caller) -> int:
    """Return the sequence number of the newest event that ``caller`` may see, 0 if there is none.

    The log is searched by doubling and halving: its numbers have gaps where events of other organisations are.
    """
    known, step = 0, _PAGE
    while found := (await service.events(caller, None, known + step, 1)).items:
        known, step = found[0].seq, step * 2
    beyond = known + step
    while beyond - known > _PAGE:
        middle = (known + beyond) // 2
        found = (await service.events(caller, None, middle, 1)).items
        if found:
            known = found[0].seq
        else:
            beyond = middle
    page = await service.events(caller, None, known, _PAGE)
    return page.items[-1].seq if page.items else known
