"""One session from seed to end: round after round, every transition committed before it is acted on."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from runnel.common.aggregation import weighted_mean_metrics
from runnel.common.blobs import BlobStore
from runnel.common.crash_points import CrashPoint, reach
from runnel.common.errors import NotEnoughClients, RunnelError, Unreachable
from runnel.common.protocol import (
    AssignmentKey,
    Work,
)
from runnel.reducer.domain.collection import Collection, SlotState
from runnel.reducer.domain.lifecycle import require_transition
from runnel.reducer.domain.selection import select_clients, wanted_updates
from runnel.reducer.domain.values import SessionStatus
from runnel.reducer.engine.exchange import Exchange, Network
from runnel.reducer.engine.position import Position
from runnel.reducer.engine.reduction import Reduction
from runnel.reducer.store import ledger
from runnel.reducer.store.journal import Journal, Transaction
from runnel.reducer.store.tables import ModelRow, RoundRow, SessionRow

log = structlog.get_logger()

Change = Callable[[Transaction, SessionRow], Coroutine[Any, Any, None]]
"""What is written together with a transition."""

# A validation waits so long for clients that are attached nowhere; it changes no model.
MISSING_GRACE_S = 10.0
RETRY_PAUSE_S = 1.0


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
        self._exchange: Exchange | None = None

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

    def abandon(self) -> None:
        """Take nothing more from below: this runner has ended, and another may begin where the ledger stands."""
        if self._exchange is not None:
            self._exchange.fence()

    def roster_changed(self) -> None:
        """Somebody came or went."""
        self._wake.set()

    def child_gone(self, child: str) -> None:
        """A directly attached node detached."""
        if self._exchange is not None:
            self._exchange.child_gone(child)

    def collects(self, key: AssignmentKey) -> Collection | None:
        """Return the collection of this work if it is under way."""
        collection = None if self._exchange is None else self._exchange.collection
        return collection if collection is not None and collection.key == key else None

    # ---- the session

    async def run(self) -> None:
        """Run the session to its end.

        Raises:
            Unreachable: the durable state does not answer; another runner may go on from there later.
        """
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
        except Unreachable:
            raise  # the state does not answer: no fault of the session, which goes on from where it stands there
        except RunnelError as err:
            log.error("session failed", session_id=self.session_id, error=str(err))
            await self._end(SessionStatus.FAILED, str(err))
        finally:
            self._journal.forget(self.session_id)

    async def _move(self, to: SessionStatus, change: Change | None = None) -> None:
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
                data = dataclasses.asdict(view)
                del data["clients"]
                await tx.record("round.committed", position.organisation, self.session_id, **data)
        position.round, position.history = row.round, (*position.history[-20:], to)
        position.phase_since = now
        if to is SessionStatus.COMMITTED:
            reach(CrashPoint.ROUND_COMMITTED)
        log.info("session phase", session_id=self.session_id, phase=to.value, round=row.round)

    async def _end(self, status: SessionStatus, reason: str | None) -> None:
        async def change(_tx: Transaction, row: SessionRow) -> None:
            row.reason = reason

        await self._close(status, reason or status.value, change)

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
            attached = len(self._network.clients(position.organisation))
            self._journal.show(
                self.session_id,
                position.organisation,
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
        reach(CrashPoint.SLOTS_STORED)

    def _draw(self) -> list[str] | None:
        position = self.position
        return select_clients(
            position.config, position.round, self._network.clients(position.organisation), position.seed
        )

    def _key(self, work: Work) -> AssignmentKey:
        return AssignmentKey(session_id=self.session_id, round=self.position.round, work=work)

    async def _open(self, work: Work, wanted: int | None) -> Exchange:
        """Take over the slots of the present phase as they are stored."""
        collection = Collection(key=self._key(work), wanted=wanted, new_order_id=self._new_order_id)
        async with self._journal.database.read() as tx:
            collection.restore({row.client: SlotState(row.state) for row in await ledger.slots(tx, collection.key)})
        self._exchange = Exchange(
            collection,
            position=self.position,
            network=self._network,
            journal=self._journal,
            blobs=self._blobs,
            wake=self._wake.set,
        )
        return self._exchange

    async def _close(self, to: SessionStatus, reason: str, change: Change) -> None:
        """Leave a phase: take nothing more, commit, and only then tell the clients to forget what was not counted."""
        if self._exchange is not None:
            self._exchange.fence()
        await self._move(to, change)
        if self._exchange is not None:
            self._exchange.call_off(reason)
            self._exchange = None

    async def _train(self) -> None:
        config = self.position.config
        exchange = await self._open(Work.TRAIN, None)
        collection = exchange.collection
        collection.wanted = wanted_updates(config, len(collection.slots))
        for attempt in range(config.retries + 1):
            await exchange.collect(self._woken)
            if collection.counts.counted >= config.min_clients:
                break
            if attempt < config.retries:
                await self._try_again(collection, attempt)
        else:
            raise await self._too_few(collection)

        async def change(tx: Transaction, _row: SessionRow) -> None:
            await ledger.mark_late(tx.session, collection.key)

        await self._close(SessionStatus.REDUCING, "the round is closed", change)

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
                reduction.run,
                rows,
                strategy=position.config.strategy,
                options=position.config.strategy_options,
                weights={s.client: s.weight or 0.0 for s in slots if s.state == "counted"},
            )
        )
        reach(CrashPoint.MODEL_STORED)
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
        exchange = await self._open(Work.VALIDATE, None)
        await exchange.collect(self._woken, MISSING_GRACE_S)
        key = exchange.collection.key

        async def change(tx: Transaction, row: SessionRow) -> None:
            await ledger.mark_late(tx.session, key)
            counted = [s for s in await ledger.slots(tx.session, key) if s.state == "counted"]
            current = await tx.session.get_one(RoundRow, (self.session_id, row.round))
            current.metrics = weighted_mean_metrics((s.weight or 0.0, s.metrics) for s in counted)
            row.model_id = current.model_id or row.model_id
            model = await tx.session.get_one(ModelRow, row.model_id)
            model.metrics = current.metrics

        await self._close(SessionStatus.COMMITTED, "the round is closed", change)
