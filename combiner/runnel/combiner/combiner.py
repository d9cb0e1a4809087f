"""A combiner: attached upward, serving downward, with the order book between."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import platform
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from types import TracebackType

import structlog

from runnel.combiner.asks import AskRelay
from runnel.combiner.blob_cache import BlobCache
from runnel.combiner.domain import Decision, Finish, Membership, OrderBook, SendDown, SendUp
from runnel.combiner.domain import Fold as FoldDecision
from runnel.combiner.intake import Intake
from runnel.combiner.partials import NotFolded, Partials
from runnel.combiner.payloads import Payloads, remove
from runnel.combiner.runs import Runs
from runnel.combiner.small_blobs import take_small_payload, with_small_model
from runnel.combiner.stage_news import StageNews
from runnel.common.blobs import KEPT_HEARTBEATS, BlobStore, Relay, RelayedBlob, Spares, SpoolFile
from runnel.common.crash_points import CrashPoint, reach
from runnel.common.errors import CapacityExceeded, RunnelError
from runnel.common.metrics import Tally
from runnel.common.protocol import (
    RUN_PREFIX,
    Assignment,
    BlobRef,
    Cancel,
    CatalogueNews,
    CatalogueWanted,
    Close,
    Downward,
    Drain,
    Heartbeat,
    Hello,
    LogLines,
    Member,
    NodeKind,
    Progress,
    Released,
    Report,
    Roster,
    Settled,
    Stage,
    TaskNews,
    TaskOrder,
    TaskRelease,
    TaskSettled,
    Upward,
    Welcome,
)
from runnel.transport import Attached, Child, Detached, NodeIdentity, Received, UplinkLink

log = structlog.get_logger()

_FETCH_DEADLINE_S = 3600.0
_NO_ROOM_PAUSE_S = 5.0


class Combiner:
    """Handles both sides of a combiner: an ``UplinkHandler`` for those below, a user of ``UplinkLink`` upward.

    It keeps nothing that must outlive it. Its state folder is scratch, wiped at start: blobs that can be fetched again,
    updates that clients still hold, sums that can be folded again.

    Args:
        name: of this combiner.
        node_id: its identity.
        version: of this distribution.
        state: the scratch folder.
        link_factory: makes the way up, given what returns the hello.
        on_public_key: is told by which key credentials of those below are to be verified.
        capacity: how many nodes may attach.
        keep_bytes: models and packages kept for those below.
        heartbeat_s: interval at which nodes below are to be heard.
        isolated_after_s: without a way up for so long, those below are told to look elsewhere.
        max_overhead_bytes: by how much an update may be larger than the global model.
        on_attachment: is told the name of the node above to which it attached, and the empty name when that is over.
    """

    def __init__(
        self,
        *,
        name: str,
        node_id: str,
        version: str,
        state: Path,
        link_factory: Callable[[Callable[[], Hello]], UplinkLink],
        on_public_key: Callable[[bytes], None],
        capacity: int,
        keep_bytes: int,
        heartbeat_s: float = 10.0,
        isolated_after_s: float = 30.0,
        max_overhead_bytes: int = 16 << 20,
        on_attachment: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self.name = name
        self._on_attachment = on_attachment
        self.address = ""
        self.tls = False
        self._node_id = node_id
        self._version = version
        self._capacity = capacity
        self._heartbeat_s = heartbeat_s
        self._isolated_after_s = isolated_after_s
        self._on_public_key = on_public_key
        self._public_key = b""
        self._payloads = Payloads(state / "spool", keep_s=KEPT_HEARTBEATS * heartbeat_s)
        self._membership = Membership(name)
        self._book = OrderBook(self._membership.route, self._membership.kind_of)
        self._children: dict[str, Child] = {}
        self._lines_dropped = 0
        self._link = link_factory(self.hello)
        self._stages = StageNews(self._link)
        self.asks = AskRelay(name, self._membership, self._link)
        self.folded = Tally(("folded",), ("refused",))  # reports from below
        self._cache = BlobCache(
            BlobStore(state / "blobs", durable=False),
            self._fetch,
            keep_bytes=keep_bytes,
            needed=lambda sha256: any(sha256 == o.assignment.model.sha256 for o in self._book.orders.values()),
        )
        self._partials = Partials(
            state / "sums", book=self._book, payloads=self._payloads, cache=self._cache, link=self._link
        )
        self.queue = self._partials.queue  # of transfers
        self._intake = Intake(name, self._book, self._payloads, max_overhead_bytes=max_overhead_bytes)
        self._runs = Runs(
            name,
            membership=self._membership,
            link=self._link,
            send_down=self._send_down,
            folder=state / "runs",
            keep_s=KEPT_HEARTBEATS * heartbeat_s,
        )
        self._group = asyncio.TaskGroup()
        self._isolation: asyncio.Task[None] | None = None
        self._deserted = asyncio.Event()
        self._deserted.set()

    async def __aenter__(self) -> Combiner:
        await self._partials.wipe()
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._isolation is not None:
            self._isolation.cancel()
        self._stages.close()
        await self._partials.close()
        await self._cache.close()
        await self._group.__aexit__(kind, error, trace)

    # ---- upward

    def hello(self) -> Hello:
        """Return who is here, for the node above."""
        member = Member(
            name=self.name,
            node_id=self._node_id,
            kind=NodeKind.COMBINER,
            version=self._version,
            platform=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            address=self.address,
            capacity=self._capacity,
            tls=self.tls,
        )
        return Hello(member=member, below=self._membership.announce())

    async def run(self) -> None:
        """Stay attached upward until cancelled.

        Raises:
            Unauthenticated, Forbidden, Conflict: the network does not want this combiner.
        """
        async with self._link:
            async for event in self._link:
                match event:
                    case Attached(welcome=welcome):
                        self._public_key = welcome.credential_public_key
                        self._on_public_key(self._public_key)
                        if self._isolation is not None:
                            self._isolation.cancel()
                            self._isolation = None
                        self._tell(self._membership.unannounced())
                        self._runs.attached()
                        log.info("attached", to=event.via, address=event.address)
                        if self._on_attachment is not None:
                            await self._on_attachment(event.via)
                    case Received(message=Assignment() as order):
                        self._from_above(await with_small_model(order, self._cache))
                    case Received(message=TaskOrder() | TaskSettled() | TaskRelease() | CatalogueWanted() as message):
                        self._runs.down(message)
                    case Received(message=message):
                        self._from_above(message)
                    case Detached(reason=reason):
                        log.warning("detached", reason=reason)
                        self._stages.close()
                        fenced = list(self._book.orders)
                        self._apply(self._book.parent_gone())
                        for order_id in fenced:
                            self._drop(order_id)
                        if self._isolation is None:
                            self._isolation = self._group.create_task(self._isolated(), name="isolated")
                        if self._on_attachment is not None:
                            await self._on_attachment("")

    async def _isolated(self) -> None:
        await asyncio.sleep(self._isolated_after_s)
        log.warning("no way up; those below are sent away", nodes=len(self._children))
        self.drain(f"the combiner {self.name} has no way up")

    def drain(self, reason: str) -> None:
        """Send all directly attached nodes to look for another place."""
        for child in list(self._children.values()):
            child.send(Drain(reason=reason))

    async def deserted(self) -> None:
        """Wait until nobody is attached here."""
        await self._deserted.wait()

    @property
    def attached_below(self) -> int:
        """Number of directly attached nodes."""
        return len(self._children)

    @property
    def link(self) -> UplinkLink:
        """The way up."""
        return self._link

    @property
    def below(self) -> tuple[Member, ...]:
        """Who is attached here or further below."""
        return self._membership.members()

    @property
    def open_orders(self) -> int:
        """Number of orders whose report is not sent yet."""
        return len(self._book.orders)

    def _from_above(self, message: Downward) -> None:
        match message:
            case Assignment():
                log.debug("assigned", key=str(message.key), order_id=message.order_id, clients=len(message.clients))
                # Asked for now, the model is here by the time that the first client wants it.
                self._group.create_task(self._prefetch(message.model), name="prefetch")
                self._apply(self._book.assigned(message))
                for client in message.clients:
                    self._membership.takes_on(client, message.key)
            case Close():
                self._apply(self._book.close(message.order_id))
            case Cancel(order_id=order_id) if order_id:
                self._apply(self._book.cancelled(order_id, message.reason))
                self._drop(order_id)
            case Cancel(key=key) if key is not None:
                for child, clients in self._by_child(message.clients).items():
                    self._send_down(child, Cancel(key=key, clients=clients, reason=message.reason))
                for client in message.clients:
                    self._membership.let_go(client, key)
            case Settled():
                reach(CrashPoint.SETTLED_ABOVE)
                for child, clients in self._by_child(message.clients).items():
                    self._send_down(child, Settled(key=message.key, clients=clients, settlement=message.settlement))
                for client in message.clients:
                    self._membership.let_go(client, message.key)
            case Cancel() | Drain() | Welcome():
                pass  # the link answers to these itself

    async def _prefetch(self, ref: BlobRef) -> None:
        try:
            await self._cache.bring(ref)
        except (RunnelError, OSError) as err:
            log.warning("model not fetched", sha256=ref.sha256, error=str(err))

    async def _fetch(self, ref: BlobRef, target: Path, spares: Spares, relay: Relay) -> None:
        await self._link.fetch(ref, target, deadline_s=_FETCH_DEADLINE_S, spares=spares, relay=relay)

    def _by_child(self, clients: Iterable[str]) -> dict[str, tuple[str, ...]]:
        routes: dict[str, list[str]] = {}
        for client in clients:
            for child in self._membership.ways(client):
                routes.setdefault(child, []).append(client)
        return {child: tuple(names) for child, names in routes.items()}

    # ---- decisions

    def _apply(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            match decision:
                case SendUp(Progress(stage=stage) as progress) if stage is not Stage.FAILED:
                    self._stages.tell(progress)
                case SendUp(message):
                    if isinstance(message, Progress):
                        self._stages.outdated(message)
                    self._link.send(message)
                case SendDown(child, message):
                    self._send_down(child, message)
                case FoldDecision():
                    self._group.create_task(self._fold(decision), name=f"fold {decision.order_id}")
                case Finish(order_id):
                    self._group.create_task(self._finish(order_id), name=f"finish {order_id}")

    def _tell(self, news: Roster) -> None:
        if news.joined or news.left:
            self._link.send(news)

    def _send_down(self, child: str, message: Downward) -> None:
        if (attached := self._children.get(child)) is not None:
            attached.send(message)

    async def _fold(self, decision: FoldDecision) -> None:
        order_id, report = decision.order_id, decision.report
        try:
            failure = await self._partials.fold(decision)
        except NotFolded as err:
            self._apply(self._book.unfolded(order_id, await self._partials.lost(order_id)))
            for outcome in report.outcomes:
                stage = Stage.PUSHING if outcome.failure is None else Stage.FAILED
                told = Progress(key=report.key, order_id=order_id, client=outcome.client, stage=stage, detail=str(err))
                self._stages.outdated(told)
                self._link.send(told)
            order = self._book.orders.get(order_id)
            if order is not None and not order.closing:
                await asyncio.sleep(_NO_ROOM_PAUSE_S)  # or they would be asked again, and push, over and over
            self._apply(self._book.not_folded(order_id, report))
        else:
            self.folded.add("folded" if failure is None else "refused")
            self._apply(self._book.folded(order_id, report, failure))

    async def _finish(self, order_id: str) -> None:
        await self._partials.report(order_id)
        self._stages.reported(order_id)

    def _drop(self, order_id: str) -> None:
        self._group.create_task(self._partials.drop(order_id), name=f"drop {order_id}")

    # ---- downward: the UplinkHandler

    def welcome(self, child: Child) -> Welcome:
        """Return the first message down."""
        return Welcome(
            name=self.name,
            heartbeat_s=self._heartbeat_s,
            credential_public_key=self._public_key if child.identity.kind is NodeKind.COMBINER else b"",
        )

    async def attached(self, child: Child, hello: Hello) -> None:
        """A node attached here.

        Raises:
            CapacityExceeded: all places are taken.
        """
        if len(self._children) >= self._capacity:
            raise CapacityExceeded(
                f"The combiner {self.name} is full: all its {self._capacity:,} places are taken.",
                hint="Ask Directory.Join for another place.",
                capacity=self._capacity,
            )
        self._children[child.identity.name] = child
        self._deserted.clear()
        self._tell(self._membership.attach(hello.member, hello.below))
        log.info("node attached", name=child.identity.name, kind=child.identity.kind.value)

    async def detached(self, child: Child, reason: str) -> None:
        """A node that was attached here is gone."""
        name = child.identity.name
        self._children.pop(name, None)
        # In this order, or the node above asks for the released clients by this way once more.
        self._payloads.left(name)
        self._runs.left(name)
        self._tell(self._membership.detach(name))
        self._apply(self._book.child_gone(name))
        if not self._children:
            self._deserted.set()
        log.info("node left", name=name, reason=reason)

    async def received(self, child: Child, message: Upward) -> None:
        """A node below says something."""
        name = child.identity.name
        match message:
            case Progress():
                for client in message.clients:
                    one = dataclasses.replace(message, client=client, others=())
                    self._apply(self._book.progressed(name, one))
            case LogLines():
                self._pass_on(name, message)
            case Report():
                if message.payload_data:
                    take_small_payload(self._payloads, child.identity, message, self._intake.wanted)
                self._reported(name, dataclasses.replace(message, payload_data=b""))
            case Released():
                self._apply(self._book.released(name, message))
            case TaskNews():
                self._runs.news(name, message)
            case CatalogueNews():
                # What is lost here, as there is no way up or no room on it, is asked for again.
                if name in self._membership.ways(message.client):
                    self._link.offer(message)
            case Roster():
                self._tell(self._membership.leave(name, message.left))
                self._tell(self._membership.join(name, message.joined))
            case Heartbeat() | Hello():
                pass

    def _pass_on(self, child: str, lines: LogLines) -> None:
        """Pass log lines on; those of clients that are not below ``child``, and those without room, are dropped."""
        if child not in self._membership.ways(lines.client):
            log.warning("log lines of a client that is elsewhere", child=child, client=lines.client)
        elif self._link.offer(lines):
            self._lines_dropped = 0
        elif self._link.attached:
            if not self._lines_dropped:
                log.warning("no room for log lines on the way up; they are dropped", client=lines.client)
            self._lines_dropped += len(lines.lines)

    def _reported(self, child: str, report: Report) -> None:
        decisions = self._book.reported(child, report)
        if not decisions:
            log.info("report not wanted", child=child, key=str(report.key), order_id=report.order_id)
        self._apply(decisions)
        if not any(isinstance(decision, FoldDecision) for decision in decisions):
            _, payload = self._payloads.take(report.order_id, child)
            remove(payload or b"")

    @contextlib.asynccontextmanager
    async def blob_file(self, ref: BlobRef, identity: NodeIdentity) -> AsyncIterator[Path | RelayedBlob]:
        """Give a blob, or what is here of it while it is fetched from above."""
        with self._cache.served(ref) as source:
            yield source

    async def open_push(self, identity: NodeIdentity, order_id: str, ref: BlobRef) -> SpoolFile | None:
        """Return where a payload for a living order, or a file of a run, goes."""
        if order_id.startswith(RUN_PREFIX):
            return await self._runs.open_push(identity, order_id, ref)
        return await self._intake.open(identity, order_id, ref)

    async def pushed(self, identity: NodeIdentity, order_id: str, ref: BlobRef, file: Path) -> None:
        """Take a verified payload."""
        if order_id.startswith(RUN_PREFIX):
            await self._runs.pushed(identity, order_id, ref, file)
        else:
            await self._intake.keep(identity, order_id, ref, file)
