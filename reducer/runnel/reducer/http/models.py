"""Models over HTTP: seeds and the trail of what came of them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response

from runnel.reducer.http.access import CallerDep, Cursor, Limit, Service
from runnel.reducer.http.answers import Listing, Model, listing
from runnel.reducer.http.files import Held, file_answer, upload_schema
from runnel.reducer.http.idempotency import OnceDep
from runnel.reducer.http.uploads import body_blocks, request_identity

router = APIRouter(prefix="/models", tags=["models"])


@router.post(
    "",
    status_code=201,
    response_model=Model,
    summary="Store a seed model",
    openapi_extra=upload_schema("The model: .npz without pickled objects, or .safetensors."),
)
async def add_model(request: Request, service: Service, caller: CallerDep, once: OnceDep) -> Response:
    """The body is the model's file as it is. `Content-Digest` (RFC 9530, sha-256) is verified when given.

    A .safetensors file is kept as .npz, in which models travel; the answer's `digest` is that of the .npz.
    """

    async def act() -> Model:
        return Model.of(await service.add_model(caller, body_blocks(request)))

    return await once.answer(act, status=201, body=request_identity(request))


@router.get("", response_model=Listing[Model], summary="List models")
async def models(
    service: Service,
    caller: CallerDep,
    session: Annotated[str | None, Query(description="Only those of this session.")] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Listing[Model]:
    """Newest first."""
    return listing(await service.models(caller, session, cursor, limit), Model.of)


@router.get("/{model}", response_model=Model, summary="Show a model")
async def model_entry(model: str, service: Service, caller: CallerDep) -> Model:
    """With its parent, round, metrics and participants with their weights."""
    return Model.of(await service.model(caller, model))


@router.delete("/{model}", response_model=Model, summary="Remove a seed model")
async def remove_model(model: str, service: Service, caller: CallerDep) -> Model:
    """One that no session began with; any other is refused with 409, for trails stay whole."""
    return Model.of(await service.remove_model(caller, model))


@router.get("/{model}/content", response_class=FileResponse, summary="Download a model")
async def model_content(model: str, service: Service, caller: CallerDep, held: Held) -> FileResponse:
    """The .npz file, byte for byte; `Range` is served."""
    view = await service.model(caller, model)
    file = await held.enter_async_context(service.model_file(caller, view.model))
    return file_answer(file, sha256=view.digest, filename=f"{view.model}.npz")
