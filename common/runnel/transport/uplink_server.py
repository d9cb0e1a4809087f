"""The serving side of ``Uplink``: attached nodes, blobs for them, payloads from them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import grpc
import structlog

from runnel.common.blobs import RelayedBlob, SpoolFile, in_thread, to_its_end
from runnel.common.errors import (
    Conflict,
    CorruptData,
    DeadlineExceeded,
    Forbidden,
    IllegalState,
    InvalidInput,
    RunnelError,
    Unreachable,
)
from runnel.common.protocol import RUN_PREFIX, BlobRef, Drain, Hello, Upward, Welcome
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.rpc.v1 import uplink_pb2_grpc as pb_grpc
from runnel.transport.asking import AskHandler, answer
from runnel.transport.authority import require_authority
from runnel.transport.child import Child
from runnel.transport.chunk_wire import UPLINK_SERVICE, Messages, add_uplink, split_chunk, write_chunk
from runnel.transport.chunks import CHUNK_BYTES, MAX_CHUNK_BYTES, read_chunks, receive_into
from runnel.transport.identity import NodeIdentity, bearer
from runnel.transport.messages import downward_to_wire, upward_from_wire
from runnel.transport.push_turns import PushTurns, Turn
from runnel.transport.status import unexpected
from runnel.transport.transfer_queue import TransferQueue
from runnel.transport.wire_values import blob_from_wire, blob_to_wire, id_from_wire, payload_from_wire

if TYPE_CHECKING:
    from runnel.transport.credentials import CredentialVerifier

_FIRST_DEADLINE_S = 10.0
_REMEMBERED_PUSHES = 16  # of each node; its orders die with its attachment
_CLOSING_S = 5.0

M = TypeVar("M")
Context = grpc.aio.ServicerContext[Any, Any]


class UplinkHandler(Protocol):
    """What a reducer or combiner does about the nodes below it.

    ``attached``, ``received`` and ``detached`` of one child never overlap, also over two attachments of the same node.
    They are never cancelled by what happens to the stream, only when the server is closed and does not end in time.
    """

    def welcome(self, child: Child) -> Welcome:
        """Return the first message down."""
        ...

    async def attached(self, child: Child, hello: Hello) -> None:
        """Take in a new child; what is sent here follows the welcome. A ``RunnelError`` refuses it and is told."""
        ...

    async def received(self, child: Child, message: Upward) -> None:
        """Act on a message other than hello and heartbeats; a ``RunnelError`` ends the child's stream and is told."""
        ...

    async def detached(self, child: Child, reason: str) -> None:
        """Let go of a child, none of whose pushes writes: exactly once for each ``attached`` that did not raise.

        ``reason``: ``gone`` (it left, or its connection broke), ``silent``, ``superseded``, ``overflow``, ``refused``
        (for what it sent), ``ended`` (by :meth:`Child.end`) or ``closing``.
        """
        ...

    def blob_file(self, ref: BlobRef, identity: NodeIdentity) -> AbstractAsyncContextManager[Path | RelayedBlob]:
        """Give a file with the blob, or what is here of it so far, that stays while the block runs.

        Raises ``NotFound`` if there is none.
        """
        ...

    async def open_push(self, identity: NodeIdentity, order_id: str, ref: BlobRef) -> SpoolFile | None:
        """Return where the payload goes, under a key of its own for every order and node; None: all is here already.

        The digest of ``ref`` is empty when it is said at the end; never for a file of a run.
        Raises ``IllegalState`` if the order takes no answers, ``TooLarge`` if it would be too large.
        """
        ...

    async def pushed(self, identity: NodeIdentity, order_id: str, ref: BlobRef, file: Path) -> None:
        """Take over the verified file. After a crash of this process it may be called again for the same payload."""
        ...


