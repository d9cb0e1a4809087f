"""The blob port: calls of ``Fetch`` and ``Push`` whose bytes do not go through gRPC."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from runnel.common.errors import (
    BadSettings,
    CorruptData,
    DeadlineExceeded,
    InvalidInput,
    RunnelError,
    Unreachable,
)
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport.addresses import Address, parse_address
from runnel.transport.blob_calls import MOST_FRAME_BYTES
from runnel.transport.blob_connection import SMALL_BYTES, BlobConnection, Frame
from runnel.transport.chunk_wire import TakesParts
from runnel.transport.server import listen_error
from runnel.transport.status import error_wire, unexpected
from runnel.transport.tls import ServerTls
from runnel.transport.uplink_server import UplinkServer

_MOST_CONNECTIONS = 256  # as many descriptors are set aside (common/descriptors.py)
_FIRST_DEADLINE_S = 10.0
_FAREWELL_S = 5.0


class BlobServer:
    """Serves ``Fetch`` and ``Push`` of an :class:`UplinkServer` on a port of their own; an async context manager.

    Args:
        uplink: whose calls these are.
        listen: where gRPC does, ``HOST:PORT``; the host counts.
        port: which; 0: any free one; -1: none, and nothing is served.
        told: the port that nodes are told, if it is another one for them.
        tls: certificate and key, as gRPC's; None: plain text.
        grace_s: how long calls under way may take to end when the block is left.
    """

    def __init__(
        self,
        uplink: UplinkServer,
        listen: str,
        port: int = 0,
        *,
        told: int | None = None,
        tls: ServerTls | None = None,
        grace_s: float = 0.5,
    ) -> None:
        self._uplink = uplink
        self._address = Address(host=parse_address(listen).host, port=max(port, 0))
        self._off = port < 0
        self._told = told
        self._tls = tls
        self._grace_s = grace_s
        self._server: asyncio.Server | None = None
        self._calls: dict[BlobConnection, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._stack = AsyncExitStack()
        self._log = structlog.get_logger()

    async def __aenter__(self) -> BlobServer:
        """Start.

        Raises:
            Conflict: the port is taken.
            BadSettings: the address is none of this machine, or the certificate can't be read.
        """
        if self._off:
            return self
        try:
            listening = _listen(self._address)
        except OSError as error:
            raise listen_error(self._address) or BadSettings(f"Can't listen on {self._address}: {error}.") from error
        try:
            context = None if self._tls is None else self._tls.context()
            self._tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._accept, sock=listening, ssl=context)
        except BaseException:
            listening.close()
            raise
        self._uplink.blob_port = self._told or listening.getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is None:
            return
        self._server.close()
        self._tasks = None
        if self._calls:
            await asyncio.wait(self._calls.values(), timeout=self._grace_s)
        for task in self._calls.values():
            task.cancel()
        await self._stack.aclose()

    def _accept(self) -> BlobConnection:
        return BlobConnection("a caller", most_bytes=SMALL_BYTES, greeted=True, on_made=self._begin, on_lost=self._over)

    def _begin(self, connection: BlobConnection) -> None:
        if self._tasks is None or len(self._calls) >= _MOST_CONNECTIONS:
            connection.abort()  # its caller goes on over gRPC
        else:
            self._calls[connection] = self._tasks.create_task(self._serve(connection), name="blob")

    def _over(self, connection: BlobConnection) -> None:
        task = self._calls.pop(connection, None)
        if task is not None:
            task.cancel()

    async def _serve(self, connection: BlobConnection) -> None:
        try:
            try:
                await self._answer(connection)
            except RunnelError as error:
                await connection.write(Frame.STATUS, error_wire(error))
            except Exception:  # noqa: BLE001 - a fault in one call must not end the others
                await connection.write(Frame.STATUS, error_wire(unexpected(self._log, method="blob")))
            else:
                await connection.write(Frame.STATUS)
            async with asyncio.timeout(_FAREWELL_S):  # what still comes would reset the connection before it is read
                while True:
                    await connection.read()
        except (Unreachable, CorruptData, TimeoutError) as error:
            self._log.debug("a connection for a blob ended", detail=str(error))
        except Exception:  # noqa: BLE001 - as above
            unexpected(self._log, method="blob")
        finally:
            self._calls.pop(connection, None)
            connection.abort()

    async def _answer(self, connection: BlobConnection) -> None:
        method, key, context = await _call(connection)
        if key != self._uplink.blob_key:
            connection.abort()  # another node is meant; without an answer its caller goes on over gRPC
            return
        self._uplink.identify(context)
        connection.most_bytes = MOST_FRAME_BYTES
        if method == "Fetch":
            await self._uplink.Fetch(await context.request(), context)
        elif method == "Push":
            receipt = await self._uplink.Push(context, context)
            await connection.write(Frame.MESSAGE, receipt.SerializeToString())
        else:
            raise InvalidInput(f"There is no method {method[:40]!r} for blobs, only Fetch and Push.")


class BlobContext(TakesParts):
    """What ``Fetch`` and ``Push`` use of a :class:`grpc.aio.ServicerContext`."""

    def __init__(self, connection: BlobConnection, metadata: dict[str, str]) -> None:
        self._connection = connection
        self._metadata = tuple(metadata.items())

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what came with the call."""
        return self._metadata

    async def send_initial_metadata(self, _: object) -> None:
        """Let the caller send the rest."""
        await self._connection.write(Frame.TURN)

    async def request(self) -> pb.FetchRequest:
        """Return the only message of a fetch."""
        message = await self.read()
        if message is grpc.aio.EOF:
            raise InvalidInput("The call ended before its request.")
        try:
            return pb.FetchRequest.FromString(bytes(message))
        except DecodeError as error:
            raise InvalidInput(f"The request is no FetchRequest: {error}.") from error

    async def read(self) -> Any:
        """Return the next message, good until the one after it is asked for, or ``grpc.aio.EOF``."""
        kind, content = await self._connection.read()
        if kind is Frame.END:
            return grpc.aio.EOF
        if kind is not Frame.MESSAGE:
            raise InvalidInput(f"A frame {kind.name} came where a message was expected.")
        return content

    async def write(self, *parts: bytes | memoryview) -> None:
        """Send a message."""
        await self._connection.write(Frame.MESSAGE, *parts)


async def _call(connection: BlobConnection) -> tuple[str, str, Any]:
    try:
        async with asyncio.timeout(_FIRST_DEADLINE_S):
            kind, content = await connection.read()
    except TimeoutError:
        raise DeadlineExceeded(f"No call came within {_FIRST_DEADLINE_S:.0f} s.") from None
    try:
        call = json.loads(bytes(content)) if kind is Frame.CALL else {}
        metadata = {str(key): str(value) for key, value in call["metadata"].items()}
        method, key = str(call["method"]), str(call["key"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InvalidInput("The first frame must be a call: JSON with method, key and metadata.") from None
    return method, key, BlobContext(connection, metadata)


def _listen(address: Address) -> socket.socket:
    family, _, _, _, place = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    both = address.everywhere and family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    return socket.create_server(place[:2], family=family, backlog=_MOST_CONNECTIONS, dualstack_ipv6=both)
