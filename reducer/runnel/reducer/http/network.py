"""The network over HTTP: how it is, who is in it, who may ask."""

from __future__ import annotations

import dataclasses

from fastapi import APIRouter, Request
from fastapi.responses import Response

from runnel.reducer.http.access import CallerDep, Cursor, Limit, Service
from runnel.reducer.http.answers import Listing, Node, Status, Token, listing
from runnel.reducer.http.idempotency import OnceDep
from runnel.reducer.http.requests import TokenRequest
from runnel.transport import parse_address

router = APIRouter(tags=["network"])


@router.get("/status", response_model=Status, summary="Show the network at a glance")
async def status(request: Request, service: Service, caller: CallerDep) -> Status:
    """Version, addresses and how much is going on."""
    view = await service.status(caller)
    # Where it listens on all addresses, the one by which this caller came is one that can be called.
    bound = parse_address(view.rpc_address)
    return Status.of(dataclasses.replace(view, rpc_address=str(bound.to_call(request.url.hostname or ""))))


@router.get("/nodes", response_model=Listing[Node], summary="List clients and combiners")
async def nodes(service: Service, caller: CallerDep, cursor: Cursor = None, limit: Limit = 50) -> Listing[Node]:
    """By name; those that are away stay listed."""
    return listing(await service.nodes(caller, cursor, limit), Node.of)


@router.post("/tokens", status_code=201, response_model=Token, summary="Make a token")
async def create_token(
    request: Request, wanted: TokenRequest, service: Service, caller: CallerDep, once: OnceDep
) -> Response:
    """Only this answer carries the secret. Repeated with its Idempotency-Key it comes again for ten minutes."""

    async def act() -> Token:
        view = await service.create_token(
            caller, role=wanted.role, name=wanted.name, organisation=wanted.organisation, ttl_s=wanted.ttl_s
        )
        return Token.of(view)

    answer = await once.answer(act, status=201, body=await request.body(), secret="token")  # noqa: S106 (a field's name)
    answer.headers["Cache-Control"] = "no-store"
    return answer


@router.get("/tokens", response_model=Listing[Token], summary="List tokens")
async def tokens(service: Service, caller: CallerDep, cursor: Cursor = None, limit: Limit = 50) -> Listing[Token]:
    """Newest first, without their secrets."""
    return listing(await service.tokens(caller, cursor, limit), Token.of)


@router.delete("/tokens/{token_id}", response_model=Token, summary="Revoke a token")
async def revoke_token(token_id: str, service: Service, caller: CallerDep) -> Token:
    """Ends it at once."""
    return Token.of(await service.revoke_token(caller, token_id))
