"""One phase of one round as it is carried out: orders go down, reports come up and are made durable."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import structlog

from runnel.common.compression import decoding_bytes, parse_compression
from runnel.common.crash_points import CrashPoint, reach
from runnel.common.errors import IllegalState, StorageFull, Unreachable
from runnel.common.payload_limits import require_fitting_payload
from runnel.common.protocol import (
    MOST_WITHIN_BYTES,
    REFUSING,
    WAITING,
    Assignment,
    BlobRef,
    Cancel,
    Close,
    Downward,
    Gather,
    NodeKind,
    Outcome,
    PayloadKind,
    Progress,
    Released,
    Report,
    Settled,
    Settlement,
    Work,
)
from runnel.reducer.domain.collection import Collection, Order, SlotState
from runnel.reducer.domain.roster import Roster
from runnel.reducer.engine.position import Position
from runnel.reducer.engine.reduction import check_payload
from runnel.reducer.store import ledger
from runnel.reducer.store.blobs import Blobs
from runnel.reducer.store.journal import Journal

log = structlog.get_logger()

_NO_ROOM_PAUSE_S = 5.0


class Network(Protocol):
    """What a session needs of the nodes below."""

    @property
    def roster(self) -> Roster:
        """Who is attached where."""

    def clients(self, organisation: str) -> list[str]:
        """Return the names of the attached clients of an organisation, sorted."""

    def send(self, child: str, message: Downward) -> None:
        """Send to a directly attached node; of no effect when it is gone."""

    def send_each(self, child: str, messages: Iterable[Downward], number: int) -> None:
        """Send some, at most ``number``, to a directly attached node, each made in its turn; none when it is gone."""

    def register(self, order: Order, exchange: Exchange) -> None:
        """Route what comes up for this order to ``exchange``."""

    def unregister(self, order_ids: Iterable[str]) -> None:
        """Refuse what still comes up for these orders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """Why a client's site does not take work, and of which package (its digest); ``refuses``: and does not wait."""

    why: str
    package: str
    refuses: bool = False


