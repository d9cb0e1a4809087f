"""Files that come as request bodies, and what HTTP asks of a server that refuses one half-way."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Collection
from http import HTTPStatus

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runnel.common.errors import CorruptData, InvalidInput, TooLarge

BLOCK_BYTES = 1 << 20
_DRAIN_BYTES = 256 << 20
_DRAIN_S = 10.0

_SHA256_MEMBER = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/=]*):")


def announced_digest(request: Request) -> bytes | None:
    """Return the SHA-256 that ``Content-Digest`` (RFC 9530) announces, None without one; raises InvalidInput."""
    header = request.headers.get("content-digest")
    if header is None:
        return None
    match = _SHA256_MEMBER.search(header)
    try:
        digest = base64.b64decode(match[1], validate=True) if match else b""
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise InvalidInput(
            f"Content-Digest: {header!r} came; it has to be sha-256=:BASE64: of the body (RFC 9530).", got=header
        )
    return digest


async def body_blocks(request: Request) -> AsyncIterator[bytes]:
    """Yield the body in blocks of about 1 MiB and check it against the digest announced, if any.

    Raises:
        CorruptData: length or digest is not what was announced; nothing of the body may be used then.
    """
    expected = announced_digest(request)
    digest = hashlib.sha256()
    pending = bytearray()
    async for data in request.stream():
        pending += data
        if len(pending) >= BLOCK_BYTES:
            block, pending = bytes(pending), bytearray()
            if expected is not None:
                await asyncio.to_thread(digest.update, block)
            yield block
    if pending:
        block = bytes(pending)
        if expected is not None:
            await asyncio.to_thread(digest.update, block)
        yield block
    if expected is not None and digest.digest() != expected:
        raise CorruptData(
            f"The body has the SHA-256 {digest.hexdigest()}, but {expected.hex()} was announced.",
            hint="Send it again.",
        )


class BodyGate:
    """Limits bodies, and reads what is left of one before an error is answered.

    A server that answers and closes while the caller is still sending has its answer lost in a connection reset.
    Reading on is limited to 256 MiB and 10 seconds; beyond that the reset has to do.

    Args:
        app: what is behind.
        limit_bytes: of a body.
        unlimited: paths whose bodies are files; they are limited by what takes them in.
    """

    def __init__(self, app: ASGIApp, *, limit_bytes: int, unlimited: Collection[str]) -> None:
        self._app = app
        self._limit_bytes = limit_bytes
        self._unlimited = frozenset(unlimited)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, watching its body."""
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD"}:
            await self._app(scope, receive, send)
            return
        body = _Body(receive)
        limit = None if scope["path"] in self._unlimited else self._limit_bytes

        async def receiving() -> Message:
            message = await body.receive()
            if limit is not None and body.received > limit:
                raise TooLarge(f"The body is larger than the {limit} bytes that are allowed here.", limit_bytes=limit)
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= HTTPStatus.BAD_REQUEST:
                await body.drain()
            await send(message)

        await self._app(scope, receiving, sending)


class _Body:
    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = False
        self.received = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        self.received += len(message.get("body", b""))
        return message

    async def drain(self) -> None:
        end = self.received + _DRAIN_BYTES
        try:
            async with asyncio.timeout(_DRAIN_S):
                while not self._ended and self.received < end:
                    await self.receive()
        except TimeoutError:
            # The caller is too slow: it gets the answer now, or a reset.
            return


def request_identity(request: Request) -> bytes:
    """Return what tells one upload from another without reading it: length and digest as announced."""
    names = ("content-length", "content-digest")
    return "\n".join(request.headers.get(name, "") for name in names).encode()
