"""One stay of a node at the node above it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

import grpc
import structlog

from runnel.common.errors import CapacityExceeded, DeadlineExceeded, IllegalState, RunnelError, Unreachable
from runnel.common.protocol import Assignment, Downward, Drain, Heartbeat, Hello, Progress, Report, Upward, Welcome
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.rpc.v1 import uplink_pb2_grpc as pb_grpc
from runnel.transport.blob_calls import BlobCall, BlobRoute, route_to
from runnel.transport.chunk_wire import BlobCalls
from runnel.transport.directory import Place
from runnel.transport.identity import bearer_metadata
from runnel.transport.mailbox import Mailbox, held_bytes
from runnel.transport.messages import downward_from_wire, upward_to_wire
from runnel.transport.status import rpc_errors
from runnel.transport.tls import ClientTls
from runnel.transport.transfer_queue import SMALL_BYTES
from runnel.transport.within import Within

R = TypeVar("R")

_WELCOME_DEADLINE_S = 15.0  # above the 10 s that the other side gives a superseded stream and its handler
_FAREWELL_S = 1.0
_MOST_OTHERS = 1_000  # clients of whom one message tells
_NAME_BYTES = 32  # that each takes beside its name
_RENEW_AT = 0.8

_HEARTBEAT = upward_to_wire(Heartbeat())


class Attachment:
    """One stay: the stream, what waits to go up, and the credential that is good there.

    Args:
        channel: to the node above.
        address: of that node, ``HOST:PORT``.
        tls: whom to trust there; None: plain text.
        place: what the directory said.
        peer: name and address, for messages.
        mailbox_bytes: most memory for what waits to go up.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        place: Place,
        *,
        peer: str,
        mailbox_bytes: int,
        address: str,
        tls: ClientTls | None,
    ) -> None:
        self.place = place
        self.peer = peer
        self.credential = place.credential
        self.stub = pb_grpc.UplinkStub(channel)
        self.blobs = BlobCalls(channel)
        self.lost = asyncio.Event()
        self.reason = ""
        self.error: RunnelError | None = None
        self.welcome: Welcome | None = None
        self.within = Within()
        self._outgoing: Mailbox[pb.Upward] = Mailbox(size_bytes=mailbox_bytes, size_of=held_bytes)
        self._address = address
        self._tls = tls
        self._route: BlobRoute | None = None
        self._over = asyncio.Event()
        self._call: Any = None
        self._log = structlog.get_logger()

    async def open(self, hello: Hello) -> Welcome:
        """Attach.

        Raises:
            RunnelError: what the node above said, or that it did not answer.
        """
        self._call = self.stub.Attach(metadata=bearer_metadata(self.credential))
        try:
            with rpc_errors(self.peer):
                try:
                    async with asyncio.timeout(_WELCOME_DEADLINE_S):
                        try:
                            await self._call.write(upward_to_wire(hello))
                        except asyncio.InvalidStateError:
                            await self._call.read()  # raises why the stream has ended already
                        wire = await self._call.read()
                except TimeoutError:
                    raise DeadlineExceeded(f"{self.peer} sent no welcome in {_WELCOME_DEADLINE_S:.0f} s.") from None
            if not isinstance(wire, pb.Downward):
                raise Unreachable(f"{self.peer} ended the stream without a welcome.", peer=self.peer)
            welcome = downward_from_wire(wire)
            if not isinstance(welcome, Welcome):
                raise IllegalState(f"{self.peer} must begin with a welcome, not {type(welcome).__name__}.")
        except BaseException:
            self._call.cancel()
            raise
        self.welcome = welcome
        self._route = route_to(self._address, welcome, peer=self.peer, tls=self._tls)
        return welcome

    async def calls(self, size_bytes: int) -> BlobCalls | BlobCall:
        """Return what to fetch or push so much with: gRPC, or if it is large and can be reached the blob port."""
        if self._route is not None and size_bytes > SMALL_BYTES:
            call = await self._route.call()
            if call is not None:
                return call
        return self.blobs

    def send(self, message: Upward) -> bool:
        """Send ``message`` up, in order, without waiting; False if that is not possible any more."""
        if self.lost.is_set():
            return False
        if isinstance(message, Progress) and self._told_with_last(message):
            return True
        if isinstance(message, Report):
            message = self.within.complete(message)
        return self._put(lambda: self._outgoing.send(upward_to_wire(message)))

    def send_each(self, messages: Iterable[Upward], number: int) -> bool:
        """Send ``messages`` up as :meth:`send` would, at most ``number`` and no reports; each is made in its turn."""
        if self.lost.is_set():
            return False
        return self._put(lambda: self._outgoing.send_each(map(upward_to_wire, messages), number))

    def _put(self, put: Callable[[], None]) -> bool:
        try:
            put()
        except CapacityExceeded as error:
            self._log.warning("the node above does not take our messages", via=self.peer, **error.fields)
            self.end("overflow", error)
            return False
        return True

    def _told_with_last(self, message: Progress) -> bool:
        """Let the message that waits last tell this too, if it says the same of another client of the order."""
        last = self._outgoing.last
        if last is None or last.WhichOneof("body") != "progress" or last.progress.order_id != message.order_id:
            return False
        if message.detail != last.progress.detail or len(last.progress.others) >= _MOST_OTHERS:
            return False
        if last.progress.stage != pb.Stage.Value(f"STAGE_{message.stage.name}"):
            return False
        last.progress.others.extend(message.clients)
        self._outgoing.last_grew(sum(len(client) + _NAME_BYTES for client in message.clients))
        return True

    def offer(self, message: Upward) -> bool:
        """Send ``message`` up if there is plenty of room; False if not, and nothing else is changed by that."""
        return not self._outgoing.crowded and self.send(message)

    def end(self, reason: str, error: RunnelError | None = None) -> None:
        """Begin the end: with an error at once, else when what waits has gone up. Only the first call counts."""
        if self.lost.is_set():
            return
        self.reason = reason
        self.error = error
        self.lost.set()
        self._outgoing.close(discard=error is not None)
        if error is not None:
            self._over.set()

    async def run(self, deliver: Callable[[Downward], Awaitable[None]], renew: Callable[[], Awaitable[Place]]) -> None:
        """Move messages and keep the credential fresh until the end.

        Args:
            deliver: takes each message from above.
            renew: asks the directory for a fresh credential, as long as it takes.
        """
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(each) for each in (self._read(deliver), self._write(), self._renew(renew))]
                await self.lost.wait()
                try:
                    async with asyncio.timeout(_FAREWELL_S):
                        await self._over.wait()
                except TimeoutError:
                    self._log.debug("the node above did not end the stream when asked to", via=self.peer)
                for task in tasks:
                    task.cancel()
        finally:
            self.end("left")
            self._call.cancel()

    async def while_attached(self, work: Coroutine[Any, Any, R]) -> R:
        """Await ``work``, at most as long as this attachment lasts.

        Raises:
            Unreachable: it was lost meanwhile; ``work`` was cancelled and has ended.
        """
        task = asyncio.ensure_future(work)
        lost = asyncio.ensure_future(self.lost.wait())
        try:
            await asyncio.wait((task, lost), return_when=asyncio.FIRST_COMPLETED)
            if task.done() and not task.cancelled():
                return task.result()
            raise Unreachable(f"The attachment to {self.peer} was lost ({self.reason or 'closed'}).", peer=self.peer)
        finally:
            lost.cancel()
            if not task.done():
                task.cancel()
            await asyncio.wait((task, lost))
            if not task.cancelled():
                task.exception()  # seen: that the attachment is lost says more
            del task  # its error has this frame, and would keep itself and all that it went through

    async def _read(self, deliver: Callable[[Downward], Awaitable[None]]) -> None:
        try:
            with rpc_errors(self.peer):
                while isinstance(wire := await self._call.read(), pb.Downward):
                    message = downward_from_wire(wire)
                    if isinstance(message, Drain):
                        self._log.info("sent away by the node above", via=self.peer, reason=message.reason)
                        self.end("drained")
                    else:
                        await deliver(self.within.take(message) if isinstance(message, Assignment) else message)
            self.end("ended by the node above")
        except RunnelError as error:
            self.end("lost", error)
        finally:
            self._over.set()

    async def _write(self) -> None:
        assert self.welcome is not None
        try:
            with rpc_errors(self.peer):
                while True:
                    try:
                        async with asyncio.timeout(self.welcome.heartbeat_s):
                            message = await self._outgoing.get()
                    except TimeoutError:
                        message = _HEARTBEAT
                    await self._call.write(message)
        except StopAsyncIteration:
            await self._call.done_writing()
        except asyncio.InvalidStateError:
            return  # the stream is over; the reader finds out why
        except RunnelError as error:
            self.end("lost", error)

    async def _renew(self, renew: Callable[[], Awaitable[Place]]) -> None:
        ttl_s = self.place.ttl_s
        try:
            while ttl_s > 0:
                await asyncio.sleep(ttl_s * _RENEW_AT)
                fresh = await renew()
                self.credential = fresh.credential
                self.send(Heartbeat(credential=fresh.credential))
                ttl_s = fresh.ttl_s
        except RunnelError as error:
            self.end("refused", error)
