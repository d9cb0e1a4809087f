"""All sessions of a reducer and the nodes that they share."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import structlog

from runnel.common.errors import IllegalState, RunnelError, StorageFull, Unauthenticated, Unreachable
from runnel.common.ids import new_id
from runnel.common.protocol import (
    AssignmentKey,
    CatalogueNews,
    Downward,
    Heartbeat,
    Hello,
    LogLines,
    Member,
    NodeKind,
    PackageSignature,
    Progress,
    Released,
    Report,
    Settled,
    Settlement,
    TaskNews,
    Upward,
)
from runnel.common.protocol import (
    Roster as RosterNews,
)
from runnel.reducer.domain.collection import Collection, Order, SlotState
from runnel.reducer.domain.roster import Roster
from runnel.reducer.engine.catalogues import Catalogues
from runnel.reducer.engine.exchange import Exchange
from runnel.reducer.engine.log_writer import LogWriter
from runnel.reducer.engine.measures import Measures
from runnel.reducer.engine.position import Position, position_of
from runnel.reducer.engine.retention import Retention
from runnel.reducer.engine.runner import SessionRunner
from runnel.reducer.engine.small_blobs import keep_small_payload
from runnel.reducer.engine.tasks import Tasks
from runnel.reducer.engine.way_down import WayDown
from runnel.reducer.server_functions.functions import ServerFunctions
from runnel.reducer.store import access, ledger
from runnel.reducer.store.blobs import Blobs
from runnel.reducer.store.journal import Journal

log = structlog.get_logger()

_STALLED_PAUSE_S = 10.0
_AWAY_PAUSE_S = 1.0  # transactions wait for the database by themselves
_SETTLEMENTS = {
    SlotState.COUNTED: Settlement.COUNTED,
    SlotState.FAILED: Settlement.DISCARDED,
    SlotState.AWAITING: Settlement.DISCARDED,
    SlotState.REFUSED: Settlement.DISCARDED,
}


class Engine:
    """Owns the roster and a task for each running session; an async context manager.

    Args:
        journal: the durable state.
        blobs: models and packages.
        partials: folder of payloads that wait for their round to be reduced.
        name: of this reducer.
        organisation: whose events those about nodes are.
        keep_models: files of so many newest models of a session are kept if it does not say itself; 0: of all.
        keep_results: for how long results of tasks are kept; None: for ever.
        functions: runs what packages do at the reducer; None: nothing.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        blobs: Blobs,
        partials: Path,
        name: str,
        organisation: str,
        keep_models: int = 0,
        keep_results: timedelta | None = None,
        functions: ServerFunctions | None = None,
    ) -> None:
        self.roster = Roster()
        self.name = name
        self.measures = Measures()
        self._journal = journal
        self._blobs = blobs
        self._partials = partials
        self._functions = functions
        self._retention = Retention(journal, blobs, keep_models)
        self._organisation = organisation
        self._runners: dict[str, SessionRunner] = {}
        self.stalled: dict[str, str] = {}  # what sessions that run wait for, which is no fault of theirs
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._to_stop: set[str] = set()
        self._orders: dict[str, Exchange] = {}
        self._ways: dict[str, WayDown] = {}
        self._owners: dict[str, str] = {}  # organisation by name of a node
        self._logs = LogWriter(journal.database)
        self.tasks = Tasks(journal, network=self, retention=self._retention, lines=self._logs, keep=keep_results)
        self._catalogues = Catalogues(journal, network=self)
        self._own: list[asyncio.Task[None]] = []
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Engine:
        await asyncio.to_thread(self._partials.mkdir, parents=True, exist_ok=True)
        async with self._journal.database.read() as tx:
            wanted = await ledger.all_partial_files(tx)
            running = await ledger.running_sessions(tx)
        await self._blobs.sweep_payloads(self._partials, wanted)
        await self._retention.remove_files()
        await self.tasks.open()
        await self._catalogues.open()
        await self._group.__aenter__()
        self._group.create_task(self._logs.run(), name="log writer")
        self._own = [
            self._group.create_task(self.tasks.run(), name="tasks"),
            self._group.create_task(self._catalogues.run(), name="catalogues"),
        ]
        for session_id in running:
            self.launch(session_id)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Sessions are left where they are; the next start goes on from there.
        for task in (*self._tasks.values(), *self._own):
            task.cancel()
        self._logs.close()
        await self._group.__aexit__(kind, error, trace)

    async def remove_files(self, payloads: Iterable[str] = ()) -> None:
        """Remove the files of what was given up, and ``payloads`` that no row of the ledger names any more."""
        await self._blobs.drop_payloads(*(self._partials / filename for filename in payloads))
        await self._retention.remove_files()

    # ---- sessions

    def launch(self, session_id: str) -> None:
        """Run a session that is not ended, from where it is."""
        if session_id not in self._tasks:
            self._tasks[session_id] = self._group.create_task(self._run(session_id), name=f"session {session_id}")

    async def _run(self, session_id: str) -> None:
        position = None
        try:
            while True:
                pause_s = _STALLED_PAUSE_S
                try:
                    async with self._journal.database.read() as tx:
                        position = await position_of(tx, session_id)
                    if position.phase.ended:
                        return
                    runner = SessionRunner(
                        position,
                        network=self,
                        journal=self._journal,
                        blobs=self._blobs,
                        partials=self._partials,
                        retention=self._retention,
                        measures=self.measures,
                        new_order_id=lambda: new_id("ord"),
                        functions=self._functions,
                        say=self._logs.add,
                    )
                    self._runners[session_id] = runner
                    self.stalled.pop(session_id, None)
                    if session_id in self._to_stop:
                        runner.stop()
                    try:
                        await runner.run()
                    finally:
                        runner.abandon()
                except (Unreachable, StorageFull) as err:
                    if isinstance(err, Unreachable):
                        pause_s = _AWAY_PAUSE_S
                    why = str(err)
                    log.warning("session stalled", session_id=session_id, again_in_s=pause_s, error=why)
                except Exception as err:
                    # Not even its failure could be stored: what is durable stands, so it goes on later.
                    log.exception("session stalled", session_id=session_id, again_in_s=pause_s)
                    why = f"an unexpected {type(err).__name__}; its log has the rest"
                else:
                    return
                finally:
                    self._runners.pop(session_id, None)
                self._stall(session_id, position, f"the reducer tries again: {why}")
                await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))  # noqa: S311
        finally:
            self.stalled.pop(session_id, None)
            self._to_stop.discard(session_id)
            del self._tasks[session_id]

    def _stall(self, session_id: str, position: Position | None, why: str) -> None:
        """Let people see what a session waits for."""
        self.stalled[session_id] = why
        if position is not None:
            self._journal.show(session_id, position.organisation, {"round": position.round, "stalled": why})

    def stop(self, session_id: str) -> asyncio.Task[None] | None:
        """Ask a session to stop; return the task to wait for, None when it does not run."""
        task = self._tasks.get(session_id)
        if task is not None:
            self._to_stop.add(session_id)  # for a runner that is not there yet, or not any more
        if (runner := self._runners.get(session_id)) is not None:
            runner.stop()
        return task

    def extend(self, session_id: str, rounds: int) -> None:
        """Let a running session know of its new number of rounds."""
        if (runner := self._runners.get(session_id)) is not None:
            runner.set_rounds(rounds)

    def signed(self, organisation: str, digest: str, signatures: tuple[PackageSignature, ...]) -> None:
        """Let running sessions of a package know who vouches for it now."""
        for runner in self._runners.values():
            if runner.position.organisation == organisation:
                runner.exchanges.signed(digest, signatures)

    def moved(self, session_id: str, digest: str) -> None:
        """Let a running session know which package its next rounds have."""
        if (runner := self._runners.get(session_id)) is not None:
            runner.exchanges.moved(digest)

    @property
    def running(self) -> int:
        """Number of sessions that run."""
        return len(self._tasks)

    @property
    def open_orders(self) -> int:
        """Number of orders whose report is waited for."""
        return len(self._orders)

    # ---- what runners need (the Network protocol)

    def send(self, child: str, message: Downward) -> None:
        """Send to a directly attached node; of no effect when it is gone."""
        if (way := self._ways.get(child)) is not None:
            way.send(message)

    def send_each(self, child: str, messages: Iterable[Downward], number: int) -> None:
        """Send some, at most ``number``, to a directly attached node, each made in its turn; none when it is gone."""
        if (way := self._ways.get(child)) is not None:
            way.send_each(messages, number)

    def members(self, organisation: str | None) -> list[Member]:
        """Return the attached nodes of an organisation; None: of all."""
        return [m for m in self.roster.members() if organisation in {None, self._owners.get(m.name)}]

    def clients(self, organisation: str) -> list[str]:
        """Return the names of the attached clients of an organisation, sorted."""
        return [name for name in self.roster.clients() if self._owners.get(name) == organisation]

    def register(self, order: Order, exchange: Exchange) -> None:
        """Route what comes up for this order to ``exchange``."""
        self._orders[order.order_id] = exchange

    def unregister(self, order_ids: Iterable[str]) -> None:
        """Refuse what still comes up for these orders."""
        for order_id in order_ids:
            self._orders.pop(order_id, None)

    # ---- what comes from below

    def has_order(self, order_id: str) -> bool:
        """Whether a report for this order is waited for."""
        return order_id in self._orders

    def require_order(self, order_id: str, child: str) -> Exchange:
        """Return where a living order of ``child`` belongs; raises :class:`IllegalState`."""
        exchange = self._orders.get(order_id)
        if exchange is None:
            raise IllegalState(
                f"Order {order_id} of {child} is closed or was given to somebody else.", order_id=order_id, child=child
            )
        exchange.collection.require_order(order_id, child)
        return exchange

    async def attached(self, hello: Hello, way: WayDown) -> None:
        """A node attached here.

        Raises:
            RunnelError: it could not be taken in, and is not there.
        """
        name = hello.member.name
        known = await self._joined(name, (hello.member, *hello.below))
        if hello.member not in known:
            raise Unauthenticated(
                f"{name} has not joined this network, or another node has its name now.",
                hint="Ask Directory.Join for a place and a credential.",
                name=name,
            )
        self._ways[name] = way
        try:
            await self._arrived(self.roster.attach(known[0], known[1:]))
        except BaseException:
            self._forget(name)
            raise

    async def detached(self, child: str) -> None:
        """A node that was attached here is gone."""
        await self._left(self._forget(child))

    def _forget(self, child: str) -> list[str]:
        self._ways.pop(child, None)
        gone = [member.name for member in self.roster.detach(child)]
        for runner in self._runners.values():
            runner.child_gone(child)
        return gone

    async def received(self, child: str, message: Upward, payload: Path | None = None) -> None:
        """A node below says something; ``payload`` is the verified file that it pushed for a report."""
        match message:
            case RosterNews():
                joined = await self._joined(child, message.joined)
                gone = [member.name for member in self.roster.leave(child, message.left)]
                arrived = self.roster.join(child, joined)
                await self._left(gone)
                await self._arrived(arrived)
            case Progress():
                if (exchange := self._orders.get(message.order_id)) is not None:
                    exchange.progressed(child, message)
            case Released():
                if (exchange := self._orders.get(message.order_id)) is not None:
                    exchange.released(child, message)
            case Report():
                await self._reported(child, message, payload)
            case LogLines():
                if child in self.roster.ways(message.client):
                    self._logs.add(message)
            case TaskNews():
                await self.tasks.heard(child, message)
            case CatalogueNews():
                await self._catalogues.heard(child, message)
            case Hello() | Heartbeat():
                pass

    async def _reported(self, child: str, report: Report, payload: Path | None) -> None:
        exchange = self._orders.get(report.order_id)
        if exchange is not None and not exchange.is_of(report.order_id, child):
            exchange = None  # whoever says so has no part in it
        try:
            if exchange is None or exchange.collection.key != report.key:
                raise IllegalState(f"Order {report.order_id} of {child} is closed.", order_id=report.order_id)
            if payload is None and report.payload_data:
                payload = await keep_small_payload(report, self._partials)
                report = dataclasses.replace(report, payload_data=b"")
            await exchange.report(child, report, payload)
        except Unreachable:
            # The durable state may have the report, and then its payload: the next start looks which are wanted. The
            # node is let go, and offers again what was not settled.
            raise
        except StorageFull as err:
            if payload is not None:
                await self._blobs.drop_payloads(payload)
            if exchange is not None:
                exchange.no_room(report.order_id, f"The reducer: {err.message}")
            log.error("no room for a report", child=child, key=str(report.key), error=str(err))
        except RunnelError as err:
            if payload is not None:
                await self._blobs.drop_payloads(payload)
            if exchange is not None:
                # The node can't mend its report; a retry of the round asks its clients again.
                exchange.refused(report.order_id)
            log.warning("report refused", child=child, key=str(report.key), code=err.code, error=str(err))

    async def _joined(self, child: str, members: Iterable[Member]) -> list[Member]:
        """Return those of ``members`` that have joined by the directory under this name, identity and kind.

        A node below can't bring others into the network that were not let in; and of two that had one name, only the
        one that was let in last counts.
        """
        told = list(members)
        async with self._journal.database.read() as tx:
            owners = await access.owners(tx, told)
        strangers = [member.name for member in told if member.name not in owners]
        if strangers:
            log.warning("nodes that have not joined", child=child, names=strangers[:20], number=len(strangers))
        self._owners |= owners
        return [member for member in told if member.name in owners]

    async def _arrived(self, members: list[Member]) -> None:
        if not members:
            return
        async with self._journal.transaction() as tx:
            await access.note_attached(tx.session, members)
            for member in members:
                await tx.record(
                    "node.attached",
                    self._owners.get(member.name, self._organisation),
                    name=member.name,
                    node_kind=member.kind.value,
                    to=self.roster.attached_to(member.name, self.name),
                )
        for member in members:
            for key in member.holding:
                await self._reconcile(member.name, key)
        clients = [member for member in members if member.kind is NodeKind.CLIENT]
        self.tasks.arrived(clients)
        await self._catalogues.arrived(clients)
        for runner in self._runners.values():
            runner.exchanges.arrived([member.name for member in clients])

    async def _left(self, names: list[str]) -> None:
        if not names:
            return
        self.tasks.left(names)
        for runner in self._runners.values():
            runner.roster_changed()
        async with self._journal.transaction() as tx:
            await access.note_seen(tx.session, names)
            for name in names:
                await tx.record("node.left", self._owners.get(name, self._organisation), name=name)

    async def _reconcile(self, client: str, key: AssignmentKey) -> None:
        """Tell a client that holds work from before what became of it, unless it is still wanted."""
        collection = self._collection(key)
        if collection is None:
            async with self._journal.database.read() as tx:
                stored = await ledger.slot_state(tx, key, client)
            if stored == "open" and key.session_id in self._tasks:
                return  # the session is about to open this phase
            verdict = SlotState.LATE if stored is None else SlotState(stored)
            collection = self._collection(key)  # it may have been opened while we looked
        if collection is not None:
            undecided = collection.verdict(client)
            if undecided is None:
                return
            verdict = undecided
        settlement = _SETTLEMENTS.get(verdict, Settlement.LATE)
        for child in self.roster.ways(client):
            self.send(child, Settled(key=key, clients=(client,), settlement=settlement))
        log.info("held work settled", client=client, key=str(key), settlement=settlement.value)

    def _collection(self, key: AssignmentKey) -> Collection | None:
        return runner.collects(key) if (runner := self._runners.get(key.session_id)) else None
