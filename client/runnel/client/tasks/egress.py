"""The way out of a run's containers: an HTTP proxy on their own network that leads to the named hosts and nowhere else.

``CONNECT`` (RFC 9110, 9.3.6) for TLS and whatever else, and plain requests with a whole address (RFC 9112, 3.2.2), one
of them a connection. Names are resolved here, once, and the address that was judged is the one that is reached.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import ipaddress
import secrets
import socket
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import h11
import structlog

from runnel.client.domain.egress import EgressHost, is_within, plain_host, split_port
from runnel.common.errors import EnvironmentFailed

_USER = "run"
_HEAD_BYTES = 64 << 10
_HEAD_S = 30.0
_CONNECT_S = 15.0
_LINGER_S = 1.0
_BLOCK_BYTES = 64 << 10
_CONNECTIONS = 256
_NAMED = 256
_OTHERS = "others"
_DIRECT = ("localhost", "127.0.0.1", "::1")
# Of this connection, not of the request: they are not passed on (RFC 9110, 7.6.1).
_OWN_HEADERS = frozenset({b"connection", b"proxy-connection", b"keep-alive", b"proxy-authorization", b"te", b"upgrade"})

log = structlog.get_logger()


@dataclass(slots=True)
class Traffic:
    """What a run did with its way out, by ``host:port`` as it asked for them; those beyond 256 are counted together.

    Args:
        connections: that were made.
        refused: that were not: the policy does not name them.
        bytes_out: from the run.
        bytes_in: to the run.
    """

    connections: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    bytes_out: int = 0
    bytes_in: int = 0

    def connected(self, where: str) -> None:
        """Count a connection that was made."""
        self.connections[_named(self.connections, where)] += 1

    def refuse(self, where: str) -> bool:
        """Count one that was not; return whether it is the first to there."""
        name = _named(self.refused, where)
        self.refused[name] += 1
        return self.refused[name] == 1

    def note(self) -> dict[str, object]:
        """Return it for the audit log."""
        return {
            "connections": dict(self.connections.most_common()),
            "refused": dict(self.refused.most_common()),
            "bytes_out": self.bytes_out,
            "bytes_in": self.bytes_in,
        }


def _named(counted: Counter[str], where: str) -> str:
    return where if where in counted or len(counted) < _NAMED else _OTHERS


class _Refused(Exception):
    """The answer to a request that goes nowhere: a status of HTTP, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class EgressProxy:
    """Leads one run to ``hosts``.

    Args:
        hosts: that may be reached.
        run_id: of the run.
        traffic: where its connections are counted.
    """

    def __init__(self, hosts: Sequence[EgressHost], *, run_id: str, traffic: Traffic) -> None:
        self._hosts = hosts
        self._run_id = run_id
        self._password = secrets.token_urlsafe(24)
        self._open: set[asyncio.Task[None]] = set()
        self._traffic = traffic

    @contextlib.asynccontextmanager
    async def serving(self, address: str) -> AsyncIterator[Mapping[str, str]]:
        """Listen at ``address`` while the block runs; give the variables by which programs find the proxy.

        Raises:
            EnvironmentFailed: that is no address of this machine.
        """
        try:
            server = await asyncio.start_server(self._accept, address, 0, limit=_BLOCK_BYTES)
        except OSError as error:
            raise EnvironmentFailed(
                f"Can't listen at {address}, where a run would find its way out: {error.strerror or error}.",
                hint="The client has to run on the machine of its engine.",
                address=address,
            ) from error
        port = server.sockets[0].getsockname()[1]
        where = f"http://{_USER}:{self._password}@{address}:{port}"
        named = {each.host for each in self._hosts}
        direct = ",".join([*(each for each in _DIRECT if each not in named), address])
        try:
            yield {
                name: value
                for upper, value in (("HTTP_PROXY", where), ("HTTPS_PROXY", where), ("NO_PROXY", direct))
                for name in (upper, upper.lower())
            }
        finally:
            server.close()
            for task in self._open:
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)
            await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= _CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer), name=f"way out of {self._run_id}")
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES)
        try:
            try:
                async with asyncio.timeout(_HEAD_S):
                    request = await _request(asked, reader)
                if request is not None:
                    await self._lead(asked, request, reader, writer)
            except _Refused as error:
                await _refuse(error, reader, writer)
            except h11.RemoteProtocolError as error:
                refused = _Refused(error.error_status_hint, "This is no HTTP that is understood here.")
                await _refuse(refused, reader, writer)
        except (OSError, TimeoutError) as error:  # one of both ends is gone, or says nothing
            log.debug("a connection of a run ended", run=self._run_id, error=str(error))
        finally:
            writer.close()

    async def _lead(
        self, asked: h11.Connection, request: h11.Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._require_password(request)
        connecting = request.method == b"CONNECT"
        target = request.target.decode("ascii", "replace")
        host, port, path = _authority(target) if connecting else _whole_address(target)
        there_reader, there_writer = await self._connect(host, port)
        try:
            if connecting:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                way_out = self._pass_out(asked.trailing_data[0], reader, there_writer)
            else:
                way_out = self._pass_request(asked, _forwarded(request, path), reader, there_writer)
            outgoing = asyncio.create_task(way_out)
            try:
                # Who is asked ends it; what still goes out then is for nobody.
                await self._pass_in(there_reader, writer)
            finally:
                outgoing.cancel()
                await asyncio.gather(outgoing, return_exceptions=True)
        finally:
            there_writer.close()

    def _require_password(self, request: h11.Request) -> None:
        expected = base64.b64encode(f"{_USER}:{self._password}".encode())
        shown = dict(request.headers).get(b"proxy-authorization", b"")
        scheme, _, given = shown.partition(b" ")
        if scheme.lower() != b"basic" or not hmac.compare_digest(given.strip(), expected):
            raise _Refused(
                407, "The way out is the run's own: its variables HTTPS_PROXY and HTTP_PROXY say how it is used."
            )

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        where = f"{host}:{port}"
        entry = next((each for each in self._hosts if each.allows(host, port)), None)
        if entry is None:
            if self._traffic.refuse(where):
                log.info("a run may not go there", run=self._run_id, host=host, port=port)
            raise _Refused(403, f"The policy of this site (tasks.egress) does not lead to {where}.")
        try:
            async with asyncio.timeout(_CONNECT_S):
                loop = asyncio.get_running_loop()
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                addresses = [str(each[4][0]) for each in found]
                if not entry.by_address:
                    # A name is not to lead back to this machine, whoever answers for it.
                    addresses = [each for each in addresses if not is_within(ipaddress.ip_address(each.split("%")[0]))]
                for address in addresses:
                    with contextlib.suppress(OSError):
                        streams = await asyncio.open_connection(address, port, limit=_BLOCK_BYTES)
                        self._traffic.connected(where)
                        return streams
        except (OSError, TimeoutError) as error:
            raise _Refused(
                504 if isinstance(error, TimeoutError) else 502, f"{where} is not reached: {error}."
            ) from error
        raise _Refused(502, f"{where} does not answer, or leads to this machine.")

    # ---- what passes

    async def _pass_out(self, first: bytes, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        block = first or await source.read(_BLOCK_BYTES)
        while block:
            self._traffic.bytes_out += len(block)
            target.write(block)
            await target.drain()
            block = await source.read(_BLOCK_BYTES)
        target.write_eof()

    async def _pass_in(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while block := await source.read(_BLOCK_BYTES):
            self._traffic.bytes_in += len(block)
            target.write(block)
            await target.drain()
        target.write_eof()

    async def _pass_request(
        self, asked: h11.Connection, request: h11.Request, source: asyncio.StreamReader, target: asyncio.StreamWriter
    ) -> None:
        there = h11.Connection(h11.CLIENT)
        event: h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED] = request
        while True:
            if event is h11.NEED_DATA:
                asked.receive_data(await source.read(_BLOCK_BYTES))
            elif isinstance(event, (h11.Request, h11.Data, h11.EndOfMessage)):
                data = there.send(event) or b""
                self._traffic.bytes_out += len(data)
                target.write(data)
                await target.drain()
                if isinstance(event, h11.EndOfMessage):
                    return
            event = asked.next_event()


async def _request(asked: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """Return what is asked; None: nothing, the connection was closed."""
    while True:
        event = asked.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        asked.receive_data(await reader.read(_BLOCK_BYTES))


def _authority(target: str) -> tuple[str, int, str]:
    try:
        host, port = split_port(target)
        if port is None:
            raise ValueError("no port")
        return plain_host(host), port, ""
    except ValueError:
        raise _Refused(400, f"CONNECT wants HOST:PORT and came with {target[:100]!r}.") from None


def _whole_address(target: str) -> tuple[str, int, str]:
    try:
        parts = urlsplit(target)
        if parts.scheme != "http" or not parts.hostname or parts.username is not None:
            raise ValueError(target)
        path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
        return plain_host(parts.hostname), parts.port or 80, path if path.startswith("/") else f"/{path}"
    except ValueError:
        raise _Refused(400, f"A proxy wants http://HOST[:PORT]/PATH and was asked for {target[:100]!r}.") from None


def _forwarded(request: h11.Request, path: str) -> h11.Request:
    """Return the request as the server there is asked; its answer ends the connection."""
    kept = [(name, value) for name, value in request.headers if name not in _OWN_HEADERS]
    return h11.Request(method=request.method, target=path.encode(), headers=[*kept, (b"Connection", b"close")])


async def _refuse(error: _Refused, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_answer(error))
    writer.write_eof()
    # Closed while something was unread the connection would be reset, and the answer lost with it.
    async with asyncio.timeout(_LINGER_S):
        while await reader.read(_BLOCK_BYTES):
            pass


def _answer(error: _Refused) -> bytes:
    body = f"{error}\n".encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    if error.status == 407:
        headers.append(("Proxy-Authenticate", 'Basic realm="runnel"'))
    answering = h11.Connection(h11.SERVER)
    head = answering.send(h11.Response(status_code=error.status, headers=headers)) or b""
    return head + (answering.send(h11.Data(data=body)) or b"")
