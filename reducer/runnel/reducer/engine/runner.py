"""One session from seed to end: round after round, every transition committed before it is acted on."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import structlog

from runnel.common.aggregation import weighted_mean_metrics
from runnel.common.blobs import BlobStore
from runnel.common.errors import IllegalState, NotEnoughClients, RunnelError
from runnel.common.protocol import (
    Assignment,
    AssignmentKey,
    BlobRef,
    Cancel,
    Close,
    Downward,
    PayloadKind,
    Progress,
    Released,
    Report,
    Settled,
    Settlement,
    Work,
)
from runnel.reducer.domain.collection import Collection, Order, SlotState
from runnel.reducer.domain.lifecycle import require_transition
from runnel.reducer.domain.roster import Roster
from runnel.reducer.domain.selection import select_clients
from runnel.reducer.domain.values import RoundView, SessionConfig, SessionStatus
from runnel.reducer.engine.reduction import Reduction, check_payload
from runnel.reducer.store import ledger
from runnel.reducer.store.journal import Journal, Transaction
from runnel.reducer.store.tables import ModelRow, PackageRow, RoundRow, SessionRow

log = structlog.get_logger()

# A validation waits so long for clients that are attached nowhere; it changes no model.
MISSING_GRACE_S = 10.0
RETRY_PAUSE_S = 1.0


class Network(Protocol):
    """What a session needs of the nodes below."""

    @property
    def roster(self) -> Roster:
        """Who is attached where."""

    def send(self, child: str, message: Downward) -> None:
        """Send to a directly attached node; of no effect when it is gone."""

    def register(self, order: Order, runner: SessionRunner) -> None:
        """Route what comes up for this order to ``runner``."""

    def unregister(self, order_ids: Iterable[str]) -> None:
        """Refuse what still comes up for these orders."""


@dataclass(slots=True, kw_only=True)
class Position:
    """Where the session is; a copy of its row, kept up by the runner alone."""

    session_id: str
    organisation: str
    config: SessionConfig
    seed: int
    package: BlobRef
    model_id: str
    model: BlobRef
    optimizer_state: str | None
    round: int
    history: tuple[SessionStatus, ...]
    phase_since: float = field(default_factory=time.monotonic)

    @property
    def phase(self) -> SessionStatus:
        """The present phase."""
        return self.history[-1]


class _Stopped(Exception):
    """Raised inside the runner when the session is to stop."""


class SessionRunner:
    """Runs one session in one task; events from below change the collection under way and wake it."""

    def __init__(
        self,
        position: Position,
        *,
        network: Network,
        journal: Journal,
        blobs: BlobStore,
        partials: Path,
        new_order_id: Callable[[], str],
    ) -> None:
        self.position = position
        self._network = network
        self._journal = journal
        self._blobs = blobs
        self._partials = partials
        self._new_order_id = new_order_id
        self._wake = asyncio.Event()
        self._stopping = False
        self._collection: Collection | None = None
        self._stages: dict[str, str] = {}

    # ---- events, called on the loop by the engine

    @property
    def session_id(self) -> str:
        """Identity of the session."""
        return self.position.session_id

    def stop(self) -> None:
        """Call the work off and end the session as stopped."""
        self._stopping = True
        self._wake.set()

    def set_rounds(self, rounds: int) -> None:
        """Take over a new number of rounds."""
        self.position.config = dataclasses.replace(self.position.config, rounds=rounds)

    def order_refused(self, order_id: str) -> None:
        """The report of an order can't be used: give the order up, and count its clients as failed here."""
        collection = self._collection
        order = None if collection is None else collection.orders.pop(order_id, None)
        if collection is not None and order is not None:
            collection.refused(order)
            self._network.unregister([order_id])
        self._wake.set()

    def roster_changed(self) -> None:
        """Somebody came or went."""
        self._wake.set()

    def child_gone(self, child: str) -> None:
        """A directly attached node detached."""
        if self._collection is not None:
            self._network.unregister(order.order_id for order in self._collection.child_gone(child))
        self._wake.set()

    def progressed(self, progress: Progress) -> None:
        """A node below tells how far a client is."""
        collection = self._collection
        if collection is None or progress.key != collection.key:
            return
        collection.progressed(progress.order_id, progress.client, progress.stage)
        self._stages[progress.client] = progress.detail or progress.stage.value
        self._show()
        self._wake.set()

    def released(self, child: str, released: Released) -> None:
        """A node below gives up clients of an order."""
        if self._collection is not None and (order := self._collection.orders.get(released.order_id)):
            if order.child == child:
                self._collection.released(released.order_id, released.clients)
            self._wake.set()

    def state_of(self, key: AssignmentKey, client: str) -> SlotState | None:
        """Return how the slot stands if it is of the phase under way, else None."""
        if self._collection is None or self._collection.key != key:
            return None
        slot = self._collection.slots.get(client)
        return SlotState.LATE if slot is None else slot.state

    def require_order(self, order_id: str, child: str) -> None:
        """Raise :class:`IllegalState` unless the order is living and of ``child``."""
        if self._collection is None:
            raise IllegalState(f"Order {order_id} is closed.", order_id=order_id, child=child)
        self._collection.require_order(order_id, child)

    async def report(self, child: str, report: Report, payload: Path | None) -> None:
        """Check a report, make it durable, settle it with those below.

        Raises:
            RunnelError: it is refused; the clients keep their copies and are asked again, or it was theirs that is bad.
        """
        collection = self._collection
        if collection is None or collection.key != report.key:
            raise IllegalState(f"{report.key} is over; the report of {child} is too late.", order_id=report.order_id)
        collection.require_order(report.order_id, child)
        report = await check_payload(report, child, payload, self._blobs.path(self.position.model))
        counted = [o.client for o in report.outcomes if o.failure is None]
        failed = [o.client for o in report.outcomes if o.failure is not None]
        taken = False
        try:
            late, taken = await self._enter(collection, report, child, payload), True
        finally:
            if not taken:
                collection.unreported(report.order_id)
        self._network.unregister([report.order_id])
        self.settle(report.key, counted, Settlement.COUNTED)
        self.settle(report.key, failed, Settlement.DISCARDED)
        for outcome in report.outcomes:
            self._stages[outcome.client] = "failed" if outcome.failure else "counted"
        log.debug("report", key=str(report.key), child=child, counted=len(counted), failed=len(failed), late=len(late))
        self._show()
        self._wake.set()

    async def _enter(self, collection: Collection, report: Report, child: str, payload: Path | None) -> list[str]:
        """Write a report into the ledger; the clients that it left out are late."""
        counted = [o.client for o in report.outcomes if o.failure is None]
        failed = {o.client: o.failure for o in report.outcomes if o.failure is not None}
        async with self._journal.transaction() as tx:
            await ledger.note_outcomes(tx.session, report.key, report.order_id, report.outcomes)
            if payload is not None and report.payload_kind is not PayloadKind.NONE:
                await ledger.add_partial(tx.session, report, child, payload.name)
            for client, failure in failed.items():
                await tx.record(
                    "client.failed",
                    self.position.organisation,
                    self.session_id,
                    client=client,
                    round=report.key.round,
                    work=report.key.work.value,
                    code=failure.code,
                    message=failure.message,
                )
            await tx.session.flush()
            # Last before the commit: the order may have died meanwhile, then this refuses and nothing is written.
            return collection.reported(report.order_id, child, counted, list(failed))

    # ---- sending

    def settle(self, key: AssignmentKey, clients: Iterable[str], settlement: Settlement) -> None:
        """Tell clients, wherever they are attached now, that they may forget their copy."""
        for child, names in self._by_route(clients).items():
            self._network.send(child, Settled(key=key, clients=names, settlement=settlement))

    def _by_route(self, clients: Iterable[str]) -> dict[str, tuple[str, ...]]:
        routes: dict[str, list[str]] = {}
        for client in clients:
            if (child := self._network.roster.route(client)) is not None:
                routes.setdefault(child, []).append(client)
        return {child: tuple(names) for child, names in routes.items()}

    def _place(self, collection: Collection, remaining_s: float) -> None:
        position = self.position
        for order in collection.place(self._network.roster.route):
            self._network.register(order, self)
            self._network.send(
                order.child,
                Assignment(
                    order_id=order.order_id,
                    key=collection.key,
                    clients=tuple(sorted(order.clients)),
                    package=position.package,
                    model=position.model,
                    client_settings=_settings_text(position.config.client_settings),
                    remaining_s=remaining_s,
                ),
            )

    def _call_off(self, collection: Collection, reason: str) -> None:
        """Fence what is still out, and tell the clients to stop."""
        for order in collection.orders.values():
            self._network.send(order.child, Cancel(order_id=order.order_id, reason=reason))
        self._network.unregister(list(collection.orders))
        collection.orders.clear()
        left = collection.clients_in(*(set(SlotState) - {SlotState.COUNTED}))
        for child, names in self._by_route(left).items():
            self._network.send(child, Cancel(key=collection.key, clients=names, reason=reason))

    def _show(self) -> None:
        if self._collection is None:
            return
        counts = self._collection.counts
        self._journal.show(
            self.session_id,
            {
                "round": self._collection.key.round,
                "work": self._collection.key.work.value,
                "asked": counts.asked,
                "counted": counts.counted + counts.noted,
                "failed": counts.failed,
                "stages": dict(self._stages),
            },
        )

    # ---- the session

    async def run(self) -> None:
        """Run the session to its end."""
        phases: Mapping[SessionStatus, Callable[[], Coroutine[Any, Any, None]]] = {
            SessionStatus.SEEDED: self._next_round,
            SessionStatus.SELECTING: self._select,
            SessionStatus.TRAINING: self._train,
            SessionStatus.REDUCING: self._reduce,
            SessionStatus.VALIDATING: self._validate,
            SessionStatus.COMMITTED: self._next_round,
        }
        try:
            while not self.position.phase.ended:
                if self._stopping:
                    raise _Stopped
                await phases[self.position.phase]()
        except _Stopped:
            await self._end(SessionStatus.STOPPED, "stopped on request")
        except RunnelError as err:
            log.error("session failed", session_id=self.session_id, error=str(err))
            await self._end(SessionStatus.FAILED, str(err))
        finally:
            self._journal.forget(self.session_id)

    async def _move(
        self, to: SessionStatus, change: Callable[[Transaction, SessionRow], Coroutine[Any, Any, None]] | None = None
    ) -> None:
        """Commit a transition with all that belongs to it."""
        position = self.position
        require_transition(self.session_id, position.history, to)
        now = time.monotonic()
        async with self._journal.transaction() as tx:
            row = await ledger.require_session(tx.session, self.session_id)
            if change is not None:
                await change(tx, row)
            current = await tx.session.get(RoundRow, (self.session_id, row.round))
            if current is not None and not to.ended:
                if position.phase is not SessionStatus.COMMITTED:
                    name = position.phase.value
                    current.phases = {
                        **current.phases,
                        name: current.phases.get(name, 0.0) + now - position.phase_since,
                    }
                if to is SessionStatus.COMMITTED:
                    current.seconds = (datetime.now(UTC) - current.started_at).total_seconds()
                if to is not SessionStatus.FINISHED:
                    current.status = to.value
            row.phase = to.value
            if to.ended:
                row.finished_at = datetime.now(UTC)
                await tx.record(
                    "session.ended", position.organisation, self.session_id, status=to.value, reason=row.reason
                )
            else:
                await tx.record(
                    "session.phase", position.organisation, self.session_id, phase=to.value, round=row.round
                )
            if to is SessionStatus.COMMITTED:
                await tx.session.flush()
                view = await ledger.one_round(tx.session, self.session_id, row.round)
                await tx.record("round.committed", position.organisation, self.session_id, **round_json(view))
        position.round, position.history = row.round, (*position.history[-20:], to)
        position.phase_since = now
        log.info("session phase", session_id=self.session_id, phase=to.value, round=row.round)

    async def _end(self, status: SessionStatus, reason: str | None) -> None:
        if self._collection is not None:
            self._call_off(self._collection, reason or status.value)
            self._collection = None

        async def change(_tx: Transaction, row: SessionRow) -> None:
            row.reason = reason

        await self._move(status, change)

    async def _next_round(self) -> None:
        if self.position.round >= self.position.config.rounds:
            await self._end(SessionStatus.FINISHED, None)
            return
        if self.position.phase is SessionStatus.COMMITTED and (reason := await self._stop_reason()) is not None:
            await self._end(SessionStatus.FINISHED, reason)
            return

        async def change(tx: Transaction, row: SessionRow) -> None:
            row.round += 1
            await ledger.begin_round_anew(tx.session, self.session_id, row.round)
            tx.session.add(
                RoundRow(
                    session_id=self.session_id,
                    number=row.round,
                    status=SessionStatus.SELECTING.value,
                    started_at=datetime.now(UTC),
                    phases={},
                )
            )

        await self._move(SessionStatus.SELECTING, change)

    async def _stop_reason(self) -> str | None:
        rule = self.position.config.stop_when
        if rule is None:
            return None
        async with self._journal.database.read() as tx:
            view = await ledger.one_round(tx, self.session_id, self.position.round)
        if not rule.holds(view.metrics):
            return None
        return f"{rule} reached in round {view.round}: {rule.metric} is {view.metrics[rule.metric]:.6g}"

    async def _select(self) -> None:
        position = self.position
        deadline = time.monotonic() + position.config.round_timeout_s
        while (chosen := self._draw()) is None:
            attached = len(self._network.roster.clients())
            self._journal.show(
                self.session_id,
                {
                    "round": position.round,
                    "work": "select",
                    "asked": position.config.min_clients,
                    "counted": attached,
                    "failed": 0,
                    "stages": {},
                },
            )
            if not await self._woken(deadline):
                raise NotEnoughClients(
                    f"Round {position.round} could not begin: {attached} clients are attached after"
                    f" {position.config.round_timeout_s:g} s, and the session wants at least"
                    f" {position.config.min_clients}.",
                    hint="Start clients (`runnel client`), look at `runnel node list`, then `runnel session resume`.",
                    session=self.session_id,
                )
        clients = chosen

        async def change(tx: Transaction, _row: SessionRow) -> None:
            await ledger.open_slots(tx.session, self._key(Work.TRAIN), clients)

        await self._move(SessionStatus.TRAINING, change)

    def _draw(self) -> list[str] | None:
        return select_clients(
            self.position.config, self.position.round, self._network.roster.clients(), self.position.seed
        )

    def _key(self, work: Work) -> AssignmentKey:
        return AssignmentKey(session_id=self.session_id, round=self.position.round, work=work)

    async def _open(self, work: Work, wanted: int | None) -> Collection:
        """Take over the slots of the present phase as they are stored."""
        collection = Collection(key=self._key(work), wanted=wanted, new_order_id=self._new_order_id)
        async with self._journal.database.read() as tx:
            collection.restore({row.client: SlotState(row.state) for row in await ledger.slots(tx, collection.key)})
        self._collection, self._stages = collection, {}
        return collection

    async def _train(self) -> None:
        config = self.position.config
        collection = await self._open(Work.TRAIN, config.buffer)
        for attempt in range(config.retries + 1):
            await self._collect(collection)
            if collection.counts.counted >= config.min_clients:
                break
            if attempt < config.retries:
                await self._try_again(collection, attempt)
        else:
            raise await self._too_few(collection)
        self._call_off(collection, "the round is closed")
        self._collection = None

        async def change(tx: Transaction, _row: SessionRow) -> None:
            await ledger.mark_late(tx.session, collection.key)

        await self._move(SessionStatus.REDUCING, change)

    async def _try_again(self, collection: Collection, attempt: int) -> None:
        """Open what failed or is late once more and ask those who came meanwhile; what is counted stays counted."""
        counts = collection.counts
        log.warning("round tried again", session_id=self.session_id, round=collection.key.round, attempt=attempt + 1)
        collection.reopen()
        collection.invite(self._draw() or ())
        async with self._journal.transaction() as tx:
            await ledger.open_slots(tx.session, collection.key, collection.clients_in(SlotState.OPEN))
            await tx.record(
                "round.retried",
                self.position.organisation,
                self.session_id,
                round=collection.key.round,
                attempt=attempt + 1,
                counted=counts.counted,
                failed=counts.failed,
                late=counts.late + counts.open,
            )
        pause = time.monotonic() + RETRY_PAUSE_S * (attempt + 1)
        while await self._woken(pause):
            pass

    async def _too_few(self, collection: Collection) -> NotEnoughClients:
        async with self._journal.database.read() as tx:
            rows = await ledger.slots(tx, collection.key)
        counts = collection.counts
        failures = [f"{row.client}: {(row.error or '').splitlines()[0][:200]}" for row in rows if row.error]
        attempts = self.position.config.retries + 1
        return NotEnoughClients(
            f"Round {collection.key.round} has {counts.counted} of at least {self.position.config.min_clients} updates"
            f" after {attempts} {'attempt' if attempts == 1 else 'attempts'}"
            f" ({counts.failed} failed, {counts.late + counts.open} did not answer)."
            + ("".join(f"\n  {line}" for line in failures[:5])),
            hint=f"See `runnel session logs {self.session_id}`, then `runnel session resume {self.session_id}`.",
            session=self.session_id,
        )

    async def _collect(self, collection: Collection, missing_grace_s: float | None = None) -> None:
        """Ask, and wait until the phase is closed and all its reports are in."""
        timeout_s = self.position.config.round_timeout_s
        deadline = time.monotonic() + timeout_s
        hard_deadline = deadline + timeout_s
        missing_since: float | None = None
        while True:
            now = time.monotonic()
            closed = collection.enough or now >= deadline
            if closed:
                for order in collection.close():
                    self._network.send(order.child, Close(order_id=order.order_id))
            else:
                self._place(collection, deadline - now)
            if collection.answered or (closed and not collection.orders):
                return
            until = deadline if now < deadline else hard_deadline
            if missing_grace_s is not None and collection.only_missing_left:
                missing_since = missing_since or now
                if now >= missing_since + missing_grace_s:
                    return
                until = min(until, missing_since + missing_grace_s)
            else:
                missing_since = None
            if now >= hard_deadline:
                self._fence(collection)
                return
            await self._woken(until)

    def _fence(self, collection: Collection) -> None:
        """Give up orders that were told to report and did not, though their node is attached."""
        for order in list(collection.orders.values()):
            log.error("order given up", session_id=self.session_id, order_id=order.order_id, child=order.child)
            self._network.send(order.child, Cancel(order_id=order.order_id, reason="no report after it was closed"))
            self._network.unregister(o.order_id for o in collection.child_gone(order.child))

    async def _woken(self, deadline: float) -> bool:
        """Wait for an event; False when ``deadline`` (monotonic seconds) came first."""
        if self._stopping:
            raise _Stopped
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + max(0.0, deadline - time.monotonic())):
                await self._wake.wait()
        except TimeoutError:
            return False
        finally:
            self._wake.clear()
        if self._stopping:
            raise _Stopped
        return True

    async def _reduce(self) -> None:
        position = self.position
        async with self._journal.database.read() as tx:
            rows = await ledger.partials(tx, self.session_id, position.round)
            slots = await ledger.slots(tx, self._key(Work.TRAIN))
        reduction = Reduction(
            blobs=self._blobs, folder=self._partials, base=position.model, optimizer_state=position.optimizer_state
        )
        reduced = await asyncio.to_thread(
            functools.partial(
                reduction.run, rows, strategy=position.config.strategy, options=position.config.strategy_options
            )
        )
        counted = [s for s in slots if s.state == "counted"]
        validates = self._validates()
        model_id = self._new_order_id().replace("ord-", "mod-")

        async def change(tx: Transaction, row: SessionRow) -> None:
            tx.session.add(
                ModelRow(
                    id=model_id,
                    organisation_id=position.organisation,
                    digest=reduced.model.sha256,
                    size_bytes=reduced.model.size_bytes,
                    format="npz",
                    n_params=reduced.n_params,
                    tensors=reduced.tensors,
                    parent_id=position.model_id,
                    session_id=self.session_id,
                    round=row.round,
                    package_digest=position.package.sha256,
                    strategy=position.config.strategy,
                    optimizer_state=reduced.optimizer_state,
                    metrics={},
                    created_at=datetime.now(UTC),
                )
            )
            current = await tx.session.get_one(RoundRow, (self.session_id, row.round))
            current.model_id = model_id
            current.train_metrics = weighted_mean_metrics((s.weight or 0.0, s.metrics) for s in counted)
            await ledger.drop_partials(tx.session, self.session_id)
            if validates:
                # Whoever was asked to train and is here now is asked to validate.
                attached = [s.client for s in slots if self._network.roster.route(s.client) is not None]
                asked = attached or [s.client for s in counted]
                await ledger.open_slots(tx.session, self._key(Work.VALIDATE), asked)
            else:
                row.model_id = model_id

        await self._move(SessionStatus.VALIDATING if validates else SessionStatus.COMMITTED, change)
        for partial in rows:
            # Committed above: the payloads are part of the model now. A file that stays is removed at the next start.
            with contextlib.suppress(OSError):
                (self._partials / partial.filename).unlink()
        position.optimizer_state = reduced.optimizer_state
        position.model_id, position.model = model_id, reduced.model

    def _validates(self) -> bool:
        every, rounds = self.position.config.validate_every, self.position.config.rounds
        return every > 0 and (self.position.round % every == 0 or self.position.round >= rounds)

    async def _validate(self) -> None:
        collection = await self._open(Work.VALIDATE, None)
        await self._collect(collection, MISSING_GRACE_S)
        self._call_off(collection, "the round is closed")
        self._collection = None

        async def change(tx: Transaction, row: SessionRow) -> None:
            await ledger.mark_late(tx.session, collection.key)
            counted = [s for s in await ledger.slots(tx.session, collection.key) if s.state == "counted"]
            current = await tx.session.get_one(RoundRow, (self.session_id, row.round))
            current.metrics = weighted_mean_metrics((s.weight or 0.0, s.metrics) for s in counted)
            row.model_id = current.model_id or row.model_id
            model = await tx.session.get_one(ModelRow, row.model_id)
            model.metrics = current.metrics

        await self._move(SessionStatus.COMMITTED, change)


