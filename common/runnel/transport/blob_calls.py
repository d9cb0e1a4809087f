"""Calls of ``Fetch`` and ``Push`` over connections of their own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import structlog

from runnel.common.errors import CorruptData, Unreachable
from runnel.common.protocol import Welcome
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport.addresses import Address, parse_address
from runnel.transport.blob_connection import BlobConnection, Frame
from runnel.transport.channels import behind_proxy
from runnel.transport.chunk_wire import TakesParts
from runnel.transport.chunks import MAX_CHUNK_BYTES
from runnel.transport.status import told_error
from runnel.transport.tls import ClientTls

if TYPE_CHECKING:
    import ssl

MOST_FRAME_BYTES = MAX_CHUNK_BYTES + (16 << 10)
"""A full chunk and what else its message says."""

_CONNECT_S = 2.0
_REST_S = 300.0


class BlobRoute:
    """The way to the blob port of one node, as long as it is there.

    Args:
        address: of the port.
        key: that the node told; who answers there with another is another node.
        peer: name and address of the node, for messages.
        tls: whom to trust; None: plain text.
    """

    def __init__(self, address: Address, key: str, *, peer: str, tls: ClientTls | None) -> None:
        self.key = key
        self._address = address
        self._peer = peer
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._rests_until = 0.0
        self._log = structlog.get_logger()

    async def call(self) -> BlobCall | None:
        """Connect for one call; None: that is not possible, now or lately, and gRPC has to do."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._rests_until:
            return None
        try:
            if self._tls is not None and self._context is None:
                self._context = self._tls.context()
            async with asyncio.timeout(_CONNECT_S):
                _, connection = await loop.create_connection(
                    lambda: BlobConnection(self._peer, most_bytes=MOST_FRAME_BYTES),
                    self._address.host,
                    self._address.port,
                    ssl=self._context,
                )
        except (OSError, TimeoutError) as error:  # also what is wrong with TLS
            self.rest(str(error) or f"no answer in {_CONNECT_S:.0f} s")
            return None
        return BlobCall(connection, self)

    def rest(self, why: str) -> None:
        """Leave large blobs to gRPC for a while."""
        self._rests_until = asyncio.get_running_loop().time() + _REST_S
        self._log.info("large blobs go over gRPC", via=self._peer, blob_port=str(self._address), detail=why)


def route_to(address: str, welcome: Welcome, *, peer: str, tls: ClientTls | None) -> BlobRoute | None:
    """Return the way to the blob port of the node at ``address``, ``HOST:PORT``, that said ``welcome``.

    None if it has none, and behind an HTTP proxy: then the way through that is the only one that may be taken.
    """
    node = parse_address(address)
    if not welcome.blob_port or behind_proxy(node):
        return None
    return BlobRoute(Address(host=node.host, port=welcome.blob_port), welcome.blob_key, peer=peer, tls=tls)


class BlobCall(TakesParts):
    """One call, with what :class:`~runnel.transport.chunk_wire.BlobCalls` and the calls of gRPC have of it."""

    def __init__(self, connection: BlobConnection, route: BlobRoute) -> None:
        self._connection = connection
        self._route = route
        self._method = ""
        self._metadata: Sequence[tuple[str, str]] = ()
        self._request: bytes | None = None
        self._begun = False

    def fetch(self, request: pb.FetchRequest, *, metadata: Sequence[tuple[str, str]]) -> BlobCall:
        """Fetch: the messages that come are iterated over; each is good until the next is asked for."""
        self._method, self._metadata, self._request = "Fetch", metadata, request.SerializeToString()
        return self

    def push(self, *, metadata: Sequence[tuple[str, str]]) -> BlobCall:
        """Push: messages are written, and the receipt is awaited."""
        self._method, self._metadata = "Push", metadata
        return self

    def cancel(self) -> None:
        """End the call, if it has not ended."""
        self._connection.abort()

    def __aiter__(self) -> BlobCall:
        return self

    async def __anext__(self) -> bytes | memoryview:
        message = await self._next()
        if message is None:
            raise StopAsyncIteration
        return message

    async def write(self, *parts: bytes | memoryview) -> None:
        """Send a message; raises ``InvalidStateError`` if the call has been answered already."""
        if self._connection.ready:
            raise asyncio.InvalidStateError
        await self._send(Frame.MESSAGE, *parts)

    async def done_writing(self) -> None:
        """Say that there are no more messages."""
        if not self._connection.ready:
            await self._send(Frame.END)

    async def initial_metadata(self) -> None:
        """Wait until the rest may come, or the answer is there."""
        await self._connection.turn.wait()

    def __await__(self) -> Generator[Any, None, pb.Receipt]:
        return self._receipt().__await__()

    async def _receipt(self) -> pb.Receipt:
        message = await self._next()
        if message is None:
            raise CorruptData(f"{self._connection.peer} answered a push with nothing.", peer=self._connection.peer)
        receipt = pb.Receipt.FromString(bytes(message))
        await self._next()
        return receipt

    async def _next(self) -> bytes | memoryview | None:
        try:
            await self._begin()
            kind, content = await self._connection.read()
            if kind is Frame.MESSAGE:
                return content
            if kind is not Frame.STATUS:
                raise CorruptData(f"A frame {kind.name} came from there.")
        except (Unreachable, CorruptData) as error:
            self._lost(error)
        if content:
            raise self._told(content)  # in no variable of this frame, which it would keep, and itself by that
        return None

    def _told(self, content: bytes | memoryview) -> Exception:
        try:
            return told_error(bytes(content), peer=self._connection.peer)
        except (ValueError, TypeError, AttributeError) as error:
            self._lost(error)

    async def _send(self, kind: Frame, *parts: bytes | memoryview) -> None:
        try:
            await self._begin()
            await self._connection.write(kind, *parts)
        except (Unreachable, CorruptData) as error:
            if not self._connection.ready:  # else the answer tells
                self._lost(error)

    async def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        self._connection.greet()
        call = json.dumps({"method": self._method, "key": self._route.key, "metadata": dict(self._metadata)}).encode()
        await self._connection.write(Frame.CALL, call)
        if self._request is not None:
            await self._connection.write(Frame.MESSAGE, self._request)

    def _lost(self, error: Exception) -> NoReturn:
        """Give the way up too: what answers there may be something else, or something in between."""
        self._route.rest(str(error))
        raise Unreachable(str(error), peer=self._connection.peer) from error