class Exchange:
    """Carries out one :class:`Collection`: places its orders, takes its reports, settles them.

    The methods that take news are called on the loop by the engine, between the steps of :meth:`collect`.

    Args:
        collection: the slots and orders.
        position: where the session is; not modified.
        network: the nodes below.
        journal: the durable state.
        blobs: where the global model lies.
        wake: is called after each change, so that who waits looks again.
        show: tells people how far the work is; None: as the collection counts.
        aside: clients whose site does not take the work of this session yet; kept up here.
        model_data: the global model, if it is to go within the orders.
    """

    def __init__(
        self,
        collection: Collection,
        *,
        position: Position,
        network: Network,
        journal: Journal,
        blobs: Blobs,
        wake: Callable[[], None],
        show: Callable[[], None] | None = None,
        aside: dict[str, Aside] | None = None,
        model_data: bytes = b"",
    ) -> None:
        self._model_data = model_data
        self._client_settings = json.dumps(position.config.client_settings, sort_keys=True)
        self._aside = {} if aside is None else aside
        self.collection = collection
        self.position = position
        self._network = network
        self._journal = journal
        self._blobs = blobs
        self._wake = wake
        self._gather = position.gather if collection.key.work is Work.TRAIN else Gather.SUM
        self._show = show or self._show_counts
        self._buffer_rule = position.buffered if collection.key.work is Work.TRAIN else None
        self.stages: dict[str, str] = {}
        self._entering = 0
        self._fenced: list[Order] = []
        self._unsure: Unreachable | None = None
        self.begin()

    def begin(self) -> None:
        """Let the time of the phase begin, for the first attempt or another one."""
        self._deadline = time.monotonic() + self.position.config.round_timeout_s
        self._closed_at: float | None = None
        self._missing_since: float | None = None

    # ---- news from below

    def child_gone(self, child: str) -> None:
        """A directly attached node detached."""
        self._network.unregister(order.order_id for order in self.collection.child_gone(child))
        self._wake()

    def is_of(self, order_id: str, child: str) -> bool:
        """Whether this living order was given to ``child``."""
        order = self.collection.orders.get(order_id)
        return order is not None and order.child == child

    def progressed(self, child: str, progress: Progress) -> None:
        """A node below tells how far clients are that were asked through it."""
        order = self.collection.orders.get(progress.order_id)
        if order is None or order.child != child or progress.key != self.collection.key:
            return
        if known := order.clients.intersection(progress.clients):
            reach(CrashPoint.ASSIGNMENT_ARRIVED)
            for client in known:
                self.collection.progressed(progress.order_id, client, progress.stage)
                self.collection.heard(client, progress.detail)
                self.stages[client] = WAITING.get(progress.detail, progress.detail) or progress.stage.value
            self._show()
            self._wake()

    def released(self, child: str, released: Released) -> None:
        """A node below gives up clients of an order."""
        order = self.collection.orders.get(released.order_id)
        if order is not None and order.child == child:
            self.collection.released(released.order_id, released.clients)
            self._wake()

    def arrived(self, client: str) -> None:
        """A client attached anew, wherever."""
        self.collection.arrived(client)

    def refused(self, order_id: str) -> None:
        """The report of an order can't be used: give the order up, and count its clients as failed here."""
        order = self.collection.orders.pop(order_id, None)
        if order is not None:
            self.collection.refused(order)
            self._network.unregister([order_id])
            self._wake()

    def no_room(self, order_id: str, why: str) -> None:
        """There was no room here for the report of an order: ask its clients again in a while, who keep it."""
        if (order := self.collection.orders.get(order_id)) is not None:
            for client in order.clients:
                self.collection.heard(client, why)
            asyncio.get_running_loop().call_later(_NO_ROOM_PAUSE_S, self._ask_again, order_id)

    def _ask_again(self, order_id: str) -> None:
        if order_id in self.collection.orders:
            self.collection.unreported(order_id)
            self._network.unregister([order_id])
            self._wake()

    def decoding_bytes(self, kind: NodeKind) -> int:
        """Return how much room is taken by decoding what a node of this kind pushes."""
        if kind is not NodeKind.CLIENT:
            return 0
        return decoding_bytes(parse_compression(self.position.config.compress), self.position.model.size_bytes)

    def require_fitting(self, payload: BlobRef, order_id: str, kind: NodeKind, overhead_bytes: int) -> None:
        """Require that a payload for a living order is not larger than it could be; raises :class:`TooLarge`."""
        order = self.collection.orders[order_id]
        require_fitting_payload(
            payload,
            source=order.child,
            kind=kind,
            gather=self._gather,
            model=self.position.model,
            clients=len(order.clients),
            overhead_bytes=overhead_bytes,
        )

    async def report(self, child: str, report: Report, payload: Path | None) -> None:
        """Check a report, make it durable, settle it with those below.

        Raises:
            Unreachable: the durable state does not answer, and whether the report is in it shows later.
            RunnelError: it is refused; the clients keep their copies and are asked again, or it was theirs that is bad.
        """
        collection = self.collection
        order = collection.require_order(report.order_id, child)
        try:
            async with self._blobs.held(self.position.model) as base:
                report = await check_payload(report, child, payload, base, self._gather, self.position.config.compress)
            if payload is not None and report.payload_kind is not PayloadKind.NONE:
                await self._blobs.keep_payload(payload)
        except Unreachable:
            if payload is not None:
                # The ledger has nothing of it, and the node offers it again.
                await asyncio.to_thread(payload.unlink, missing_ok=True)
            raise
        counted = [o.client for o in report.outcomes if o.failure is None]
        unable = [o.client for o in report.outcomes if o.failure is not None]
        reach(CrashPoint.REPORT_RECEIVED)
        self._entering += 1
        try:
            late = await self._enter(report, child, payload)
        except IllegalState:
            raise  # what it names does not fit: nothing was taken, here or in the ledger
        except StorageFull:
            collection.retained(order)  # until its clients are asked again, see `no_room`
            raise
        except BaseException as err:
            collection.unreported(report.order_id)
            self._network.unregister([report.order_id])
            if isinstance(err, Unreachable):
                # Perhaps it was committed after all: only the ledger knows, so the session begins again from there.
                self._unsure = err
            raise
        finally:
            self._entering -= 1
            self._wake()
        reach(CrashPoint.REPORT_COMMITTED)
        self._network.unregister([report.order_id])
        self.settle(counted, Settlement.COUNTED)
        self.settle(unable, Settlement.DISCARDED)
        for outcome in report.outcomes:
            self._note(outcome)
        log.debug("report", key=str(report.key), child=child, counted=len(counted), failed=len(unable), late=len(late))
        if payload is not None and report.payload_kind is PayloadKind.NONE:
            await asyncio.to_thread(payload.unlink, missing_ok=True)  # it was found bad, and is its client's failure
        self._show()
        self._wake()

    def _note(self, outcome: Outcome) -> None:
        """Remember what became of a client's work, and whether its site takes any."""
        waits = "" if outcome.failure is None else WAITING.get(outcome.failure.code, "")
        refuses = "" if outcome.failure is None else REFUSING.get(outcome.failure.code, "")
        self.stages[outcome.client] = waits or ("failed" if outcome.failure else "counted")
        self._aside.pop(outcome.client, None)
        if self.collection.slots[outcome.client].state in {SlotState.AWAITING, SlotState.REFUSED}:
            self._aside[outcome.client] = Aside(
                why=waits or refuses, package=self.position.package.sha256, refuses=bool(refuses)
            )

    async def _enter(self, report: Report, child: str, payload: Path | None) -> list[str]:
        """Write a report into the ledger; the clients that it left out are late."""
        counted = [o.client for o in report.outcomes if o.failure is None]
        unable = {o.client: o.failure for o in report.outcomes if o.failure is not None}
        awaiting = [client for client, failure in unable.items() if failure.code in WAITING]
        refused = [client for client, failure in unable.items() if failure.code in REFUSING]
        counted_in = None
        async with self._journal.transaction(short=True) as tx:
            if self._buffer_rule is not None:
                counted_in = await ledger.counting_round(tx.session, report.key.session_id)
                if counted and counted_in - report.key.round > self._buffer_rule.max_staleness:
                    # Its round is called off with the next selection, and until then nobody is asked.
                    raise IllegalState(
                        f"The update of {child} for {report.key} is too old for round {counted_in}: more than"
                        f" {self._buffer_rule.max_staleness:g} rounds.",
                        order_id=report.order_id,
                        child=child,
                    )
            await ledger.note_outcomes(tx.session, report.key, report.order_id, report.outcomes, counted_in)
            if payload is not None and report.payload_kind is not PayloadKind.NONE:
                await ledger.add_partial(tx.session, report, child, payload.name, counted_in)
            for client, failure in unable.items():
                await tx.record(
                    "client.awaiting" if failure.code in WAITING else "client.failed",
                    self.position.organisation,
                    self.position.session_id,
                    client=client,
                    round=report.key.round,
                    work=report.key.work.value,
                    code=failure.code,
                    message=failure.message,
                )
            await tx.session.flush()
            # Last before the commit: the order may have died meanwhile, then this refuses and nothing is written.
            failed = [client for client in unable if client not in awaiting and client not in refused]
            return self.collection.reported(report.order_id, child, counted, failed, awaiting, refused)

    # ---- what goes down

    def settle(self, clients: Iterable[str], settlement: Settlement) -> None:
        """Tell clients, wherever they are attached now, that they may forget their copy."""
        for child, names in self._by_route(clients).items():
            self._network.send(child, Settled(key=self.collection.key, clients=names, settlement=settlement))

    def fence(self) -> None:
        """Take nothing more."""
        self._fenced += self.collection.fence()
        self._network.unregister(order.order_id for order in self._fenced)

    def withdraw(self, reason: str) -> None:
        """Take nothing more, and let combiners drop their orders: the clients go on, and are asked by others."""
        self.fence()
        for order in self._fenced:
            self._network.send(order.child, Cancel(order_id=order.order_id, reason=reason))

    def call_off(self, reason: str) -> None:
        """Tell those below to stop, and to forget what is not counted: once the end of the phase is durable."""
        for order in self._fenced:
            self._network.send(order.child, Cancel(order_id=order.order_id, reason=reason))
        left = self.collection.clients_in(*(set(SlotState) - {SlotState.COUNTED}))
        for child, names in self._by_route(left).items():
            self._network.send(child, Cancel(key=self.collection.key, clients=names, reason=reason))

    async def collect(self, woken: Callable[[float], Awaitable[object]], missing_grace_s: float | None = None) -> None:
        """Ask, and wait until the phase is closed and all its reports are in.

        Args:
            woken: waits for a change, or until a time (monotonic seconds).
            missing_grace_s: wait no longer than this for clients that are attached nowhere; None: until the time-out.
        """
        self.begin()
        while (until := self.advance(missing_grace_s)) is not None:
            await woken(until)

    def advance(self, missing_grace_s: float | None = None) -> float | None:
        """Do what is to be done now; return until when to wait for news (monotonic seconds), None at the end."""
        if self._unsure is not None:
            raise self._unsure
        collection, timeout_s = self.collection, self.position.config.round_timeout_s
        now = time.monotonic()
        closed = collection.enough or now >= self._deadline
        if closed:
            self._closed_at = now if self._closed_at is None else self._closed_at
            self._close()
        else:
            self._closed_at = None  # it may have been closed before, until an answer that was to come was lost
            self._place(self._deadline - now)
        # What is being written now may still turn out not to be durable.
        if not self._entering and (collection.answered or (closed and not collection.orders)):
            return None
        # Whoever was told to report has the time of a round for it; a node that never does can't hold it up longer.
        until = self._deadline if self._closed_at is None else self._closed_at + timeout_s
        if missing_grace_s is not None and collection.only_missing_left:
            self._missing_since = self._missing_since or now
            if now >= self._missing_since + missing_grace_s:
                return None
            until = min(until, self._missing_since + missing_grace_s)
        else:
            self._missing_since = None
        if self._closed_at is not None and now >= self._closed_at + timeout_s:
            self._give_up()
            return None
        return until

    def _close(self) -> None:
        """Ask combiners for what they have; a client that is attached here has nothing yet, so it is late."""
        for order in self.collection.close():
            member = self._network.roster.find(order.child)
            if member is not None and member.kind is NodeKind.CLIENT:
                self.collection.late(order)
                self._network.unregister([order.order_id])
            else:
                self._network.send(order.child, Close(order_id=order.order_id))

    def _place(self, remaining_s: float) -> None:
        together: dict[str, list[Order]] = {}
        for order in self.collection.place(self._network.roster.route):
            self._network.register(order, self)
            together.setdefault(order.child, []).append(order)
        if not together:
            return
        position = self.position
        # Of fedbuff's orders there may be thousands: all that those which wait hold is this.
        asked = Assignment(
            order_id="",
            key=self.collection.key,
            clients=(),
            package=position.package,
            model=position.model,
            model_data=self._model_data,
            model_format=position.model_format,
            client_settings=self._client_settings,
            remaining_s=remaining_s,
            payload_within=MOST_WITHIN_BYTES,
            gather=self._gather,
            compression=position.config.compress,
            signatures=position.signatures,
            organisation=position.organisation,
        )
        for child, orders in together.items():
            its = (replace(asked, order_id=each.order_id, clients=tuple(sorted(each.clients))) for each in orders)
            self._network.send_each(child, its, len(orders))

    def _give_up(self) -> None:
        """Fence orders that were told to report and did not, though their node is attached."""
        for order in list(self.collection.orders.values()):
            log.error("order given up", key=str(order.order_id), child=order.child)
            self._network.send(order.child, Cancel(order_id=order.order_id, reason="no report after it was closed"))
            self.child_gone(order.child)

    def _by_route(self, clients: Iterable[str]) -> dict[str, tuple[str, ...]]:
        routes: dict[str, list[str]] = {}
        for client in clients:
            for child in self._network.roster.ways(client):
                routes.setdefault(child, []).append(client)
        return {child: tuple(names) for child, names in routes.items()}

    def _show_counts(self) -> None:
        counts = self.collection.counts
        self._journal.show(
            self.position.session_id,
            self.position.organisation,
            {
                "round": self.collection.key.round,
                "work": self.collection.key.work.value,
                "asked": counts.asked,
                "counted": counts.counted + counts.noted,
                "failed": counts.failed,
                "awaiting": counts.awaiting,
                "stages": dict(self.stages),
            },
        )