def round_json(view: RoundView) -> dict[str, Any]:
    """Return a round as the JSON that people see."""
    return {
        "round": view.round,
        "seconds": view.seconds,
        "phases": dict(view.phases),
        "updates": view.updates,
        "late": view.late,
        "failed": view.failed,
        "model": view.model,
        "metrics": dict(view.metrics),
        "train_metrics": dict(view.train_metrics),
    }


def _settings_text(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


async def position_of(tx: Any, session_id: str) -> Position:
    """Read where a session is; ``tx`` is an open database session."""
    row = await ledger.require_session(tx, session_id)
    model_id = row.model_id
    current = await tx.get(RoundRow, (session_id, row.round))
    if row.phase == SessionStatus.VALIDATING.value and current is not None and current.model_id is not None:
        model_id = current.model_id
    model = await tx.get_one(ModelRow, model_id)
    package = await tx.get_one(PackageRow, row.package_digest)
    return Position(
        session_id=row.id,
        organisation=row.organisation_id,
        config=ledger.config_from_json(row.config),
        seed=row.seed,
        package=BlobRef(sha256=package.digest, size_bytes=package.size_bytes),
        model_id=model.id,
        model=BlobRef(sha256=model.digest, size_bytes=model.size_bytes),
        optimizer_state=model.optimizer_state,
        round=row.round,
        history=(SessionStatus(row.phase),),
    )
