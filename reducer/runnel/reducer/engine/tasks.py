"""Tasks between the durable ledger and the clients: runs go out, news come in, time passes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Protocol

import structlog

from runnel.common.crash_points import CrashPoint, reach
from runnel.common.errors import Forbidden, IllegalState, InvalidInput, StorageFull, Unreachable
from runnel.common.ids import new_id
from runnel.common.protocol import (
    ENDED,
    Downward,
    Failure,
    Member,
    RunResult,
    RunState,
    TaskNews,
    TaskRelease,
    TaskSettled,
)
from runnel.reducer.domain.pace import Pace
from runnel.reducer.domain.roster import Roster
from runnel.reducer.domain.tasks import OpenRun, RunBook
from runnel.reducer.engine.endings import Endings
from runnel.reducer.engine.log_writer import LogWriter
from runnel.reducer.engine.retention import Retention
from runnel.reducer.engine.run_measures import RunMeasures
from runnel.reducer.engine.task_clock import TaskClock
from runnel.reducer.store import task_ledger
from runnel.reducer.store.journal import Journal, Transaction
from runnel.reducer.store.tables import RunRow
from runnel.reducer.store.task_ledger import Submission

log = structlog.get_logger()

_NEWS_WAITING = 1000
_NEWS_AT_ONCE = 200
_AGAIN_S = 1.0
_UNDER_WAY_BYTES = 4 << 20
_ORDER_BYTES = 512  # that each takes beside its spec


class Below(Protocol):
    """What tasks need of the nodes below."""

    @property
    def roster(self) -> Roster:
        """Who is attached where."""

    def send(self, child: str, message: Downward) -> None:
        """Send to a directly attached node; of no effect when it is gone."""

    def send_each(self, child: str, messages: Iterable[Downward], number: int) -> None:
        """Send some, at most ``number``, to a directly attached node, each made in its turn; none when it is gone."""


class Tasks:
    """The runs that have not ended, and all that happens to them.

    The ledger decides: whatever changes a run is committed before anybody is told, in the order in which it is
    committed, and an end is for ever. What is held here in memory is made anew at each start.

    Args:
        journal: the durable state.
        network: the nodes below.
        retention: removes files that were given up.
        lines: takes what runs write.
        keep: for how long results are kept; None: for ever.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        network: Below,
        retention: Retention,
        lines: LogWriter,
        keep: timedelta | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.book = RunBook()
        self.endings = Endings()
        self.measures = RunMeasures(self.book, clock=clock)
        self.keep = keep
        self._journal = journal
        self._network = network
        self._lines = lines
        self._news: asyncio.Queue[TaskNews] = asyncio.Queue(_NEWS_WAITING)
        self._look: set[str] = set()  # clients that there may be something for
        self._returned: dict[str, list[str]] = {}  # clients that attached, and what they hold that is not open
        self._to_give = asyncio.Event()
        self._time = TaskClock(journal, self.book, retention=retention, ended=self._ended, clock=clock)
        self._pace = Pace(_UNDER_WAY_BYTES)
        self._held_back: set[str] = set()  # clients below nodes to which much is on its way
        self._details: dict[str, dict[str, str]] = {}  # by task and site, for who watches

    async def open(self) -> None:
        """Take up what has not ended."""
        async with self._journal.database.read() as tx:
            for run in await task_ledger.open_runs(tx):
                self.book.add(run)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take_news(), name="news of runs")
            group.create_task(self._give(), name="orders of runs")
            group.create_task(self._time.run(), name="time of runs")

    # ---- what people want

    async def start(self, wanted: Submission) -> None:
        """Store a task and give it to its sites.

        Raises:
            InvalidInput: a site or a file that it names is not there.
            IllegalState: it is a sub-task of a run that has ended.
        """
        ids = iter(lambda: new_id("run"), "")
        async with self._journal.transaction() as tx:
            if wanted.parent_run:
                await self._require_open(tx, wanted.parent_run)
            runs = await task_ledger.add_task(tx, wanted, ids)
        for run in runs:
            self.book.add(run)
        self._look_at(run.client for run in runs)
        self._time.look()

    @staticmethod
    async def _require_open(tx: Transaction, run_id: str) -> None:
        row = (await task_ledger.runs_by_id(tx.session, [run_id])).get(run_id)
        if row is None or row.finished_at is not None:
            raise IllegalState(f"Run {run_id}, which asks for a sub-task, has ended.", run=run_id)

    async def cancel(self, task_id: str, reason: str) -> None:
        """End what has not ended of a task and its sub-tasks.

        Raises:
            IllegalState: all of it has.
        """
        async with self._journal.transaction() as tx:
            rows = await task_ledger.unfinished(tx.session, task_id)
            if not rows:
                raise IllegalState(f"All runs of task {task_id} have ended already.", task=task_id)
            for row in rows:
                await self._cancel(tx, row, reason)
            rows += await self._cancel_below(tx, rows)
        self._ended(rows)

    async def release(self, run_id: str, *, release: bool, user: str, reason: str, once: bool = False) -> None:
        """Tell the site of a run what somebody decides about its results; the last word before the site's counts.

        Raises:
            IllegalState: the run does not await release, or ``once`` is asked for and somebody decided before.
        """
        async with self._journal.transaction() as tx:
            row = (await task_ledger.runs_by_id(tx.session, [run_id])).get(run_id)
            if row is None or row.state != RunState.AWAITING_RELEASE.value:
                state = "not there" if row is None else row.state
                raise IllegalState(f"Run {run_id} is {state}; only results that await release are decided on.")
            if once and row.released is not None:
                said = "released" if row.released else "kept back"
                raise IllegalState(f"The results of run {run_id} are to be {said} already: {row.released_by} said so.")
            row.released, row.released_by, row.released_why = release, user, reason
            await tx.record(
                "run.release", row.organisation_id, row.task_id, run=row.id, site=row.client, release=release, user=user
            )
        self._tell([task_ledger.release_of(row)])

    # ---- what comes from below

    def arrived(self, members: Iterable[Member]) -> None:
        """Clients attached, or attached anew: each gets what it is to have, and forgets what is over."""
        for member in members:
            self._forget_sent(member.name)
            over = self.book.attached(member.name, held=member.runs, slots=member.task_slots)
            if over or self.book.of_client(member.name):
                self._returned[member.name] = over
                self._look_at([member.name])

    def left(self, names: Iterable[str]) -> None:
        """Nodes are attached nowhere."""
        for name in names:
            self._forget_sent(name)
            self.book.left(name)
            self._pace.gone(name)
        self._go_on()

    def _forget_sent(self, client: str) -> None:
        """What was on its way to a client by where it was has arrived, or never will."""
        for run_id in self.book.given(client):
            self._pace.arrived(run_id)

    async def heard(self, child: str, news: TaskNews) -> None:
        """A client below ``child`` says how far its run is; waits while much is waiting."""
        if child not in self._network.roster.ways(news.client):
            log.warning("news of a client that is elsewhere", child=child, client=news.client, run=news.run_id)
            return
        if news.lines:
            self._lines.add(news)
        self._pace.arrived(news.run_id)
        self._go_on()
        await self._news.put(news)

    def require_push(self, run_id: str, child: str) -> OpenRun:
        """Return the run of which ``child`` pushes a file.

        Raises:
            IllegalState: it has ended.
            Forbidden: its client is not below ``child``.
        """
        run = self.book.find(run_id)
        if run is None:
            raise IllegalState(f"Run {run_id} takes no files: it has ended, or never was.", run=run_id)
        if child not in self._network.roster.ways(run.client):
            raise Forbidden(f"Run {run_id} is not one of {child} or of those below it.", run=run_id, child=child)
        return run

    # ---- news

    async def _take_news(self) -> None:
        while True:
            batch = [await self._news.get()]
            while not self._news.empty() and len(batch) < _NEWS_AT_ONCE:
                batch.append(self._news.get_nowait())
            await self._enter(batch)

    async def _enter(self, batch: Sequence[TaskNews]) -> None:
        """Enter news in the ledger, in one transaction; one that the database refuses does not take others with it."""
        while True:
            try:
                await self._commit(batch)
            except (Unreachable, StorageFull) as error:
                log.warning("news of runs wait", number=len(batch), again_in_s=_AGAIN_S, error=str(error))
                await asyncio.sleep(_AGAIN_S)
                continue
            except Exception:
                if len(batch) == 1:
                    # Whoever said it says it again when it attaches anew.
                    log.exception("news of a run dropped", run=batch[0].run_id, client=batch[0].client)
                    return
                for news in batch:
                    await self._enter([news])
            return

    async def _commit(self, batch: Sequence[TaskNews]) -> None:
        moved: list[RunRow] = []
        over: list[TaskSettled] = []
        sizes: list[int] = []
        async with self._journal.transaction() as tx:
            rows = await task_ledger.runs_by_id(tx.session, (news.run_id for news in batch))
            for news in batch:
                row = rows.get(news.run_id)
                if row is None or row.client != news.client:
                    log.warning("news of a run that is not the client's", client=news.client, run=news.run_id)
                    if row is None:
                        over.append(TaskSettled(run_id=news.run_id, client=news.client, reason="there is no such run"))
                elif RunState(row.state) in ENDED:
                    over.append(_settled(row))
                elif await self._moves(tx, row, news):
                    moved.append(row)
                    sizes += () if news.result is None else (file.blob.size_bytes for file in news.result.files)
            below = await self._cancel_below(tx, [row for row in moved if RunState(row.state) in ENDED])
        if any(RunState(row.state) in ENDED for row in moved):
            reach(CrashPoint.RUN_END_COMMITTED)
        self.measures.gave_out(sizes)
        self._ended([*moved, *below])
        self._tell(over)
        for news in batch:
            row = rows.get(news.run_id)
            if row is not None and row.client == news.client:
                self._show(row, news)

    async def _moves(self, tx: Transaction, row: RunRow, news: TaskNews) -> bool:
        try:
            return await task_ledger.take_news(tx, row, news, keep=self.keep)
        except InvalidInput as error:
            log.warning("news of a run refused", client=news.client, run=news.run_id, error=str(error))
            return False

    def _ended(self, rows: Sequence[RunRow]) -> None:
        """What changed is durable: let the book and the sites know."""
        clients, over = set(), []
        for row in rows:
            state = RunState(row.state)
            self.measures.moved(row)
            self.book.moved(row.id, state)
            if state in ENDED:
                self._pace.arrived(row.id)
                over.append(_settled(row))
                self._forget(row)
                self._time.look()
            clients.add(row.client)
        self._tell(over)
        self.endings.told({row.task_id for row in rows if RunState(row.state) in ENDED})
        self._look_at(clients)

    def _show(self, row: RunRow, news: TaskNews) -> None:
        # Of what came together the last decides: an earlier detail is none of the state that the run is in by now.
        if RunState(row.state) in ENDED or not news.detail or RunState(row.state) is not news.state:
            return
        sites = self._details.setdefault(row.task_id, {})
        told = f"{row.state}: {news.detail}"
        if sites.get(row.client) != told:
            sites[row.client] = told
            self._journal.show(row.task_id, row.organisation_id, {"task": row.task_id, "stages": dict(sites)})

    def _forget(self, row: RunRow) -> None:
        sites = self._details.get(row.task_id, {})
        sites.pop(row.client, None)
        if not sites:
            self._details.pop(row.task_id, None)
            self._journal.forget(row.task_id)

    # ---- ends that nobody below tells

    @staticmethod
    async def _cancel(tx: Transaction, row: RunRow, reason: str) -> None:
        failure = Failure(code="cancelled", message=reason)
        await task_ledger.end(tx, row, RunState.CANCELLED, RunResult(failure=failure, attempt=row.attempt))

    async def _cancel_below(self, tx: Transaction, ended: Sequence[RunRow]) -> list[RunRow]:
        """Cancel what runs that are over had asked for: nobody waits for it any more."""
        cancelled: list[RunRow] = []
        while ended:
            ended = await task_ledger.unfinished_below(tx.session, [row.id for row in ended])
            for row in ended:
                await self._cancel(tx, row, "the run that asked for it is over")
            cancelled += ended
        return cancelled

    # ---- orders

    def _look_at(self, clients: Iterable[str]) -> None:
        self._look.update(clients)
        self._to_give.set()

    async def _give(self) -> None:
        while True:
            await self._to_give.wait()
            self._to_give.clear()
            clients, self._look = self._look, set()
            returned, self._returned = self._returned, {}
            chosen: list[str] = []
            try:
                for client in sorted(clients):
                    if self._is_full(client):
                        self._held_back.add(client)
                        continue
                    given = self.book.give(client)
                    chosen += given
                    await self._order(given)
                await self._tell_returned(returned)
            except Exception as error:  # noqa: BLE001 - whatever it is, the runs are still to be given
                log.warning("orders of runs wait", number=len(chosen), again_in_s=_AGAIN_S, error=str(error))
                self.book.take_back(chosen)
                self._returned = returned | self._returned
                await asyncio.sleep(_AGAIN_S)
                self._look_at(clients)

    def _is_full(self, client: str) -> bool:
        return any(self._pace.full(child) for child in self._network.roster.ways(client))

    def _go_on(self) -> None:
        """Something arrived: look again at those that were held back."""
        if self._held_back:
            waiting, self._held_back = self._held_back, set()
            self._look_at(waiting)

    async def _order(self, run_ids: Sequence[str]) -> None:
        if not run_ids:
            return
        async with self._journal.database.read() as tx:
            orders = await task_ledger.orders(tx, run_ids)
        for order in orders:
            for child in self._network.roster.ways(order.client):
                self._pace.sent(order.run_id, child, len(order.spec) + _ORDER_BYTES)
                self._network.send(child, order)

    async def _tell_returned(self, returned: dict[str, list[str]]) -> None:
        """Tell clients that attached what of what they hold is over, and what was decided about it."""
        held = [run_id for over in returned.values() for run_id in over]
        waiting = [
            run.run_id
            for client in returned
            for run in self.book.of_client(client)
            if run.state is RunState.AWAITING_RELEASE
        ]
        if not (held or waiting):
            return
        async with self._journal.database.read() as tx:
            ended = await task_ledger.runs_by_id(tx, held)
            releases = await task_ledger.releases(tx, waiting)
        told: list[TaskSettled | TaskRelease] = []
        for client, over in returned.items():
            for run_id in over:
                row = ended.get(run_id)
                if row is None or row.client != client:
                    told.append(TaskSettled(run_id=run_id, client=client, reason="there is no such run"))
                elif RunState(row.state) in ENDED:
                    told.append(_settled(row))
        self._tell([*told, *releases])

    def _tell(self, messages: Iterable[TaskSettled | TaskRelease]) -> None:
        together: dict[str, list[Downward]] = {}
        for message in messages:
            for child in self._network.roster.ways(message.client):
                together.setdefault(child, []).append(message)
        for child, its in together.items():
            self._network.send_each(child, its, len(its))


def _settled(row: RunRow) -> TaskSettled:
    cancelled = row.state == RunState.CANCELLED.value
    return TaskSettled(
        run_id=row.id, client=row.client, cancelled=cancelled, reason=(row.error or "") if cancelled else ""
    )
