"""One session from seed to end: round after round, every transition committed before it is acted on."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from runnel.common.aggregation import weighted_mean_metrics
from runnel.common.crash_points import CrashPoint, reach
from runnel.common.errors import NotEnoughClients, NotFound, RunnelError, StorageFull, Unreachable
from runnel.common.protocol import MOST_WITHIN_BYTES, AssignmentKey, BlobRef, LogLines, Work
from runnel.reducer.domain.collection import Collection, SlotState
from runnel.reducer.domain.selection import select_clients, wanted_updates
from runnel.reducer.domain.values import SessionStatus
from runnel.reducer.engine.exchange import Exchange, Network
from runnel.reducer.engine.exchanges import Exchanges
from runnel.reducer.engine.measures import Measures
from runnel.reducer.engine.position import Position
from runnel.reducer.engine.reduction import Reduction, inputs_here, model_row, optimizer_state_of
from runnel.reducer.engine.retention import Retention
from runnel.reducer.engine.server_rounds import ServerRounds, Stopped
from runnel.reducer.engine.shortage import too_few_updates
from runnel.reducer.engine.spent_payloads import SpentPayloads
from runnel.reducer.engine.transitions import Change, Step, Transitions
from runnel.reducer.server_functions.functions import Beginning, ServerFunctions
from runnel.reducer.store import ledger
from runnel.reducer.store.blobs import Blobs
from runnel.reducer.store.journal import Journal, Transaction
from runnel.reducer.store.tables import ModelRow, RoundRow, SessionRow

log = structlog.get_logger()

# A validation waits so long for clients that are attached nowhere; it changes no model.
MISSING_GRACE_S = 10.0
RETRY_PAUSE_S = 1.0


class _Vanished(Exception):
    """Raised inside the runner when what was just stored is gone: an equal file of elsewhere was given up meanwhile."""


class SessionRunner:
    """Runs one session in one task; events from below change the collection under way and wake it."""

    def __init__(
        self,
        position: Position,
        *,
        network: Network,
        journal: Journal,
        blobs: Blobs,
        partials: Path,
        retention: Retention,
        measures: Measures,
        new_order_id: Callable[[], str],
        functions: ServerFunctions | None,
        say: Callable[[LogLines], None],
    ) -> None:
        self.position = position
        self._network = network
        self._journal = journal
        self._blobs = blobs
        self._partials = partials
        self._buffer_rule = position.buffered
        self._transitions = Transitions(position, journal, retention, measures)
        self._new_order_id = new_order_id
        self._wake = asyncio.Event()
        self._stopping = False
        self._spent = SpentPayloads(blobs)
        self._server = ServerRounds(
            position, functions=functions, journal=journal, retention=retention, say=say, pause=self._pause
        )
        self.exchanges = Exchanges(
            position, network=network, journal=journal, blobs=blobs, new_order_id=new_order_id, wake=self._wake.set
        )

    # ---- events, called on the loop by the engine

    @property
    def session_id(self) -> str:
        """Identity of the session."""
        return self.position.session_id

    def stop(self) -> None:
        """Call the work off and end the session as stopped."""
        self._stopping = True
        self._server.stop()
        self._wake.set()

    def set_rounds(self, rounds: int) -> None:
        """Take over a new number of rounds."""
        self.position.config = dataclasses.replace(self.position.config, rounds=rounds)

    def abandon(self) -> None:
        """Take nothing more from below: this runner has ended, and another may begin where the ledger stands."""
        for exchange in self.exchanges:
            exchange.withdraw("the session goes on from its ledger")

    def roster_changed(self) -> None:
        """Somebody came or went."""
        self._wake.set()

    def child_gone(self, child: str) -> None:
        """A directly attached node detached."""
        for exchange in self.exchanges:
            exchange.child_gone(child)

    def collects(self, key: AssignmentKey) -> Collection | None:
        """Return the collection of this work if it is under way."""
        exchange = self.exchanges.find(key)
        return None if exchange is None else exchange.collection

    # ---- the session

    async def run(self) -> None:
        """Run the session to its end.

        Raises:
            Unreachable: the durable state does not answer; another runner may go on from there later.
            StorageFull: there is no room at the reducer; likewise.
        """
        phases: Mapping[SessionStatus, Callable[[], Coroutine[Any, Any, None]]] = {
            SessionStatus.SEEDED: self._next_round,
            SessionStatus.SELECTING: self._select,
            SessionStatus.TRAINING: self._train if self._buffer_rule is None else self._fill_buffer,
            SessionStatus.REDUCING: self._reduce,
            SessionStatus.VALIDATING: self._validate,
            SessionStatus.COMMITTED: self._next_round,
        }
        try:
            if self._buffer_rule is not None:
                await self.exchanges.take_up_earlier_rounds()
            while not self.position.phase.ended:
                if self._stopping:
                    raise Stopped
                with contextlib.suppress(_Vanished):  # and then once more, from where the phase began
                    await phases[self.position.phase]()
        except Stopped:
            await self._end(SessionStatus.STOPPED, "stopped on request")
        except (Unreachable, StorageFull):
            raise  # the state, or the disk here: no fault of the session, which goes on from where it stands there
        except RunnelError as err:
            log.error("session failed", session_id=self.session_id, error=str(err))
            await self._end(SessionStatus.FAILED, str(err))
        finally:
            self._journal.forget(self.session_id)

    async def _end(self, status: SessionStatus, reason: str | None) -> None:
        spare: list[str] = []

        async def change(tx: Transaction, row: SessionRow) -> Sequence[Step]:
            row.reason = reason
            await ledger.mark_all_late(tx.session, self.session_id)
            drop = ledger.drop_spare if status is SessionStatus.FINISHED else ledger.drop_unmade
            spare[:] = await drop(tx.session, self.session_id, row.round)
            return ()

        await self._close(status, reason or status.value, change, *self.exchanges)
        self._spent.add(*(self._partials / filename for filename in spare))
        await self._spent.drop()

    async def _next_round(self) -> None:
        if self.position.round >= self.position.config.rounds:
            await self._end(SessionStatus.FINISHED, None)
            return
        if self.position.phase is SessionStatus.COMMITTED and (reason := await self._stop_reason()) is not None:
            await self._end(SessionStatus.FINISHED, reason)
            return
        await self._transitions.commit(*self._opening())

    def _following(self, metrics: Mapping[str, float]) -> Sequence[Step]:
        """Return the steps that begin the round after a committed one in the same breath; none if it is not clear."""
        config = self.position.config
        if self._stopping or self.position.round >= config.rounds:
            return ()
        if config.stop_when is not None and config.stop_when.holds(metrics):
            return ()
        return self._opening()

    def _opening(self) -> Sequence[Step]:
        """Return the steps into the next round: as far as its clients, if they are here."""
        number = self.position.round + 1

        async def begin(tx: Transaction, row: SessionRow) -> Sequence[Step]:
            if await self._server.begins(tx, row):
                return ()
            clients = self._draw(number) if self._buffer_rule is None else None
            return () if clients is None else (self._asking(number, clients),)

        return (Step(to=SessionStatus.SELECTING, change=begin),)

    def _asking(self, number: int, clients: Iterable[str], beginning: Beginning | None = None) -> Step:
        async def change(tx: Transaction, _row: SessionRow) -> Sequence[Step]:
            if beginning is not None:
                await self._server.write(tx, number, beginning)
            await ledger.add_slots(tx.session, self._key(Work.TRAIN, number), clients)
            return ()

        return Step(to=SessionStatus.TRAINING, change=change)

    async def _stop_reason(self) -> str | None:
        rule = self.position.config.stop_when
        if rule is None:
            return None
        async with self._journal.database.read(short=True) as tx:
            view = await ledger.one_round(tx, self.session_id, self.position.round)
        if not rule.holds(view.metrics):
            return None
        return f"{rule} reached in round {view.round}: {rule.metric} is {view.metrics[rule.metric]:.6g}"

    async def _select(self) -> None:
        position = self.position
        if self._buffer_rule is not None:
            await self.exchanges.call_off_stale(self._buffer_rule.max_staleness)
        deadline = time.monotonic() + position.config.round_timeout_s
        while (chosen := self._draw(position.round)) is None:
            self.exchanges.show_willing()
            if not await self._woken(deadline):
                attached, aside = len(self._network.clients(position.organisation)), self.exchanges.aside()
                raise NotEnoughClients(
                    f"Round {position.round} could not begin: {attached} clients are attached after"
                    f" {position.config.round_timeout_s:g} s, and the session wants at least"
                    f" {position.config.min_clients}."
                    + "".join(f"\n  {client}: {why}" for client, why in sorted(aside.items())[:5]),
                    hint="Start clients (`runnel client`), look at `runnel node list`, then `runnel session resume`.",
                    session=self.session_id,
                )
        drawn = chosen
        beginning = await self._server.begin(lambda: self._draw(position.round) or drawn)
        if beginning is not None and beginning.clients is not None:
            chosen = list(beginning.clients)
        await self._transitions.commit(self._asking(position.round, chosen, beginning))

    def _draw(self, number: int) -> list[str] | None:
        position = self.position
        attached = self.exchanges.willing()
        return select_clients(position.config, number, attached, position.seed, busy=self.exchanges.busy())

    def _key(self, work: Work, number: int | None = None) -> AssignmentKey:
        return AssignmentKey(session_id=self.session_id, round=number or self.position.round, work=work)

    async def _close(self, to: SessionStatus, reason: str, change: Change, *exchanges: Exchange) -> None:
        """Leave a phase: take nothing more, commit, and only then tell the clients to forget what was not counted."""
        for exchange in exchanges:
            exchange.fence()
        await self._transitions.commit(Step(to=to, change=change))
        for exchange in exchanges:
            self.exchanges.end(exchange, reason)

    async def _train(self) -> None:
        config = self.position.config
        exchange = await self.exchanges.open(self._key(Work.TRAIN))
        collection = exchange.collection
        collection.wanted = wanted_updates(config, len(collection.slots))

        async def woken(until: float) -> None:
            await self._woken(until)
            await self.exchanges.replace_waiting(exchange)

        for attempt in range(config.retries + 1):
            await exchange.collect(woken)
            if collection.counts.counted >= config.min_clients:
                break
            if attempt < config.retries:
                await self._try_again(exchange, attempt)
        else:
            raise await too_few_updates(self._journal.database, config, collection)

        if self._is_brief(exchange):
            exchange.fence()
            self._transitions.defer(Step(to=SessionStatus.REDUCING))
            self.exchanges.end(exchange, "the round is closed")
            return

        async def change(tx: Transaction, _row: SessionRow) -> Sequence[Step]:
            await ledger.mark_late(tx.session, collection.key)
            return ()

        await self._close(SessionStatus.REDUCING, "the round is closed", change, exchange)

    def _is_brief(self, exchange: Exchange) -> bool:
        """Whether nobody is left to be told that the round is closed, and its model is made in next to no time.

        Then the end of the training need not be durable before: a restart finds all updates in the ledger, and is here.
        """
        counts = exchange.collection.counts
        is_small = self.position.model.size_bytes <= MOST_WITHIN_BYTES
        return counts.counted == counts.asked and is_small and exchange.position.server is None

    async def _fill_buffer(self) -> None:
        """Wait for a buffer of updates, of this round or of those before; whoever is at work stays at it."""
        config = self.position.config
        exchange = await self.exchanges.open(self._key(Work.TRAIN))
        for attempt in range(config.retries + 1):
            exchange.begin()
            if await self._buffered(exchange) >= config.min_clients:
                break
            if attempt < config.retries:
                await self._try_again(exchange, attempt)
        else:
            raise await too_few_updates(self._journal.database, config, exchange.collection)
        await self._transitions.commit(Step(to=SessionStatus.REDUCING))

    async def _buffered(self, current: Exchange) -> int:
        """Return the number of updates for this round, once the buffer is full or nobody is left who could answer."""
        while True:
            updates, until = await self.exchanges.look(current)
            if updates >= (self.position.config.buffer or 1) or until is None:
                return updates
            await self._woken(until)

    async def _try_again(self, exchange: Exchange, attempt: int) -> None:
        """Open what failed or is late once more and ask those who came meanwhile; what is counted stays counted."""
        collection = exchange.collection
        counts = collection.counts
        log.warning("round tried again", session_id=self.session_id, round=collection.key.round, attempt=attempt + 1)
        collection.reopen()
        if not exchange.position.selects:
            collection.invite(self._draw(self.position.round) or ())
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
                awaiting=counts.awaiting,
                late=counts.late + counts.open,
            )
        await self._pause(attempt)

    async def _pause(self, attempt: int) -> None:
        """Wait before another try, after the first (0) the least."""
        until = time.monotonic() + RETRY_PAUSE_S * (attempt + 1)
        while await self._woken(until):
            pass

    async def _woken(self, deadline: float) -> bool:
        """Wait for an event; False when ``deadline`` (monotonic seconds) came first."""
        await self._spent.drop()
        if self._stopping:
            raise Stopped
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + max(0.0, deadline - time.monotonic())):
                await self._wake.wait()
        except TimeoutError:
            return False
        finally:
            self._wake.clear()
        if self._stopping:
            raise Stopped
        return True

    async def _reduce(self) -> None:
        position = self.position
        async with self._journal.database.read(short=True) as tx:
            rows = await ledger.partials(tx, self.session_id, position.round)
            counted = await ledger.counted_updates(tx, self.session_id, position.round)
            turn = await self._server.turn(tx)
            earlier = {row.round for row in rows} - {position.round}
            bases = {n: await ledger.base_of_round(tx, self.session_id, n) for n in earlier}
        models = {n: BlobRef(sha256=row.digest, size_bytes=row.size_bytes) for n, row in bases.items()}
        models[position.round] = base = position.model
        state = await optimizer_state_of(self._blobs, position)
        files, folder, superseded = self._blobs.files, self._partials, position.superseded
        reduction = Reduction(blobs=files, folder=folder, base=base, optimizer_state=state, superseded=superseded)
        payloads = [self._partials / row.filename for row in rows]
        async with inputs_here(self._blobs, [position.model, *models.values()], state, payloads):
            by_strategy = functools.partial(
                reduction.run,
                rows,
                strategy=position.config.strategy,
                options=position.config.strategy_options,
                weights={(each.round, each.client): each.weight for each in counted},
                round_number=position.round,
                bases=models,
            )
            made = await self._server.reduced(turn, reduction, rows, counted)
            reduced = await asyncio.to_thread(by_strategy) if made is None else made
        try:
            await self._blobs.keep(*reduced.digests)
        except NotFound as err:
            raise _Vanished from err
        reach(CrashPoint.MODEL_STORED)
        validates, asked_for = self._validates(), self._key(Work.TRAIN)
        model_id = self._new_order_id().replace("ord-", "mod-")

        async def change(tx: Transaction, row: SessionRow) -> Sequence[Step]:
            if not self._blobs.lasts(*reduced.digests):
                raise _Vanished
            current = await tx.session.get_one(RoundRow, (self.session_id, row.round))
            tx.session.add(model_row(model_id, position, current, reduced))
            current.model_id = model_id
            current.train_metrics = weighted_mean_metrics((each.weight, each.metrics) for each in counted)
            await self._server.keep(turn, tx, current, reduced)
            await ledger.drop_partials(tx.session, self.session_id, row.round)
            if validates:
                # Whoever was asked to train, is here now and has nothing else to do is asked to validate.
                counting = {each.client for each in counted}
                trained = counting.union(await ledger.slot_states(tx.session, asked_for))
                idle = trained - self.exchanges.busy() - self.exchanges.aside().keys()
                here = {c for c in idle if self._network.roster.route(c) is not None}
                await ledger.add_slots(tx.session, self._key(Work.VALIDATE), here or counting)
                return ()
            row.model_id = model_id
            return self._following({})

        to = SessionStatus.VALIDATING if validates else SessionStatus.COMMITTED
        await self._transitions.commit(Step(to=to, change=change))
        self._spent.add(*payloads)  # committed above: they are part of the model now
        await self._server.settle(turn)
        position.optimizer_state = reduced.optimizer_state
        position.superseded, position.model_id, position.model = position.model, model_id, reduced.model

    def _validates(self) -> bool:
        every, rounds = self.position.config.validate_every, self.position.config.rounds
        return every > 0 and (self.position.round % every == 0 or self.position.round >= rounds)

    async def _validate(self) -> None:
        exchange = await self.exchanges.open(self._key(Work.VALIDATE))
        await exchange.collect(self._woken, MISSING_GRACE_S)
        key = exchange.collection.key

        async def change(tx: Transaction, row: SessionRow) -> Sequence[Step]:
            await ledger.mark_late(tx.session, key)
            counted = [s for s in await ledger.slots(tx.session, key) if s.state == "counted"]
            current = await tx.session.get_one(RoundRow, (self.session_id, row.round))
            current.metrics = weighted_mean_metrics((s.weight or 0.0, s.metrics) for s in counted)
            row.model_id = current.model_id or row.model_id
            model = await tx.session.get_one(ModelRow, row.model_id)
            model.metrics = current.metrics
            return self._following(current.metrics)

        await self._close(SessionStatus.COMMITTED, "the round is closed", change, exchange)
