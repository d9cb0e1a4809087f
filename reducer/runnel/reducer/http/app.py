"""The HTTP interface as one application."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from runnel.common.metrics import MetricsPage
from runnel.reducer.http import (
    bearings,
    datasets,
    events,
    models,
    network,
    packages,
    problems,
    pytaskmanager,
    sessions,
    tasks,
)
from runnel.reducer.http.fds import mount_sharing
from runnel.reducer.http.idempotency import Calls
from runnel.reducer.http.metrics import metrics_route
from runnel.reducer.http.uploads import BodyGate
from runnel.reducer.pytaskmanager import PtmMaster
from runnel.reducer.service import ReducerService
from runnel.reducer.web import mount_page

PREFIX = "/api/v1"
MAX_JSON_BYTES = 2 << 20

_DESCRIPTION = """
Everything that people do with a Runnel network: compute packages, models, sessions, tasks, nodes,
tokens and events.

* **Errors** are problem details (RFC 9457): `code` is stable, `detail` says what was expected and what came, `hint`
  what to do.
* **Ids** may be shortened to any unambiguous prefix of 4 characters or more.
* **Listings** come in pages: give `next` as `cursor`.
* **POST** may be repeated safely with an `Idempotency-Key`.
"""

_TAGS = [
    {"name": "sessions", "description": "Federated training, round after round."},
    {"name": "tasks", "description": "Container images at chosen sites, and what comes of them."},
    {"name": "datasets", "description": "What sites publish of their data."},
    {"name": "packages", "description": "The code that travels to the data."},
    {"name": "models", "description": "Seeds, and the trail of what came of them."},
    {"name": "network", "description": "Nodes, tokens and the state of things."},
    {"name": "events", "description": "What happens, as it happens."},
]


def create_app(
    service: ReducerService,
    *,
    insecure: bool,
    metrics: MetricsPage | None = None,
    metrics_open: bool = False,
    ptm: PtmMaster | None = None,
    registries: Sequence[str] = (),
) -> FastAPI:
    """Make the application that serves ``service`` below ``/api/v1``, its OpenAPI at ``/docs``, and the page at ``/``.

    ``metrics`` is served at ``/metrics``, without a token if ``metrics_open``. ``insecure`` only tells the
    documentation that no token is needed: who may do what is decided by the service. ``ptm`` is served below ``/ptm``,
    for what was written for PyTaskManager. ``registries`` are told to clients of Federated Data Sharing.
    ``app.state.closing`` is the event that ends its endless streams when it is set;
    :class:`runnel.reducer.http.HttpServer` does so before it stops.
    """
    app = FastAPI(
        title="Runnel",
        summary="One network that sends computation to data that cannot move.",
        description=_DESCRIPTION + ("\nThis network is **insecure**: it asks for no token.\n" if insecure else ""),
        version=version("runnel"),
        openapi_tags=_TAGS,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url="/docs",
        redoc_url=None,
        generate_unique_id_function=_operation_id,
        responses={
            "4XX": {"description": "Refused; see `detail` and `hint`", "content": {problems.MEDIA_TYPE: {}}},
            "5XX": {"description": "Failed", "content": {problems.MEDIA_TYPE: {}}},
        },
    )
    app.state.service = service
    app.state.calls = Calls()
    app.state.registries = tuple(registries)
    app.state.closing = asyncio.Event()
    problems.install(app)
    app.add_middleware(
        BodyGate, limit_bytes=MAX_JSON_BYTES, unlimited=(f"{PREFIX}/packages", f"{PREFIX}/models", f"{PREFIX}/blobs")
    )
    api = APIRouter()
    for part in (sessions, packages, models, network, events, bearings, tasks, datasets):
        api.include_router(part.router)

    @api.get("/healthz", tags=["network"], summary="Tell that the server answers")
    async def healthz() -> dict[str, str]:
        """Needs no token and touches nothing."""
        return {"status": "ok"}

    # Without a prefix here FastAPI would look for one of its own in every route below, and make all of them for that.
    app.include_router(api, prefix=PREFIX)
    if ptm is not None:
        app.state.ptm = ptm
        app.include_router(pytaskmanager.router)
        app.add_middleware(pytaskmanager.TokenInPath)
    if metrics is not None:
        app.include_router(metrics_route(metrics, service, open_to_all=metrics_open))
    mount_sharing(app)
    mount_page(app)
    return app


def _operation_id(route: APIRoute) -> str:
    return f"{route.tags[0] if route.tags else 'runnel'}_{route.name}"
