"""``Chunk`` as it travels, and the methods of ``Uplink`` that stream it: gRPC is given bytes and gives bytes.

Protobuf copies the data of a chunk three times on its way out and twice on its way in, which costs more than a quarter
of the processor time of a transfer. Here the data are put behind a few bytes that say what they are, and looked at
where they came. What is on the wire is the message ``Chunk`` in either case.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError

from runnel.common.errors import CorruptData
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.rpc.v1 import uplink_pb2_grpc as pb_grpc

UPLINK_SERVICE = "runnel.rpc.v1.Uplink"

_DATA_TAG = pb.Chunk.DATA_FIELD_NUMBER << 3 | 2
_MOST_LENGTH_BYTES = 4  # of a length that a message of gRPC can have; longer ones are left to protobuf


def join_chunk(data: bytes | memoryview, header: bytes = b"") -> bytes:
    """Return the message with ``data`` and the fields of ``header``, which is a ``Chunk`` without data, serialized.

    >>> join_chunk(b"abc", pb.Chunk(offset=7).SerializeToString())
    b'\\x10\\x07\\x1a\\x03abc'
    """
    return b"".join((_before(len(data), header), data))


class TakesParts(ABC):
    """A call that takes a message in parts, so that nobody has to join them."""

    @abstractmethod
    async def write(self, *parts: bytes | memoryview) -> None:
        """Send a message."""


async def write_chunk(call: Any, data: bytes | memoryview, header: bytes = b"") -> None:
    """Send by ``call`` what :func:`join_chunk` returns."""
    if isinstance(call, TakesParts):
        await call.write(_before(len(data), header), data)
        return
    message = join_chunk(data, header)
    del data  # not to hold both, for each of many that fetch or push
    await call.write(message)


def _before(length: int, header: bytes) -> bytes:
    size = bytearray()
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    size.append(length)
    return b"".join((header, bytes((_DATA_TAG,)), size))


def split_chunk(message: bytes | memoryview) -> tuple[pb.Chunk | None, memoryview]:
    """Return the fields of a chunk, or None if it has nothing but data, and its data, which keep ``message`` alive.

    Raises:
        CorruptData: it is no such message.
    """
    if message[:1] == bytes((_DATA_TAG,)):
        length = 0
        for at, byte in enumerate(message[1 : 1 + _MOST_LENGTH_BYTES]):
            length |= (byte & 0x7F) << 7 * at
            if byte < 0x80:
                if 2 + at + length == len(message):
                    return None, memoryview(message)[2 + at :]
                break
    try:
        chunk = pb.Chunk.FromString(bytes(message))
    except DecodeError as error:
        raise CorruptData(
            f"A message of {len(message):,} bytes came that is not a chunk of a blob: {error}.",
            hint="It was damaged on the way, or the sender is another program.",
        ) from error
    return chunk, memoryview(chunk.data)


class BlobCalls:
    """Calls of ``Fetch`` and ``Push`` whose chunks are bytes.

    Args:
        channel: to the node that serves them.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.fetch: Any = channel.unary_stream(
            f"/{UPLINK_SERVICE}/Fetch", request_serializer=pb.FetchRequest.SerializeToString
        )
        self.push: Any = channel.stream_unary(f"/{UPLINK_SERVICE}/Push", response_deserializer=pb.Receipt.FromString)


class Messages:
    """The messages of a call, one after another; what was taken is held by its taker alone.

    gRPC's own iterator holds each message until the next one is there, for as long as the sender takes: half a
    megabyte for every node that pushes over a slow line.

    Args:
        context: of the call, whose iterator of messages must not be used as well.
    """

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> bytes:
        message = await self._context.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return cast("bytes", message)


def add_uplink(servicer: pb_grpc.UplinkServicer, server: grpc.aio.Server) -> None:
    """Let ``server`` serve all methods; ``Fetch`` writes and ``Push`` reads the bytes of chunks."""
    methods: dict[str, Any] = {
        "Attach": grpc.stream_stream_rpc_method_handler(
            servicer.Attach, pb.Upward.FromString, pb.Downward.SerializeToString
        ),
        "Fetch": grpc.unary_stream_rpc_method_handler(servicer.Fetch, pb.FetchRequest.FromString),
        "Push": grpc.stream_unary_rpc_method_handler(servicer.Push, response_serializer=pb.Receipt.SerializeToString),
        "Ask": grpc.unary_unary_rpc_method_handler(
            servicer.Ask, pb.TaskAsk.FromString, pb.TaskAnswer.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(UPLINK_SERVICE, methods),))
    server.add_registered_method_handlers(UPLINK_SERVICE, methods)