class UplinkServer(pb_grpc.UplinkServicer):
    """Serves ``Uplink`` for a handler; an async context manager, used inside that of the :class:`RpcServer`.

    Args:
        handler: what decides.
        verifier: of the credentials of all callers.
        asks: what answers the containers of tasks; None: nobody does.
        heartbeat_s: for nodes that say less than one message in three times this, the stream is ended as ``silent``.
        mailbox_bytes: most memory for what waits for one child.
        queue: of large transfers that come together.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        handler: UplinkHandler,
        verifier: CredentialVerifier,
        *,
        asks: AskHandler | None = None,
        heartbeat_s: float = 10.0,
        mailbox_bytes: int = 16 << 20,
        queue: TransferQueue | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._handler = handler
        self._verifier = verifier
        self._asks = asks
        self._heartbeat_s = heartbeat_s
        self._mailbox_bytes = mailbox_bytes
        self._clock = clock
        self._by_name: dict[str, Child] = {}
        self._by_node: dict[str, Child] = {}
        self._queue = queue or TransferQueue()
        self._turns = PushTurns()
        self._pushed: dict[str, deque[tuple[str, str]]] = {}  # orders and digests by node
        self._tasks: asyncio.TaskGroup | None = None
        self._stack = AsyncExitStack()
        self.blob_port = 0  # where large blobs are served beside gRPC; 0: nowhere
        self.blob_key = secrets.token_hex(8)  # by which callers there know that they reached this node
        self.served_bytes = self.received_bytes = 0  # by fetches and pushes, since the process began
        self._log = structlog.get_logger()

    @property
    def service(self) -> tuple[str, Callable[[grpc.aio.Server], None]]:
        """For the ``services`` of :class:`runnel.transport.RpcServer`."""
        return UPLINK_SERVICE, self.register

    @property
    def children(self) -> tuple[Child, ...]:
        """Who is attached now."""
        return tuple(self._by_name.values())

    def identify(self, context: Context) -> NodeIdentity:
        """Return who calls. Raises ``Unauthenticated`` if the credential is not good."""
        return self._verifier.verify(bearer(context))

    def register(self, server: grpc.aio.Server) -> None:
        """Add this servicer to ``server``."""
        add_uplink(self, server)

    async def __aenter__(self) -> UplinkServer:
        self._tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self, grace_s: float = _CLOSING_S) -> None:
        """End all streams and refuse new ones; returns when ``detached`` has run for every child. Idempotent."""
        group, self._tasks = self._tasks, None
        if group is None:
            return
        for child in self.children:
            child.leave("closing", Unreachable("This node shuts down.", hint="Join again."))
        try:
            async with asyncio.timeout(grace_s):
                await asyncio.gather(*(child.gone.wait() for child in self.children))
        except TimeoutError:
            for child in self.children:
                child.abandon()
        try:
            async with asyncio.timeout(grace_s):
                await self._stack.aclose()
        except TimeoutError:
            self._log.warning("handler did not end in time and was cancelled", grace_s=grace_s)

    async def drain_all(self, reason: str) -> None:
        """Tell every child to go and ask for another place; they leave by themselves."""
        for child in self.children:
            child.send(Drain(reason=reason))

    # ---- Attach

    # gRPC takes coroutines that write to the context as well as generators. A coroutine is cancelled where it is when
    # the caller is gone; a generator would be left suspended until it is collected.
    async def Attach(  # type: ignore[override]  # noqa: N802, D102 - the name is the wire's, and documented there
        self, request_iterator: AsyncIterator[pb.Upward], context: Context
    ) -> None:
        # Refusing before the first message is read would lose the refusal: gRPC forgets the status of a stream that
        # ends while the caller writes to it.
        wire = await self._first(request_iterator)
        identity = self.identify(context)
        self._group()
        hello = self._hello(wire, identity)
        await self._end_older(identity)
        child = Child(
            identity,
            credential=bearer(context),
            verify=self._verifier.verify,
            attached_at=time.time(),
            encode=downward_to_wire,
            mailbox_bytes=self._mailbox_bytes,
            silence_s=3 * self._heartbeat_s,
            clock=self._clock,
        )
        self._by_name[identity.name] = self._by_node[identity.node_id] = child
        child.task = self._group().create_task(self._live(child, hello), name=f"child {identity.name}")
        await child.converse(request_iterator, context)

    async def _first(self, requests: AsyncIterator[M]) -> M | None:
        try:
            async with asyncio.timeout(_FIRST_DEADLINE_S):
                return await anext(requests, None)
        except TimeoutError:
            raise DeadlineExceeded(f"No message came within {_FIRST_DEADLINE_S:.0f} s.") from None

    def _hello(self, wire: pb.Upward | None, identity: NodeIdentity) -> Hello:
        if wire is None:
            raise InvalidInput("The stream ended before its hello.")
        hello = upward_from_wire(wire)
        if not isinstance(hello, Hello):
            raise InvalidInput(f"The first message up must be a hello, not {type(hello).__name__}.")
        member = hello.member
        if (member.name, member.node_id, member.kind) != (identity.name, identity.node_id, identity.kind):
            raise Forbidden(
                f"The hello is of {member.kind.value} {member.name} ({member.node_id}), the credential of "
                f"{identity.kind.value} {identity.name} ({identity.node_id}).",
                hint="A node may only speak for itself.",
            )
        require_authority(identity, hello)
        return hello

    async def _end_older(self, identity: NodeIdentity) -> None:
        # No await between the last look and the caller's registration, so of two that arrive at once one is first.
        while older := self._by_name.get(identity.name) or self._by_node.get(identity.node_id):
            older.leave("superseded", Conflict(f"{identity.name} attached again by another stream."))
            await older.gone.wait()
        self._group()

    async def _live(self, child: Child, hello: Hello) -> None:
        """Call the handler for one child, from its attaching to its detaching; owned by this object, not by the RPC."""
        identity = child.identity
        try:
            try:
                child.send(
                    replace(
                        self._handler.welcome(child),
                        late_digests=True,
                        blob_port=self.blob_port,
                        blob_key=self.blob_key,
                    )
                )
                await self._handler.attached(child, hello)
            except RunnelError as error:
                self._log.warning("node refused", node=identity.name, error=error.code, detail=str(error))
                child.leave("refused", error)
                return
            except Exception:  # noqa: BLE001 - a fault in handling one child must not end the others
                child.leave("refused", unexpected(self._log, node=identity.name))
                return
            self._log.info("node attached", node=identity.name, kind=identity.kind.value)
            try:
                child.accept()
                await self._receive(child)
            finally:
                self._log.info("node detached", node=identity.name, kind=identity.kind.value, reason=child.reason)
                try:
                    await self._turns.end(identity.name)  # the handler sets aside what they have written
                    await self._handler.detached(child, child.reason)
                except Exception:  # noqa: BLE001 - as above
                    unexpected(self._log, node=identity.name)
        finally:
            child.leave("closing", None)
            if self._by_name.get(identity.name) is child:
                del self._by_name[identity.name]
                self._pushed.pop(identity.name, None)
            if self._by_node.get(identity.node_id) is child:
                del self._by_node[identity.node_id]
            child.gone.set()

    async def _receive(self, child: Child) -> None:
        try:
            async for message in child.inbox:
                await self._handler.received(child, message)
        except RunnelError as error:
            self._log.warning("message refused", node=child.identity.name, error=error.code, detail=str(error))
            child.leave("refused", error)
        except Exception:  # noqa: BLE001 - a fault in handling one message must not end the other children
            child.leave("refused", unexpected(self._log, node=child.identity.name))

    # ---- Fetch

    async def Fetch(  # type: ignore[override]  # noqa: N802, D102 - the name is the wire's, and documented there
        self, request: pb.FetchRequest, context: Context
    ) -> None:
        identity = self.identify(context)
        ref = blob_from_wire(request.blob)
        offset = request.offset
        if offset > ref.size_bytes:
            raise InvalidInput(f"Field offset must be at most {ref.size_bytes}, not {offset}.", field="offset")
        async with self._handler.blob_file(ref, identity) as source:
            if isinstance(source, RelayedBlob):
                await source.reached(offset)  # who has a place has something to send
            async with self._queue.place(ref.size_bytes - offset):
                await self._send(source, ref, offset, context)

    async def _send(self, source: Path | RelayedBlob, ref: BlobRef, offset: int, context: Context) -> None:
        header = pb.Chunk(blob=blob_to_wire(ref), offset=offset).SerializeToString()
        if offset == ref.size_bytes:
            await context.write(header)
            return
        async with aclosing(read_chunks(source, offset, ref.size_bytes)) as chunks:
            async for data in chunks:
                size, writing = len(data), write_chunk(context, data, header)
                del data  # as there
                await writing
                del writing
                header = b""
                self.served_bytes += size
                self._queue.moved(size)

    # ---- Push

    async def Push(  # type: ignore[override]  # noqa: N802, D102 - the name is the wire's, and documented there
        self, _: AsyncIterator[bytes], context: Context
    ) -> pb.Receipt:
        messages = Messages(context)
        message = await self._first(messages)
        header, data = (None, memoryview(b"")) if message is None else split_chunk(message)
        del message
        identity = self.identify(context)
        self._group()
        if header is None or not header.HasField("blob"):
            raise InvalidInput("The first chunk of a push must name the blob.", field="blob")
        order_id = id_from_wire(header.order_id, "order_id")
        of_run = order_id.startswith(RUN_PREFIX)
        ref = blob_from_wire(header.blob) if of_run else payload_from_wire(header.blob, unnamed=bool(data))
        async with self._turns.turn(identity.name, order_id) as turn:
            file = await self._handler.open_push(identity, order_id, ref)
            if file is None or (order_id, ref.name) in self._pushed.get(identity.name, ()):
                return pb.Receipt(held_bytes=ref.size_bytes, complete=True)
            # One that begins elsewhere than where ours ends is answered at once, unread.
            if not data or header.offset == file.held:
                # What only asks has nothing to wait for.
                left = ref.size_bytes - file.held if data else 0
                chunks = _pushed(data, messages, self._queue.moved, file.name)
                del data, header
                held = file.held
                try:
                    async with self._queue.place(left, pushes=True):
                        if left > CHUNK_BYTES:
                            await context.send_initial_metadata(())  # the caller waits for that with all but the first
                        await receive_into(file, chunks)
                finally:
                    self.received_bytes += max(0, file.held - held)
            if file.held < ref.size_bytes or not file.ref.name:
                return pb.Receipt(held_bytes=file.held, complete=False)
            await to_its_end(self._finish(file, identity, order_id, turn))
        return pb.Receipt(held_bytes=ref.size_bytes, complete=True)

    async def _finish(self, file: SpoolFile, identity: NodeIdentity, order_id: str, turn: Turn) -> None:
        ref = file.ref
        try:
            path = await in_thread(file.finish)
        except CorruptData as error:
            if "found" not in error.fields:  # it was all there, and was removed meanwhile
                raise IllegalState(
                    f"Order {order_id} ended while {identity.name} pushed its payload.", order_id=order_id
                ) from error
            self._log.warning("payload refused", node=identity.name, order_id=order_id, detail=str(error))
            raise
        turn.written.set()
        await self._handler.pushed(identity, order_id, ref, path)
        remembered = self._pushed.setdefault(identity.name, deque(maxlen=_REMEMBERED_PUSHES))
        remembered.append((order_id, ref.name))

    # ---- Ask

    async def Ask(self, request: pb.TaskAsk, context: Context) -> pb.TaskAnswer:  # noqa: N802, D102 - as above
        return await answer(self._asks, self.identify(context), request, context)

    # ----

    def _group(self) -> asyncio.TaskGroup:
        if self._tasks is None:
            raise Unreachable(
                "This node does not take nodes at the moment: it starts or shuts down.", hint="Try again."
            )
        return self._tasks


async def _pushed(
    data: memoryview, messages: AsyncIterator[bytes], moved: Callable[[int], None], name: Callable[[BlobRef], None]
) -> AsyncGenerator[memoryview, None]:
    """Yield the data of a push; hold none of it longer than it is used, as many may push at once.

    ``name``: takes the name of what had none at first.
    """
    rest: memoryview | None = data
    del data
    while rest is not None:
        data, rest = rest, None
        if len(data) > MAX_CHUNK_BYTES:
            raise InvalidInput(f"A chunk has at most {MAX_CHUNK_BYTES} bytes, not {len(data)}.")
        if data:
            moved(len(data))
            yield data
        del data
        message = await anext(messages, None)
        if message is not None:
            header, rest = split_chunk(message)
            if header is not None and header.HasField("blob"):
                name(payload_from_wire(header.blob))
        del message
