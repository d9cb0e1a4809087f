"""The client: attached to the network, doing what it is asked beside its data."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import platform
import shutil
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType

import structlog

from runnel.client.compressor import Compressor
from runnel.client.deadlines import Deadlines
from runnel.client.delivery import Delivery
from runnel.client.domain.jobs import Abort, Decision, Forget, JobBook, JobState, Offer, Start
from runnel.client.execution import Execution, Site
from runnel.client.gate import Gate
from runnel.client.log_stream import LogStream
from runnel.client.model_cache import ModelCache
from runnel.client.outbox import Outbox
from runnel.client.package_cache import PackageCache
from runnel.client.runtimes import Runtime
from runnel.client.tasks.site_tasks import SiteTasks
from runnel.common.blobs import Spares, in_thread
from runnel.common.catalogue import Catalogue
from runnel.common.crash_points import CrashPoint, reach
from runnel.common.metrics import Sample, Tally
from runnel.common.protocol import (
    Assignment,
    AssignmentKey,
    BlobRef,
    Cancel,
    CatalogueNews,
    CatalogueWanted,
    Downward,
    Hello,
    Member,
    NodeKind,
    Progress,
    Settled,
    Settlement,
    Stage,
    TaskOrder,
    TaskRelease,
    TaskSettled,
)
from runnel.transport import Attached, Detached, Received, UplinkLink

log = structlog.get_logger()

_FETCH_DEADLINE_S = 3600.0
_LOOK_AGAIN_S = 1.0


class ClientAgent:
    """A site's agent; an async context manager around :meth:`run`.

    Args:
        name: of this client.
        node_id: its identity.
        state: its folder: package cache, models, finished reports.
        link_factory: makes the way up, given what returns the hello.
        runtime: runs entry points.
        gate: lets packages in.
        databases: name to path, shown to entry points.
        variables: further variables that entry points see.
        parallel: how many pieces of work may run at once.
        run_timeout_s: the site's own limit for one run of an entry point; None: only the network's.
        tasks: makes what holds the runs of tasks, given the way up; None: this client takes none.
        catalogue: what is published of its data; None: nothing.
        on_attachment: is told the name of the node to which it attached, and the empty name when that is over.
    """

    def __init__(
        self,
        *,
        name: str,
        node_id: str,
        version: str,
        state: Path,
        link_factory: Callable[[Callable[[], Hello]], UplinkLink],
        runtime: Runtime,
        gate: Gate,
        databases: Mapping[str, Path | str],
        variables: Mapping[str, str],
        parallel: int = 1,
        run_timeout_s: float | None = None,
        tasks: Callable[[UplinkLink], SiteTasks] | None = None,
        catalogue: Catalogue | None = None,
        on_attachment: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self._name = name
        self._on_attachment = on_attachment
        self._catalogue = catalogue.as_json() if catalogue is not None and catalogue.datasets else ""
        self._node_id = node_id
        self._version = version
        self._gate = gate
        self._work = state / "work"
        self._outbox = Outbox(state / "outbox")
        self._compressor = Compressor(state / "leftovers", self._outbox)
        self._alone = parallel == 1
        self._book = JobBook(parallel=parallel, held=self._outbox.held())
        self._link = link_factory(self.hello)
        self._tasks = None if tasks is None else tasks(self._link)
        self.work = Tally()  # by work and outcome
        self.settlements = Tally(*((each.value,) for each in Settlement))
        self._logs = LogStream(name, self._link.send)
        self._deadlines = Deadlines()
        self._execution = Execution(
            site=Site(name=name, databases=databases, variables=variables, run_timeout_s=run_timeout_s),
            runtime=runtime,
            packages=PackageCache(state / "packages", self._fetch, runtime),
            gate=gate,
            models=ModelCache(state / "models", self._fetch_model),
            compressor=self._compressor,
            spent=self._outbox.spares,
            deadlines=self._deadlines,
            tell=self._tell,
            cleared=self._cleared,
            alone=self._alone,
        )
        self._delivery = Delivery(name, self._outbox, self._book, self._link)
        self._running: dict[AssignmentKey, asyncio.Task[None]] = {}
        self._offers: dict[AssignmentKey, asyncio.Task[None]] = {}
        self._clearing: dict[AssignmentKey, asyncio.Task[None]] = {}
        self._aborted: set[asyncio.Task[None]] = set()  # work that was called off and is not at its end yet
        self._group = asyncio.TaskGroup()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> ClientAgent:
        await asyncio.to_thread(shutil.rmtree, self._work, ignore_errors=True)
        await asyncio.to_thread(self._work.mkdir, parents=True)
        await self._group.__aenter__()
        if self._tasks is not None:
            await self._stack.enter_async_context(self._tasks)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        under_way = [*self._running.values(), *self._offers.values()]
        for task in under_way:
            task.cancel()
        if isinstance(error, asyncio.CancelledError):
            # To end at once: a run that is cancelled again gets no time between being asked to end and being killed.
            await asyncio.sleep(0)
            for task in under_way:
                task.cancel()
        try:
            await self._stack.aclose()
        finally:
            await self._group.__aexit__(kind, error, trace)

    def hello(self) -> Hello:
        """Return who this is and what it still holds."""
        member = Member(
            name=self._name,
            node_id=self._node_id,
            kind=NodeKind.CLIENT,
            version=self._version,
            platform=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            holding=self._book.holding(),
            runs=() if self._tasks is None else self._tasks.holding(),
            task_slots=0 if self._tasks is None else self._tasks.slots,
            catalogue=hashlib.sha256(self._catalogue.encode()).hexdigest() if self._catalogue else "",
        )
        return Hello(member=member)

    async def run(self) -> None:
        """Stay attached and work until cancelled.

        Raises:
            Unauthenticated, Forbidden, Conflict: the network does not want this client.
        """
        logs = self._group.create_task(self._logs.run(), name="logs")
        gate = self._group.create_task(self._watch_gate(), name="gate")
        try:
            async with self._link:
                async for event in self._link:
                    match event:
                        case Attached():
                            log.info("attached", to=event.via, address=event.address)
                            await self._attachment(event.via)
                            self._logs.flush()
                            if self._tasks is not None:
                                self._tasks.attached()
                            if self._book.untold:
                                log.info("attaching anew, to tell of work that was begun meanwhile")
                                self._link.leave()
                        case Received(message=message):
                            self._received(message)
                        case Detached(reason=reason):
                            log.warning("detached; work goes on", reason=reason)
                            await self._attachment("")
                            self._book.detached()
        finally:
            logs.cancel()
            gate.cancel()

    async def _watch_gate(self) -> None:
        """Attach anew when the site takes what it did not take before: then the network asks again."""
        while True:
            await asyncio.sleep(_LOOK_AGAIN_S)
            if await self._gate.changed():
                log.info("attaching anew, to be asked again for what the site did not take before")
                self._link.leave()

    async def _attachment(self, via: str) -> None:
        if self._on_attachment is not None:
            await self._on_attachment(via)

    async def drain(self) -> None:
        """Begin nothing any more, and wait until what runs has ended and what is finished was offered."""
        self._book.drain()
        async with asyncio.TaskGroup() as group:
            if self._tasks is not None:
                group.create_task(self._tasks.drain(), name="drain tasks")
            while under_way := [*self._running.values(), *self._offers.values()]:
                await asyncio.wait(under_way)
        self._logs.flush()

    @property
    def working(self) -> int:
        """Number of pieces of work, and of runs of tasks, that go on."""
        return len(self._running) + (0 if self._tasks is None else self._tasks.working)

    def task_samples(self) -> list[Sample]:
        """Return what is measured of the runs of tasks, for Prometheus."""
        return [] if self._tasks is None else self._tasks.samples()

    @property
    def link(self) -> UplinkLink:
        """The way up."""
        return self._link

    @property
    def job_states(self) -> list[JobState]:
        """Where each piece of work is that is under way or held."""
        return [job.state for job in self._book.jobs.values()]

    def _received(self, message: Downward) -> None:
        match message:
            case Assignment():
                self._deadlines.renew(message, self._book.jobs.keys())
                self._apply(self._book.assigned(message))
            case Settled(key=key):
                reach(CrashPoint.SETTLED_RECEIVED)
                log.info("settled", key=str(key), settlement=message.settlement.value)
                self.settlements.add(message.settlement.value)
                self._apply(self._book.dropped(key, counted=message.settlement is Settlement.COUNTED))
            case Cancel(key=key) if key is not None:
                log.info("called off", key=str(key), reason=message.reason)
                self._apply(self._book.dropped(key))
            case TaskOrder() | TaskSettled() | TaskRelease() if self._tasks is not None:
                self._tasks.received(message)
            case CatalogueWanted():
                self._link.send(CatalogueNews(client=self._name, document=self._catalogue))
            case _:
                pass

    def _apply(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Start(assignment):
                    work = self._do(assignment, self._in_its_way(assignment.key))
                    self._running[assignment.key] = self._group.create_task(work, name=f"work {assignment.key}")
                case Offer(key, order_id):
                    if (earlier := self._offers.pop(key, None)) is not None:
                        earlier.cancel()
                    self._offers[key] = self._group.create_task(self._offer(key, order_id), name=f"offer {key}")
                case Abort(key):
                    self._clear(key)
                case Forget(key, counted):
                    self._clear(key, counted=counted)

    def _clear(self, key: AssignmentKey, *, counted: bool = False) -> None:
        """End what is done with a piece of work and drop what it made; new work of the same name waits for this."""
        if (work := self._running.pop(key, None)) is not None:
            self._aborted.add(work)
            work.add_done_callback(self._aborted.discard)
        ending = [task for task in (work, self._offers.pop(key, None)) if task is not None]
        for task in ending:
            task.cancel()
        if (earlier := self._clearing.get(key)) is not None:
            ending.append(earlier)
        self._clearing[key] = self._group.create_task(self._drop(key, ending, counted=counted), name=f"clear {key}")

    async def _drop(self, key: AssignmentKey, ending: list[asyncio.Task[None]], *, counted: bool) -> None:
        if ending:
            await asyncio.wait(ending)
        try:
            if self._outbox.is_light(key):  # to remove it takes less than the way to a thread and back
                self._compressor.settled(key, counted=counted)
            else:
                await in_thread(self._compressor.settled, key, counted=counted)
                if self._outbox.spares:
                    self._outbox.spares.expire()
        except OSError as err:  # what is still there is offered once more after a start, and settled again
            log.error("a settled report can't be removed", key=str(key), error=str(err))
        if self._clearing.get(key) is asyncio.current_task():
            del self._clearing[key]

    # ---- working

    def _in_its_way(self, key: AssignmentKey) -> set[asyncio.Task[None]]:
        """Return what new work waits for: its like of before, and where one runs at a time whatever still ends."""
        own = self._clearing.get(key)
        return (self._aborted if self._alone else set()) | (set() if own is None else {own})

    async def _do(self, assignment: Assignment, earlier: set[asyncio.Task[None]]) -> None:
        key = assignment.key
        if earlier:
            await asyncio.wait(earlier)
        folder = self._work / f"{key.session_id}-{key.round}-{key.work.value}"
        try:
            say = functools.partial(self._logs.add, key)
            outcome, update = await self._execution.outcome(assignment, folder, say)
            outcome = await self._delivery.keep(key, outcome, update)
            reach(CrashPoint.UPDATE_KEPT)
        finally:
            self._compressor.kept(key)  # also where a compression was cancelled, and went on in its thread
            if not _removed(folder):
                await in_thread(shutil.rmtree, folder, ignore_errors=True)
        if self._running.get(key) is not asyncio.current_task():
            return  # called off meanwhile: what it came to is cleared away
        del self._running[key]
        self.work.add(key.work.value, "done" if outcome.failure is None else "failed")
        self._apply(self._book.finished(key, failed=outcome.failure is not None))
        self._gate.answered(assignment)

    async def _cleared(self, session_id: str) -> None:
        if clearing := [task for key, task in self._clearing.items() if key.session_id == session_id]:
            await asyncio.wait(clearing)

    def _tell(self, key: AssignmentKey, stage: Stage) -> None:
        job = self._book.jobs.get(key)
        if job is not None and job.order_id is not None:
            self._link.send(Progress(key=key, order_id=job.order_id, client=self._name, stage=stage))

    async def _fetch(self, ref: BlobRef, target: Path) -> None:
        await self._link.fetch(ref, target, deadline_s=_FETCH_DEADLINE_S)

    async def _fetch_model(self, ref: BlobRef, target: Path, spares: Spares) -> None:
        await self._link.fetch(ref, target, deadline_s=_FETCH_DEADLINE_S, spares=spares)

    async def _offer(self, key: AssignmentKey, order_id: str) -> None:
        try:
            await self._delivery.offer(key, order_id)
        finally:
            if self._offers.get(key) is asyncio.current_task():
                del self._offers[key]


def _removed(folder: Path) -> bool:
    """Remove ``folder`` if it is empty, as it is as a rule, and return whether it is gone."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
