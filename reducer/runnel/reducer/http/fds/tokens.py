"""Access tokens by OAuth 2's client credentials (RFC 6749, 4.4), and whether the server is there."""

from __future__ import annotations

from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from runnel.common.errors import InvalidInput, Unauthenticated
from runnel.reducer.http.access import Service
from runnel.reducer.http.fds.access import RecordedRoute, presented, refusal

_MAX_FORM = 16 << 10

router = APIRouter(route_class=RecordedRoute, include_in_schema=False)
health = APIRouter(include_in_schema=False)


@router.post("/auth/connect/token")
async def token(request: Request, service: Service) -> Response:
    """Give an access token for a token of the network: its id or name is the client id, the token itself the secret.

    Both come by basic authentication, or as client_id and client_secret of the form.
    """
    try:
        form = await _form(request)
        secret, client_id = presented(request)
        if client_id is None:
            secret, client_id = form.get("client_secret"), form.get("client_id")
        caller = await service.authenticate(secret, client_id=client_id or "")
    except Unauthenticated as error:
        answer = refusal(error, request, error="invalid_client")
        answer.headers["WWW-Authenticate"] = 'Basic realm="runnel"'
        return answer
    request.state.caller = caller
    if (grant := form.get("grant_type")) != "client_credentials":
        wrong = InvalidInput(f"grant_type: {str(grant)[:100]!r} came; the one that there is, is client_credentials.")
        return refusal(wrong, request, error="unsupported_grant_type" if grant else "invalid_request")
    made = await service.access_token(caller)
    return JSONResponse(
        {"access_token": made.token, "token_type": "Bearer", "expires_in": int(made.expires_in_s)},
        headers={"Cache-Control": "no-store"},
    )


async def _form(request: Request) -> dict[str, str]:
    body = await request.body()
    try:
        fields = parse_qs(body.decode() if len(body) <= _MAX_FORM else "", max_num_fields=20)
    except ValueError as error:
        raise InvalidInput("The body should be a form (application/x-www-form-urlencoded) and is not.") from error
    return {name: values[-1] for name, values in fields.items()}


@health.get("/health_check")
@health.get("/healthz")
async def healthy() -> dict[str, str]:
    """Needs no token and touches nothing."""
    return {"status": "ok"}
