"""Compute packages over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response

from runnel.reducer.http.access import CallerDep, Cursor, Limit, Service
from runnel.reducer.http.answers import Listing, Package, listing
from runnel.reducer.http.files import Held, file_answer, upload_schema
from runnel.reducer.http.idempotency import OnceDep
from runnel.reducer.http.requests import RetireRequest, SignatureRequest
from runnel.reducer.http.uploads import body_blocks, request_identity

router = APIRouter(prefix="/packages", tags=["packages"])


@router.post(
    "",
    status_code=201,
    response_model=Package,
    summary="Store a compute package",
    openapi_extra=upload_schema("The archive: .tar.gz or .zip."),
)
async def add_package(
    request: Request,
    service: Service,
    caller: CallerDep,
    once: OnceDep,
    filename: Annotated[
        str, Query(min_length=1, max_length=200, description="Name of the archive, for people.")
    ] = "package.tar.gz",
) -> Response:
    """The body is the archive as it is. It is checked as a client would before it runs anything of it.

    The same archive again gives the entry that is there. `Content-Digest` (RFC 9530, sha-256) is verified when given.
    """

    async def act() -> Package:
        return Package.of(await service.add_package(caller, filename, body_blocks(request)))

    return await once.answer(act, status=201, body=request_identity(request))


@router.get("", response_model=Listing[Package], summary="List compute packages")
async def packages(service: Service, caller: CallerDep, cursor: Cursor = None, limit: Limit = 50) -> Listing[Package]:
    """Newest first."""
    return listing(await service.packages(caller, cursor, limit), Package.of)


@router.get("/{digest}", response_model=Package, summary="Show a compute package")
async def package(digest: str, service: Service, caller: CallerDep) -> Package:
    """By its digest or a prefix of 4 characters or more."""
    return Package.of(await service.package(caller, digest))


@router.post(
    "/{digest}/signatures", status_code=201, response_model=Package, summary="Say who vouches for a compute package"
)
async def sign_package(
    request: Request, digest: str, wanted: SignatureRequest, service: Service, caller: CallerDep, once: OnceDep
) -> Response:
    """An Ed25519 signature as `runnel package sign` writes it, in place of an earlier one by the same key.

    It is verified and kept. Which signers are believed is the policy of each site that is asked to run the package.
    """

    async def act() -> Package:
        return Package.of(await service.sign_package(caller, digest, wanted.read()))

    return await once.answer(act, status=201, body=await request.body())


@router.post("/{digest}/retire", response_model=Package, summary="Let no session be given a compute package")
async def retire_package(
    request: Request, digest: str, wanted: RetireRequest, service: Service, caller: CallerDep, once: OnceDep
) -> Response:
    """Sessions that have it go on, and can be resumed and extended. With `undo` it may be given again."""

    async def act() -> Package:
        return Package.of(await service.retire_package(caller, digest, undo=wanted.undo))

    return await once.answer(act, status=200, body=await request.body())


@router.get("/{digest}/content", response_class=FileResponse, summary="Download a compute package")
async def package_content(digest: str, service: Service, caller: CallerDep, held: Held) -> FileResponse:
    """The archive, byte for byte; `Range` is served."""
    view = await service.package(caller, digest)
    file = await held.enter_async_context(service.package_file(caller, view.digest))
    return file_answer(file, sha256=view.digest, filename=f"{view.name or view.digest[:12]}.tar.gz")
