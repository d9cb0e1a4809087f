"""``/metrics`` for Prometheus, on the port of the HTTP interface."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from runnel.common.errors import Forbidden, Unauthenticated
from runnel.common.metrics import MetricsPage
from runnel.reducer.authority import READERS, require
from runnel.reducer.domain.values import DEFAULT_ORGANISATION
from runnel.reducer.service import ReducerService


def metrics_route(page: MetricsPage, service: ReducerService, *, open_to_all: bool) -> APIRouter:
    """Make the route. Without ``open_to_all`` it wants a token of the organisation that runs the network.

    It is not part of the interface that OpenAPI describes.
    """
    router = APIRouter()

    @router.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        if not open_to_all:
            await _authorise(service, request.headers.get("authorization", ""))
        body, kind = await page.render()
        return Response(body, media_type=kind)

    return router


async def _authorise(service: ReducerService, header: str) -> None:
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated(
            "The request carries no token.",
            hint="Let Prometheus send one of the role viewer (authorization: credentials_file), or start the reducer"
            " with --metrics open.",
        )
    caller = await service.authenticate(token.strip())
    require(caller, READERS)
    if caller.organisation != DEFAULT_ORGANISATION:
        raise Forbidden(
            f"The metrics are of the whole network, and {caller.organisation} is one of those it serves.",
            hint="Ask the operator of the network.",
        )
