"""A node with a valid credential and no good intentions: it says and pushes whatever a test wants."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np

from runnel.common.errors import RunnelError
from runnel.common.protocol import (
    Assignment,
    BlobRef,
    Downward,
    Heartbeat,
    Hello,
    Member,
    NodeKind,
    Outcome,
    PayloadKind,
    Report,
    Upward,
    Welcome,
)
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.rpc.v1 import uplink_pb2_grpc as pb_grpc
from runnel.transport import JoinAsk, bearer_metadata, join, open_channel, rpc_errors
from runnel.transport.messages import downward_from_wire, upward_to_wire
from runnel.transport.wire_values import blob_to_wire
from tests.eventually import eventually

CHUNK = 256 << 10


def ref_of(data: bytes) -> BlobRef:
    return BlobRef(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def npz(arrays: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


class HostileNode:
    """Joins by the directory like everybody, then attaches where it likes; an async context manager.

    Args:
        network: address of the directory.
        name: of this node.
        at: address to attach to; None: where the directory says.
        kind: of this node.
        below: members that its hello claims.
        catalogue: digest of what it says that it publishes.
    """

    def __init__(
        self,
        network: str,
        name: str,
        *,
        at: str | None = None,
        kind: NodeKind = NodeKind.CLIENT,
        token: str | None = None,
        below: tuple[Member, ...] = (),
        catalogue: str = "",
    ) -> None:
        self.name = name
        self.kind = kind
        self.heard: list[Downward] = []
        self.error: RunnelError | None = None
        self.ended = asyncio.Event()
        self._network = network
        self._at = at
        self._token = token
        self._below = below
        self._catalogue = catalogue
        self._call: Any = None
        self._writing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def member(self) -> Member:
        return Member(name=self.name, node_id=f"id-{self.name}", kind=self.kind, catalogue=self._catalogue)

    async def __aenter__(self) -> Self:
        directory = open_channel(self._network, tls=None)
        try:
            place = await register(directory, self.member, self._token)
        finally:
            await directory.close()
        self.credential = place.credential
        # Unlike that of an honest node it sends messages of any size.
        self.channel = grpc.aio.insecure_channel(
            self._at or place.address or self._network,
            options=(("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)),
        )
        self.stub = pb_grpc.UplinkStub(self.channel)
        self._call = self.stub.Attach(metadata=bearer_metadata(self.credential))
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._beat())]
        await self.say(Hello(member=self.member, below=self._below))
        await eventually(lambda: self.ended.is_set() or any(isinstance(m, Welcome) for m in self.heard))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._call.cancel()
        await self.channel.close()

    # ---- the stream

    async def say(self, *messages: Upward | pb.Upward) -> None:
        for message in messages:
            wire = message if isinstance(message, pb.Upward) else upward_to_wire(message)
            # When it is over already, what was heard tells why.
            with suppress(asyncio.InvalidStateError, RunnelError), rpc_errors("above"):
                async with self._writing:  # two writes at once end a call
                    await self._call.write(wire)

    async def refusal(self, timeout_s: float = 30.0) -> RunnelError:
        """Return the error with which the stream was ended."""
        async with asyncio.timeout(timeout_s):
            await self.ended.wait()
        assert self.error is not None, "the stream ended without an error"
        return self.error

    async def until(self, kind: type[Downward], timeout_s: float = 20.0) -> None:
        """Wait until a message of this kind was heard."""
        await eventually(
            lambda: any(isinstance(each, kind) for each in self.heard), timeout_s=timeout_s, state=lambda: self.error
        )

    async def assignment(self, timeout_s: float = 20.0) -> Assignment:
        """Return the newest order."""
        found = await eventually(
            lambda: [m for m in self.heard if isinstance(m, Assignment)], timeout_s=timeout_s, state=lambda: self.error
        )
        return found[-1]

    async def _read(self) -> None:
        try:
            with rpc_errors("above"):
                while isinstance(wire := await self._call.read(), pb.Downward):
                    self.heard.append(downward_from_wire(wire))
        except RunnelError as error:
            self.error = error
        finally:
            self.ended.set()

    async def _beat(self) -> None:
        while not self.ended.is_set():
            await asyncio.sleep(0.5)
            await self.say(Heartbeat())

    # ---- blobs

    async def push(self, order_id: str, data: bytes, ref: BlobRef | None = None, *, chunk: int = CHUNK) -> pb.Receipt:
        """Push ``data`` as the blob ``ref``, whatever that says."""
        header = pb.Chunk(blob=blob_to_wire(ref or ref_of(data)), order_id=order_id)

        def chunks() -> Iterator[pb.Chunk]:
            for at in range(0, max(len(data), 1), chunk):
                piece = data[at : at + chunk]
                if at == 0:
                    header.data = piece
                    yield header
                else:
                    yield pb.Chunk(data=piece)

        with rpc_errors("above"):
            return await self.stub.Push(chunks(), metadata=bearer_metadata(self.credential), timeout=20)

    def report(self, order: Assignment, data: bytes | None = None, **changes: Any) -> Report:
        """Return an honest report of ``data``, with changes."""
        honest: dict[str, Any] = {"key": order.key, "order_id": order.order_id, "weight": 1.0}
        honest["outcomes"] = (Outcome(client=self.name, weight=1.0),)
        if data is not None:
            honest |= {"payload": ref_of(data), "payload_kind": PayloadKind.UPDATE}
        return Report(**honest | changes)


async def register(directory: Any, member: Member, token: str | None = None) -> Any:
    """Join the directory and go no further."""
    ask = JoinAsk(name=member.name, node_id=member.node_id, kind=member.kind)
    return await join(directory, ask, token=token, deadline_s=30.0)
