"""The page at ``/`` and its files at ``/web``: static, the same for everybody, and nothing from anywhere else.

All that it shows comes from the HTTP interface, asked with the token of who looks.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.datastructures import Headers
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STATIC = Path(__file__).parent / "static"

# What comes from strangers (names, logs, metrics) is only ever text on the page; should it ever become more than that,
# then the browser refuses: no script, style or connection but our own, and no text that turns into elements.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Asked again each time, answered by 304 while it is the same: a new version is seen at once.
    "Cache-Control": "no-cache",
}


def mount_page(app: FastAPI) -> None:
    """Have ``app`` serve the page. It asks the HTTP interface below ``api/v1``, relative to where it is served."""
    files = StaticFiles(directory=STATIC)

    async def page(request: Request) -> Response:
        found = await files.get_response("index.html", request.scope)
        found.headers.update(_HEADERS)
        return found

    app.add_api_route("/", page, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount("/web", _Guarded(files), name="web")


class _Guarded:
    """Adds the page's headers to each answer of ``app``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = Headers(raw=message.get("headers", [])).mutablecopy()
                headers.update(_HEADERS)
                message["headers"] = headers.raw
            await send(message)

        await self._app(scope, receive, sending)
