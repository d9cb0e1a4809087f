"""The calling side of ``Uplink``: stays attached to the network, whatever happens to those above."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from random import Random
from types import TracebackType

import grpc
import structlog

from runnel.common.blobs import Relay, Source, Spares, SpoolFile, in_thread, is_blob
from runnel.common.errors import (
    BadSettings,
    Cancelled,
    Conflict,
    CorruptData,
    DeadlineExceeded,
    Forbidden,
    InvalidInput,
    RunnelError,
    Unauthenticated,
    Unreachable,
)
from runnel.common.metrics import Sample
from runnel.common.protocol import BlobRef, Downward, Hello, NodeKind, Upward
from runnel.common.tasks.asks import TaskAnswer, TaskAsk
from runnel.transport.asking import ask_network
from runnel.transport.attachment import Attachment
from runnel.transport.channels import open_channel
from runnel.transport.directory import JoinAsk, Place, join
from runnel.transport.link_events import Attached, Detached, LinkEvent, Patience, Received
from runnel.transport.mailbox import Mailbox
from runnel.transport.retry import RetryPolicy
from runnel.transport.tls import ClientTls
from runnel.transport.traffic import ATTACHED, FETCHED, PUSHED
from runnel.transport.transfers import ask_push, fetch_blob, push_named

_JOIN_DEADLINE_S = 10.0
_STABLE_S = 5.0
_STOP_S = 3.0
_EVENTS = 4096  # that wait; then the node above does
_GOOD_PLACES = frozenset({"left", "credential refused"})  # ends that say nothing against the node above
_FATAL = (Unauthenticated, Forbidden, BadSettings)


class UplinkLink:
    """Attaches a node to the network and keeps it attached; an async context manager to iterate over.

    The iteration yields :data:`LinkEvent`; it ends when the block is left, and raises the error that makes trying again
    useless: at any time ``Unauthenticated``, ``Forbidden`` and ``BadSettings``, before the first attachment
    ``Conflict`` (the name is taken) and ``InvalidInput`` too.

    Args:
        network: address of the directory, ``HOST:PORT``.
        name: of this node, unique in the network.
        node_id: of this node.
        kind: of this node.
        token: shown to the directory; None: none is needed.
        hello: makes the first message up, for each attachment anew.
        tls: whom to trust; None: plain text.
        allow_plaintext: whether plain text may be spoken with other machines.
        prefer: name of the node to attach to, if it has room.
        retry: how long to wait between attempts; they never end.
        mailbox_bytes: most memory for what waits to go up.
        random: of the jitter.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        network: str,
        *,
        name: str,
        node_id: str,
        kind: NodeKind,
        token: str | None,
        hello: Callable[[], Hello],
        tls: ClientTls | None = None,
        allow_plaintext: bool = False,
        prefer: str = "",
        retry: RetryPolicy | None = None,
        mailbox_bytes: int = 16 << 20,
        random: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._network = network
        self._ask = JoinAsk(name=name, node_id=node_id, kind=kind, prefer=prefer)
        self._token = token
        self._hello = hello
        self._tls = tls
        self._allow_plaintext = allow_plaintext
        self._retry = retry or RetryPolicy()
        self._mailbox_bytes = mailbox_bytes
        self._random = random or Random()  # noqa: S311 - jitter, not a secret
        self._clock = clock
        self._events: Mailbox[LinkEvent] = Mailbox(items=_EVENTS)
        self._attachment: Attachment | None = None
        self._changed = asyncio.Event()
        self._fatal: BaseException | None = None
        self._avoid: tuple[str, ...] = ()  # where it could not attach, one after the other: each place has its turn
        self._was_attached = False
        self._unusable = ""
        self._stopping = False
        self._directory: grpc.aio.Channel | None = None
        self._stack = AsyncExitStack()
        self._task: asyncio.Task[None] | None = None
        self._log = structlog.get_logger()
        self._fetched_bytes = self._pushed_bytes = 0
        self._push_was_cut = False

    @property
    def name(self) -> str:
        """Name of this node."""
        return self._ask.name

    @property
    def attached(self) -> bool:
        """Whether the node is attached now."""
        return self._attachment is not None and not self._attachment.lost.is_set()

    @property
    def via(self) -> str:
        """Name of the node that this one is attached to; empty: none."""
        return self._attachment.place.attach_to if self._attachment is not None and self.attached else ""

    async def __aenter__(self) -> UplinkLink:
        group = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._task = group.create_task(self._run(), name=f"uplink of {self.name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping = True
        self._events.close(discard=True)
        assert self._task is not None
        if self._attachment is not None:
            self._attachment.end("left")
            await asyncio.wait((self._task,), timeout=_STOP_S)
        self._task.cancel()
        await self._stack.aclose()

    def __aiter__(self) -> AsyncIterator[LinkEvent]:
        return self._events

    def send(self, message: Upward) -> bool:
        """Send ``message`` up, in order, without waiting.

        Returns:
            False if the node is not attached, or if so much waits that the attachment is given up: the caller offers
            again what matters after the next :class:`Attached`. True does not say that it will arrive.
        """
        return self._attachment is not None and self._attachment.send(message)

    def send_each(self, messages: Iterable[Upward], number: int) -> bool:
        """Send ``messages`` up as :meth:`send` would, at most ``number`` and no reports; each is made in its turn."""
        return self._attachment is not None and self._attachment.send_each(messages, number)

    def offer(self, message: Upward) -> bool:
        """Send up what may be lost, such as a line of a log: it must not take the room of what may not.

        Returns:
            False if the node is not attached or much waits already; then ``message`` is dropped, and that is all.
        """
        return self._attachment is not None and self._attachment.offer(message)

    def leave(self) -> None:
        """Leave the present attachment, if any, and ask the directory for a place again."""
        if self._attachment is not None:
            self._attachment.end("left")

    async def fetch(
        self, ref: BlobRef, target: Path, *, deadline_s: float, spares: Spares | None = None, relay: Relay | None = None
    ) -> None:
        """Fetch a blob into the file ``target``, which appears when it is whole and verified, not yet safe from a loss
        of power: who keeps it for good sees to that.

        Survives the loss of the attachment: goes on at the same byte over the next one. It may be written over one of
        ``spares``, and read by way of ``relay`` meanwhile. If it ends otherwise, also by cancelling, nothing is left of
        it: the next call begins anew.

        Raises:
            DeadlineExceeded: it took longer than ``deadline_s``.
            NotFound: those above do not have it.
            CorruptData: it was wrong three times.
            StorageFull: there is no room for it here.
            RunnelError: the error that ended the link.
        """
        partial = target.with_name(f"{target.name}.{ref.name[:16]}.part")
        file = SpoolFile(partial=partial, whole=target, ref=ref, durable=False, spares=spares)
        held = file.held
        data = None if self._attachment is None else self._attachment.within.model(ref)
        try:
            if data is not None and not held:
                with suppress(CorruptData):  # fetched, it is verified again
                    # A few kilobytes into the page cache take less than the way to a thread and back.
                    file.write(0, data)
                    file.finish()
                    return
            try:
                async with asyncio.timeout(deadline_s):
                    await fetch_blob(self._present, file, self._delays, relay)
            finally:
                self._fetched_bytes += max(0, file.held - held)
        except TimeoutError:
            what = f"Fetching {ref.size_bytes:,} bytes took longer than {deadline_s:.1f} s; {file.held:,} came."
            raise DeadlineExceeded(what, digest=ref.name) from None
        finally:
            if not file.verified:
                await in_thread(file.drop)

    async def push(self, order_id: str, source: Source, ref: BlobRef | None, *, deadline_s: float) -> BlobRef:
        """Push ``source`` as payload of an order; returns its name when the node above has verified all of it.

        A small one is only kept where the order lets it go within the report. A call that breaks while the attachment
        lasts is taken up again where it broke. What is there already costs one round trip. With None for ``ref`` the
        name is found meanwhile; after a loss of the attachment before: only what has one is gone on with.

        Raises:
            Unreachable: the node is not attached, or the attachment was lost meanwhile: offer it again over the next.
            DeadlineExceeded: it took longer than ``deadline_s``.
            IllegalState: the order takes no answers any more.
            CorruptData: ``source`` is not ``ref``.
            RunnelError: what else the node above said.
        """
        attachment = self._now()
        if ref is not None and attachment.within.allows(order_id, ref):
            attachment.within.keep(order_id, ref, _read_whole(source, ref))  # a few kilobytes, just written
            return ref
        try:
            async with asyncio.timeout(deadline_s):
                work = push_named(attachment, order_id, source, ref, self._delays, first=self._push_was_cut)
                ref = await attachment.while_attached(work)
        except TimeoutError:
            what = f"Pushing a payload to {attachment.peer} took longer than {deadline_s:.1f} s."
            raise DeadlineExceeded(what, order_id=order_id) from None
        except Unreachable:
            self._push_was_cut = True
            raise
        self._push_was_cut = False
        self._pushed_bytes += ref.size_bytes
        return ref

    def _now(self) -> Attachment:
        if self._attachment is None or self._attachment.lost.is_set():
            raise Unreachable("Not attached to the network at the moment.", hint="Offer it again when attached.")
        return self._attachment

    async def probe(self, order_id: str, ref: BlobRef, *, deadline_s: float) -> bool:
        """Ask the node above whether it takes this payload; return whether it has all of it already.

        Raises:
            Unreachable: the node is not attached, or the attachment was lost meanwhile.
            DeadlineExceeded: no answer came within ``deadline_s``.
            RunnelError: why it does not take it.
        """
        attachment = self._now()
        try:
            async with asyncio.timeout(deadline_s):
                return await attachment.while_attached(ask_push(attachment, order_id, ref))
        except TimeoutError:
            raise DeadlineExceeded(
                f"{attachment.peer} did not say within {deadline_s:.1f} s whether it takes a payload.",
                order_id=order_id,
            ) from None

    async def ask(self, ask: TaskAsk, *, deadline_s: float) -> TaskAnswer:
        """Ask the network for a container of a task; while nobody answers, again, until ``deadline_s``.

        Raises:
            DeadlineExceeded: nobody answered in time.
            RunnelError: what the network said.
        """
        return await ask_network(self._present, ask, self._delays(), deadline_s=deadline_s, clock=self._clock)

    def samples(self) -> list[Sample]:
        """Return what Prometheus is told of the way up."""
        return [
            ATTACHED.sample(self.attached),
            FETCHED.sample(self._fetched_bytes),
            PUSHED.sample(self._pushed_bytes),
        ]

    # ---- transfers

    async def _present(self) -> Attachment:
        while True:
            if self._fatal is not None:
                raise self._fatal
            if self._stopping:
                raise Cancelled("The node leaves the network.")
            if self._attachment is not None and not self._attachment.lost.is_set():
                return self._attachment
            self._changed.clear()
            await self._changed.wait()

    def _delays(self) -> Iterator[float]:
        return self._retry.delays(self._random)

    # ---- staying attached

    async def _run(self) -> None:
        try:
            await self._stay()
        except Exception as error:  # noqa: BLE001 - raised to whoever iterates or waits for an attachment
            self._fatal = error
            self._events.close(error)
        finally:
            self._events.close()
            self._changed.set()
            if self._directory is not None:
                await self._directory.close()

    async def _stay(self) -> None:
        delays = self._delays()
        patience = Patience(self._clock)
        failure: RunnelError | None
        while not self._stopping:
            began = self._clock()
            try:
                place = await self._join(avoid=self._avoid)
            except _FATAL:
                raise
            except (Conflict, InvalidInput) as error:
                if not self._was_attached:
                    raise
                self._avoid, failure = (), error
            except RunnelError as error:
                self._avoid, failure = (), error
            else:
                left, failure = await self._stay_at(place)
                self._avoid = () if not left else (left,) if left in self._avoid else (*self._avoid, left)
            if self._stopping:
                return
            if self._clock() - began > _STABLE_S:
                delays = self._delays()
                patience = Patience(self._clock)
            if failure is not None and patience.speak():
                self._log.warning(
                    "not attached, trying again", network=self._network, waited_s=patience.waited_s, detail=str(failure)
                )
            await asyncio.sleep(next(delays))

    async def _join(self, *, avoid: tuple[str, ...] = (), attached_to: str = "") -> Place:
        if self._directory is None:
            self._directory = open_channel(self._network, tls=self._tls, allow_plaintext=self._allow_plaintext)
        ask = JoinAsk(
            name=self._ask.name,
            node_id=self._ask.node_id,
            kind=self._ask.kind,
            prefer=self._ask.prefer,
            attached_to=attached_to,
            avoid=avoid,
        )
        channel = self._directory
        try:
            return await join(
                channel, ask, token=self._token, deadline_s=_JOIN_DEADLINE_S, peer=f"the directory at {self._network}"
            )
        except (Unreachable, DeadlineExceeded):
            # A channel that failed waits before it connects again; a new one does so at once, and the waiting is ours.
            if not attached_to:
                self._directory = None
                await channel.close()
            raise

    async def _stay_at(self, place: Place) -> tuple[str, RunnelError | None]:
        """Attach and stay until the end; return the name to avoid next, and what went wrong, if anything did."""
        address = place.address or self._network
        async with AsyncExitStack() as stack:
            channel, tls = self._directory, self._tls
            if channel is None or address != self._network:
                tls = (self._tls or ClientTls()) if place.tls else None
                try:
                    channel = open_channel(address, tls=tls, allow_plaintext=self._allow_plaintext)
                except BadSettings as error:
                    # What one combiner says of itself must not end this node. But if there is no other, and never was,
                    # a person has to see to it.
                    if self._unusable == place.attach_to and not self._was_attached:
                        raise
                    self._unusable = place.attach_to
                    return place.attach_to, error
                stack.push_async_callback(channel.close)
            attachment = Attachment(
                channel,
                place,
                peer=f"{place.attach_to or 'the node'} at {address}",
                mailbox_bytes=self._mailbox_bytes,
                address=address,
                tls=tls,
            )
            try:
                welcome = await attachment.open(self._hello())
            except RunnelError as error:
                return place.attach_to, error
            self._was_attached, self._avoid = True, ()
            self._attachment = attachment
            self._changed.set()
            self._log.info("attached", via=welcome.name, address=address)
            try:
                await self._emit(Attached(welcome=welcome, via=welcome.name, address=address))
                if channel is not self._directory:
                    await self._leave_directory()
                await attachment.run(self._deliver, lambda: self._renewed(place))
            finally:
                attachment.end("left")
                self._attachment = None
            self._log.info("detached", via=welcome.name, reason=attachment.reason)
            await self._emit(Detached(reason=attachment.reason, error=attachment.error))
        return "" if attachment.reason in _GOOD_PLACES else place.attach_to, attachment.error

    async def _deliver(self, message: Downward) -> None:
        await self._emit(Received(message=message))

    async def _emit(self, event: LinkEvent) -> None:
        if not self._events.closed:
            await self._events.put(event)

    async def _leave_directory(self) -> None:
        """Close the connection to the directory until it is needed again: it holds one for each node otherwise."""
        channel, self._directory = self._directory, None
        if channel is not None:
            await channel.close()

    async def _renewed(self, place: Place) -> Place:
        delays = self._delays()
        while True:
            try:
                fresh = await self._join(attached_to=place.attach_to)
                if place.address and place.address != self._network:
                    await self._leave_directory()
                return fresh  # noqa: TRY300 - whatever is raised above is handled in the same way
            except _FATAL:
                raise
            except RunnelError as error:
                self._log.warning("credential not renewed, trying again", network=self._network, detail=str(error))
            await asyncio.sleep(next(delays))


def _read_whole(source: Source, ref: BlobRef) -> bytes:
    data = bytes(source) if isinstance(source, memoryview) else source.read_bytes()
    if not is_blob(data, ref):
        raise CorruptData(f"{source} is not the blob {ref.name[:12]}… any more.", digest=ref.name)
    return data
