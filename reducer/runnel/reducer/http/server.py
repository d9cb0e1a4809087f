"""Serves an application on an address, without taking over the process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType

import structlog
import uvicorn
from fastapi import FastAPI

from runnel.common.errors import BadSettings, Conflict
from runnel.transport.addresses import Address, parse_address
from runnel.transport.tls import ServerTls

log = structlog.get_logger()

STOP_S = 10.0


class HttpServer:
    """Serves ``app`` while it is entered: ``async with HttpServer(app, "127.0.0.1:7480") as server: …``.

    Args:
        app: made by :func:`runnel.reducer.http.create_app`.
        listen: HOST:PORT; port 0 picks a free one.
        tls: certificate and key; None serves plain HTTP.
        stop_s: seconds that running requests get at the end; endless streams are ended at once.

    Entering raises Conflict when the port is taken and BadSettings when the address is not one of this machine or the
    certificate can't be read. It installs no signal handlers. Leaving refuses new requests, ends the event streams,
    lets running requests end, and returns when nothing runs any more.
    """

    def __init__(self, app: FastAPI, listen: str, tls: ServerTls | None = None, *, stop_s: float = STOP_S) -> None:
        self._app = app
        self._listen = listen
        self._tls = tls
        self._stop_s = stop_s
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._address = ""

    @property
    def address(self) -> str:
        """HOST:PORT that it listens on, with the port that was picked."""
        return self._address

    @property
    def url(self) -> str:
        """What people give as ``--url``."""
        return f"{'https' if self._tls else 'http'}://{self._address}"

    @property
    def stopping(self) -> bool:
        """Whether it takes no new requests any more."""
        return bool(self._app.state.closing.is_set())

    async def __aenter__(self) -> HttpServer:
        wanted = parse_address(self._listen, key="http")
        listener = await asyncio.to_thread(_bind, wanted)
        try:
            config = uvicorn.Config(
                self._app,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_graceful_shutdown=max(1, round(self._stop_s)),
                ssl_certfile=str(self._tls.cert_file) if self._tls else None,
                ssl_keyfile=str(self._tls.key_file) if self._tls else None,
            )
            self._server = _Server(config)
            await asyncio.to_thread(config.load)
        except OSError as error:
            listener.close()
            raise BadSettings(
                f"The certificate or key for {self._listen} can't be read: {error}.",
                hint="Give PEM files by --tls-cert and --tls-key.",
            ) from error
        self._address = str(replace(wanted, port=listener.getsockname()[1]))
        self._serving = asyncio.create_task(self._server.serve([listener]), name="http server")
        await self._server.up.wait()
        log.info("http serving", address=self._address, tls=self._tls is not None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        assert self._serving is not None
        self._app.state.closing.set()
        self._server.down.set()
        await self._serving


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers, and waiting for its end instead of asking ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self.down = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        self.server_state.default_headers = self.config.encoded_headers
        self.up.set()
        await self.down.wait()
        self.should_exit = True


def _bind(wanted: Address) -> socket.socket:
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            wanted.host, wanted.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _no_address(wanted, error) from error
    try:
        # A port in TIME_WAIT after a restart is free; one that somebody listens on is still refused on POSIX.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(2048)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno != errno.EADDRINUSE:
            raise _no_address(wanted, error) from error
        raise Conflict(
            f"Something listens on {wanted} already.",
            hint="Stop it, or choose another address by --http HOST:PORT; port 0 picks a free one.",
            address=str(wanted),
        ) from error
    return listener


def _no_address(wanted: Address, error: OSError) -> BadSettings:
    return BadSettings(
        f"Can't listen on {wanted}: {error.strerror or error}.",
        hint="Choose an address of this machine by --http HOST:PORT.",
        address=str(wanted),
    )
