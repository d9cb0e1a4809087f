"""One attached node, as its parent sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
import structlog

from runnel.common.errors import CapacityExceeded, DeadlineExceeded, Forbidden, IllegalState, RunnelError
from runnel.common.protocol import Downward, Heartbeat, Hello, Upward
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport.authority import require_authority
from runnel.transport.identity import NodeIdentity
from runnel.transport.mailbox import Mailbox, held_bytes
from runnel.transport.messages import upward_from_wire
from runnel.transport.status import unexpected

_INBOX_ITEMS = 64
_FLUSH_S = 1.0


class Child:
    """One attached node; it stays as long as its newest credential is good, looked at in the rhythm of its silence.

    A handler uses ``identity``, ``attached_at``, ``heard_at``, ``send``, ``send_each`` and ``end``.

    Two tasks carry it: that of the RPC moves messages between the wire and two mailboxes, that of the
    :class:`UplinkServer` calls the handler. So nothing that happens to the connection cuts the handler short.
    """

    def __init__(
        self,
        identity: NodeIdentity,
        *,
        credential: str | None,
        verify: Callable[[str | None], NodeIdentity],
        attached_at: float,
        encode: Callable[[Downward], pb.Downward],
        mailbox_bytes: int,
        silence_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = identity
        self._credential = credential
        self._verify = verify
        self.attached_at = attached_at
        self.reason = ""
        self.gone = asyncio.Event()
        self.inbox: Mailbox[Upward] = Mailbox(items=_INBOX_ITEMS)
        self.task: asyncio.Task[None] | None = None
        self._encode = encode
        self._outgoing: Mailbox[pb.Downward] = Mailbox(size_bytes=mailbox_bytes, size_of=held_bytes)
        self._error: RunnelError | None = None
        self._accepted = asyncio.Event()
        self._scope: asyncio.Timeout | None = None
        self._silence_s = silence_s
        self._clock = clock
        self._heard = clock()
        self._stuck = False
        self._silence: asyncio.TimerHandle | None = None
        self._log = structlog.get_logger()

    @property
    def heard_at(self) -> float:
        """When the last message came, heartbeats included, by the clock of the server (monotonic seconds)."""
        return self._heard

    @property
    def ended(self) -> bool:
        """Whether the stream has ended or is about to."""
        return bool(self.reason)

    def send(self, message: Downward) -> None:
        """Send ``message`` down, in order, without waiting; once the stream has ended nothing is sent.

        A child that does not take its messages and lets more wait than the limits allow is sent away.
        """
        self._put(lambda: self._outgoing.send(self._encode(message)))

    def send_each(self, messages: Iterable[Downward], number: int) -> None:
        """Send ``messages`` down as :meth:`send` would, at most ``number``; each is made in its turn."""
        self._put(lambda: self._outgoing.send_each(map(self._encode, messages), number))

    def _put(self, put: Callable[[], None]) -> None:
        if self.ended:
            return
        try:
            put()
        except CapacityExceeded as error:
            self._log.warning("node does not take its messages", node=self.identity.name, **error.fields)
            self.leave("overflow", error)

    def end(self, error: RunnelError | None = None) -> None:
        """End the stream: with ``error`` at once, without one after what waits has been sent."""
        self.leave("ended", error)

    # ---- for UplinkServer

    def leave(self, reason: str, error: RunnelError | None) -> None:
        """Begin the end; only the first call counts. What was received already is still handled."""
        if self.ended:
            return
        self.reason = reason
        self._error = error
        self.inbox.close()
        self._outgoing.close(discard=error is not None)
        self._accepted.set()
        if self._scope is not None:
            self._hurry(self._scope)

    def accept(self) -> None:
        """Let messages flow."""
        self._accepted.set()

    def abandon(self) -> None:
        """Cut the handler short."""
        if self.task is not None:
            self.task.cancel()

    async def converse(self, requests: AsyncIterator[pb.Upward], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Move messages between the wire and the mailboxes until either side ends it; raises the error to tell."""
        reader: asyncio.Task[None] | None = None
        try:
            # Before anything may cut a write short: gRPC would send it again with the status, and then sends neither.
            await context.send_initial_metadata(())
            async with asyncio.timeout(None) as self._scope:
                if self.ended:
                    self._hurry(self._scope)
                await self._accepted.wait()
                self._watch(self._silence_s)
                reader = asyncio.create_task(self._read(requests))
                async for message in self._outgoing:
                    await context.write(message)
        except TimeoutError:
            if not self.ended:
                raise
        finally:
            self._scope = None  # there is nothing left to hurry
            self.leave("gone", None)
            if self._silence is not None:
                self._silence.cancel()
            if reader is not None:
                reader.cancel()
                await asyncio.wait((reader,))
        if self._error is not None:
            raise self._error

    async def _read(self, requests: AsyncIterator[pb.Upward]) -> None:
        try:
            async for wire in requests:
                self._heard = self._clock()
                message = upward_from_wire(wire)
                if isinstance(message, Hello):
                    raise IllegalState("A hello came on a stream that has had one.")
                require_authority(self.identity, message)
                if isinstance(message, Heartbeat):
                    if message.credential:
                        self._renew(message.credential)
                else:
                    self._stuck = True
                    await self.inbox.put(message)
                    self._stuck = False
        except RunnelError as error:
            if not self.ended:
                self._log.warning("message refused", node=self.identity.name, error=error.code, detail=str(error))
            self.leave("refused", error)
        except Exception:  # noqa: BLE001 - whatever it is, this child can't be heard any more, and others can
            self.leave("refused", unexpected(self._log, node=self.identity.name))
        else:
            # A half-closed stream and a broken one look alike here: gRPC ends the messages of both.
            self.leave("gone", None)

    def _renew(self, credential: str) -> None:
        if self._verify(credential) != self.identity:
            raise Forbidden(f"{self.identity.name} sent the credential of another node.", node=self.identity.name)
        self._credential = credential

    def _watch(self, wait_s: float) -> None:
        self._silence = asyncio.get_running_loop().call_later(wait_s, self._check_silence)

    def _check_silence(self) -> None:
        now = self._clock()
        if self._stuck:  # it is we who do not listen: the handler is slow
            self._heard = now
        try:
            self._verify(self._credential)
        except RunnelError as error:
            self._log.warning("node has no good credential any more", node=self.identity.name, detail=str(error))
            self.leave("refused", error)
            return
        quiet_s = now - self._heard
        if quiet_s < self._silence_s:
            self._watch(self._silence_s - quiet_s)
            return
        self._log.warning("node is silent", node=self.identity.name, quiet_s=round(quiet_s, 3))
        self.leave("silent", DeadlineExceeded(f"Nothing was heard from {self.identity.name} for {quiet_s:.1f} s."))

    def _hurry(self, scope: asyncio.Timeout) -> None:
        # A peer that does not read may keep us in `write` for ever.
        wait_s = 0.0 if self._error is not None else _FLUSH_S
        scope.reschedule(asyncio.get_running_loop().time() + wait_s)
