"""A small HTTP server that serves one page: for components that serve no HTTP otherwise."""

from __future__ import annotations

import asyncio
import errno
from http import HTTPStatus
from types import TracebackType

import structlog

from runnel.common.errors import BadSettings, Conflict
from runnel.common.metrics.page import MetricsPage

log = structlog.get_logger()

_MAX_HEAD_BYTES = 16 << 10
_REQUEST_S = 10.0
_MAX_CONNECTIONS = 16


class MetricsServer:
    """Serves ``GET /metrics`` in plain HTTP while it is entered; an async context manager.

    Args:
        page: what is served.
        host: on which to listen.
        port: 0 picks a free one.

    Entering raises BadSettings or Conflict when it can't listen there.
    """

    def __init__(self, page: MetricsPage, host: str, port: int) -> None:
        self._page = page
        self._host, self._port = host, port
        self._server: asyncio.Server | None = None
        self._under_way: set[asyncio.StreamWriter] = set()
        self.port = port

    async def __aenter__(self) -> MetricsServer:
        try:
            self._server = await asyncio.start_server(self._answer, self._host, self._port, limit=_MAX_HEAD_BYTES)
        except OSError as error:
            where = f"{self._host}:{self._port}"
            if error.errno == errno.EADDRINUSE:
                raise Conflict(
                    f"Something listens on {where} already.", hint="Choose another address by --metrics HOST:PORT."
                ) from error
            raise BadSettings(
                f"Can't listen on {where} for metrics: {error.strerror or error}.",
                hint="Choose an address of this machine by --metrics HOST:PORT.",
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]
        log.info("metrics serving", address=f"{self._host}:{self.port}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._under_way):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._under_way.add(writer)
        try:
            async with asyncio.timeout(_REQUEST_S):
                if len(self._under_way) > _MAX_CONNECTIONS:
                    writer.write(_response(HTTPStatus.SERVICE_UNAVAILABLE))
                else:
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(await self._response(head.split(b"\r\n", 1)[0]))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError) as error:
            log.debug("scrape not answered", error=str(error))
        finally:
            self._under_way.discard(writer)
            writer.close()

    async def _response(self, line: bytes) -> bytes:
        method, target, *_ = [*line.split(b" "), b"", b""]
        if target.partition(b"?")[0] != b"/metrics":
            return _response(HTTPStatus.NOT_FOUND)
        if method not in {b"GET", b"HEAD"}:
            return _response(HTTPStatus.METHOD_NOT_ALLOWED)
        body, kind = await self._page.render()
        return _response(HTTPStatus.OK, body, kind, with_body=method == b"GET")


def _response(status: HTTPStatus, body: bytes = b"", kind: str = "text/plain", *, with_body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
