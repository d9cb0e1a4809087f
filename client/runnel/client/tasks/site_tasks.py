"""The runs of tasks at a client: what the network asks, what it is told, and which of them go on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol

import structlog

from runnel.client.audit import AuditLog
from runnel.client.cancellation import is_called_off
from runnel.client.domain.policy import Policy
from runnel.client.tasks.book import Ended, HeldRun, RunBook
from runnel.client.tasks.ends import RunEnds, WayUp
from runnel.client.tasks.failures import failure_of
from runnel.client.tasks.measures import TaskMeasures
from runnel.client.tasks.news import RunNews
from runnel.client.tasks.release import Decision, Decisions, record_decision
from runnel.client.tasks.task_engine import TaskEngine
from runnel.client.tasks.work import Voice
from runnel.common.blobs import in_thread
from runnel.common.crash_points import CrashPoint, reach
from runnel.common.errors import (
    Conflict,
    Expired,
    NoEngine,
    PolicyRefused,
    RunnelError,
    StorageFull,
)
from runnel.common.metrics import Sample
from runnel.common.protocol import RunState, TaskOrder, TaskRelease, TaskSettled

_LOOK_S = 1.0
_ENGINE_AGAIN_S = 30.0
_AGAIN_S = 5.0

log = structlog.get_logger()


class Carrier(Protocol):
    """Carries runs out, as :class:`.runner.TaskRunner` does."""

    async def run(self, held: HeldRun, folder: Path, voice: Voice) -> Ended:
        """Carry out a run that was begun, in the empty ``folder``."""
        ...


class SiteTasks:
    """Holds runs, begins the oldest first, and tells the network until it has settled them; an async context manager.

    Args:
        name: of the client.
        book: of the runs.
        decisions: about results.
        runner: carries them out.
        engine: of containers.
        link: the way up.
        policy: the site's, as it is now.
        audit: the site's log.
        parallel: how many runs may go on at once; 0: this client takes none. Runs that other runs have asked for have
            the same number for themselves, for who asks waits for them.
        measures: what is counted of them.
        clock: the present time.
    """

    def __init__(
        self,
        *,
        name: str,
        book: RunBook,
        decisions: Decisions,
        runner: Carrier,
        engine: TaskEngine,
        link: WayUp,
        policy: Callable[[], Policy],
        audit: AuditLog,
        parallel: int = 2,
        measures: TaskMeasures | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._name = name
        self._book = book
        self._decisions = decisions
        self._runner = runner
        self._engine = engine
        self._link = link
        self.measures = measures or TaskMeasures()
        self._policy = policy
        self._audit = audit
        self._parallel = parallel
        self._clock = clock
        self._news = RunNews(name, link.send, link.offer)
        self._ends = RunEnds(name, book, decisions, link, self._news)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._telling: dict[str, asyncio.Task[None]] = {}
        self._forgetting: set[str] = set()  # what is settled, and still in the book
        self._inbox: asyncio.Queue[TaskOrder | TaskSettled | TaskRelease] = asyncio.Queue()
        self._draining = False
        self._why_none = ""
        self._group = asyncio.TaskGroup()
        self._own: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> SiteTasks:
        await self._group.__aenter__()
        if self._parallel:
            await self._look_for_engine()
        for held in self._book.held():
            if held.result is None:
                self._news.state(held.run_id, RunState.ASSIGNED)
            else:
                self._tell(held)
        self._own = [
            self._group.create_task(work, name=name)
            for name, work in (
                ("task messages", self._take_messages()),
                ("task lines", self._news.run()),
                ("task watch", self._watch()),
            )
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in (*self._own, *self._running.values(), *self._telling.values()):
            task.cancel()
        try:
            await self._group.__aexit__(kind, error, trace)
        finally:
            await self._engine.__aexit__(kind, error, trace)

    # ---- what the client says of itself

    def holding(self) -> tuple[str, ...]:
        """Return the ids of the runs that are held."""
        return tuple(held.run_id for held in self._book.held())

    @property
    def slots(self) -> int:
        """How many runs there is room for at once: without an engine, only where data may be selected out."""
        rules = self._policy().tasks
        return self._parallel if self._engine.is_open or (rules is not None and rules.select) else 0

    @property
    def working(self) -> int:
        """Number of runs that go on."""
        return len(self._running)

    def samples(self) -> list[Sample]:
        """Return what is measured of runs, for Prometheus."""
        return self.measures.samples(self._book.held(), self._running, self.slots)

    # ---- what the client hears

    def received(self, message: TaskOrder | TaskSettled | TaskRelease) -> None:
        """Take a message of the network."""
        self._inbox.put_nowait(message)

    def attached(self) -> None:
        """The client is attached anew: say the newest of all that is held, and push again what is finished."""
        for held in self._book.held():
            if held.result is None or held.reviewed:
                self._news.again(held.run_id)
        self._ends.attached()

    async def drain(self) -> None:
        """Begin nothing any more, and wait until what goes on has ended."""
        self._draining = True
        while self._running:
            await asyncio.wait(self._running.values())

    # ---- messages

    async def _take_messages(self) -> None:
        while True:
            message = await self._inbox.get()
            try:
                await self._take(message)
            except StorageFull as error:
                # Not held, so the network gives it again at the next attachment.
                log.error("no room for a run", run=message.run_id, error=str(error))
            except (RunnelError, OSError) as error:
                log.warning("a message about a run was not taken", run=message.run_id, error=str(error))

    async def _take(self, message: TaskOrder | TaskSettled | TaskRelease) -> None:
        match message:
            case TaskOrder():
                known = self._book.get(message.run_id) is not None
                await in_thread(self._book.take, message, now_ms=self._now_ms())
                reach(CrashPoint.RUN_HELD)
                if known:
                    self._news.again(message.run_id)
                else:
                    log.info("run held", run=message.run_id, task=message.task_id, asker=message.organisation)
                    self._news.state(message.run_id, RunState.ASSIGNED)
                    self._begin()
            case TaskSettled():
                await self._settled(message)
            case TaskRelease():
                await self._remote(message)

    async def _settled(self, message: TaskSettled) -> None:
        run_id = message.run_id
        if self._book.get(run_id) is None:
            return
        log.info("run settled", run=run_id, cancelled=message.cancelled, reason=message.reason)
        self._news.forget(run_id)
        ending = [task for task in (self._running.get(run_id), self._telling.get(run_id)) if task is not None]
        self._forgetting.add(run_id)
        try:
            for task in ending:
                task.cancel()
            if ending:
                await asyncio.wait(ending)
            await in_thread(self._book.drop, run_id)
        finally:
            self._forgetting.discard(run_id)
        self._begin()

    async def _remote(self, message: TaskRelease) -> None:
        held = self._book.get(message.run_id)
        tasks = self._policy().tasks
        allowed = tasks is not None and message.user in tasks.remote_review
        note = {"run": message.run_id, "by": message.user, "remote": True, "reason": message.reason}
        if held is None or not held.reviewed:
            return
        if not allowed:
            log.warning("nobody else decides about results here", run=message.run_id, user=message.user)
            await in_thread(self._audit.append, "results.not_decided", note | {"release": message.release})
            self._news.state(
                message.run_id,
                RunState.AWAITING_RELEASE,
                f"the policy of {self._name} does not let {message.user} decide (remote_review)",
            )
            return
        decision = Decision(release=message.release, by=message.user, at=self._clock(), reason=message.reason)
        with contextlib.suppress(Conflict):  # somebody at the site was faster, and that counts
            await in_thread(record_decision, self._audit, self._decisions, message.run_id, decision, remote=True)

    # ---- running

    def _begin(self) -> None:
        """Begin the oldest runs that there is room for."""
        if self._draining:
            return
        running = [held for run_id in self._running if (held := self._book.get(run_id)) is not None]
        room = {
            sub: self._parallel - sum(bool(held.order.parent_run) is sub for held in running) for sub in (True, False)
        }
        closed = self._policy().closed_until(self._clock())
        for held in self._book.held():
            if held.result is not None or held.run_id in self._running or held.run_id in self._forgetting:
                continue
            sub = bool(held.order.parent_run)
            if self._parallel == 0 or self._is_over(held):
                pass  # it ends at once, and takes no room
            elif closed is not None:
                detail = f"{self._name} works again at {closed:%Y-%m-%d %H:%M} UTC"
                self._news.state(held.run_id, RunState.ASSIGNED, detail)
                continue
            elif room[sub] <= 0:
                continue
            room[sub] -= 1
            self._running[held.run_id] = self._group.create_task(self._do(held), name=f"run {held.run_id}")

    def _is_over(self, held: HeldRun) -> bool:
        expires = held.order.expires_at_ms
        return expires is not None and held.attempt == 0 and self._now_ms() >= expires

    async def _do(self, held: HeldRun) -> None:
        run_id = held.run_id
        try:
            held = await self._kept(held)
        finally:
            self._running.pop(run_id, None)
        self.measures.ended(held)
        self._tell(held)
        self._begin()

    async def _kept(self, held: HeldRun) -> HeldRun:
        """Carry a run out, and keep how it ended.

        Raises:
            CancelledError: it was called off, whatever its clean-up came to.
        """
        run_id = held.run_id
        while True:
            try:
                if self._parallel == 0:
                    refused = PolicyRefused(f"{self._name} takes no tasks.", hint="It runs with --parallel-tasks 0.")
                    return await in_thread(self._book.end, run_id, Ended(failure=failure_of(refused), rejected=True))
                if self._is_over(held):
                    expired = Expired(f"{self._name} could not begin the run before its task expired.")
                    return await in_thread(self._book.end, run_id, Ended(failure=failure_of(expired)))
                held, folder = await in_thread(self._book.begin, run_id)
                self._news.state(run_id, RunState.PREPARING)
                ended = await self._runner.run(held, folder, _Voice(self._news, run_id))
                if is_called_off():
                    log.error("a run was called off; its clean-up failed", run=run_id, failure=str(ended.failure))
                    raise asyncio.CancelledError
                try:
                    return await in_thread(self._book.end, run_id, ended)
                except (StorageFull, OSError) as error:
                    log.error("the results of a run can't be kept", run=run_id, error=str(error))
                    failure = failure_of(error if isinstance(error, RunnelError) else RunnelError(str(error)))
                    return await in_thread(self._book.replace_result, run_id, failure=failure)
            except (StorageFull, OSError) as error:  # not even for a failure
                if is_called_off():
                    raise asyncio.CancelledError from error
                log.error("a run can't be kept; trying again", run=run_id, error=str(error), again_in_s=_AGAIN_S)
                await asyncio.sleep(_AGAIN_S)

    # ---- telling

    def _tell(self, held: HeldRun) -> None:
        task = self._group.create_task(self._ends.tell(held), name=f"end of {held.run_id}")
        self._telling[held.run_id] = task
        task.add_done_callback(lambda _: self._telling.pop(held.run_id, None))

    # ---- what changes with time

    async def _watch(self) -> None:
        looked = time.monotonic()
        self._begin()
        while True:
            await asyncio.sleep(_LOOK_S)
            self._begin()
            if self._parallel and not self._engine.is_open and time.monotonic() - looked > _ENGINE_AGAIN_S:
                looked = time.monotonic()
                if await self._look_for_engine():
                    log.info("attaching anew, to say that tasks are taken")
                    self._link.leave()

    async def _look_for_engine(self) -> bool:
        try:
            await self._engine.open()
        except NoEngine as error:
            if error.message != self._why_none:
                self._why_none = error.message
                log.info("no tasks are taken", reason=error.message)
            return False
        return True

    def _now_ms(self) -> int:
        return int(self._clock().timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class _Voice:
    news: RunNews
    run_id: str

    def state(self, state: RunState, detail: str = "") -> None:
        self.news.state(self.run_id, state, detail)

    def line(self, stream: str, text: str) -> None:
        self.news.line(self.run_id, stream, text)
