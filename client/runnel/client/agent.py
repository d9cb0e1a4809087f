"""The client: attached to the network, doing what it is asked beside its data."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import platform
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog

from runnel.client.domain.contract import TrainResult, ValidateResult
from runnel.client.domain.jobs import Abort, Decision, Forget, JobBook, Offer, Start
from runnel.client.entry_points import startup, train, validate
from runnel.client.log_stream import LogStream
from runnel.client.outbox import HeldReport, Outbox
from runnel.client.package_cache import PackageCache
from runnel.client.runtimes import LineSink, Runtime, entry_point_variables
from runnel.common.blobs import BlobStore, in_thread, storage_errors
from runnel.common.crash_points import CrashPoint, reach
from runnel.common.errors import CorruptData, IllegalState, InvalidInput, RunnelError, StorageFull, TooLarge
from runnel.common.protocol import (
    Assignment,
    AssignmentKey,
    BlobRef,
    Cancel,
    Downward,
    Failure,
    Hello,
    Member,
    NodeKind,
    Outcome,
    PayloadKind,
    Progress,
    Report,
    Settled,
    Stage,
    Work,
)
from runnel.transport import Attached, Detached, Received, UplinkLink

log = structlog.get_logger()

_TRANSFER_DEADLINE_S = 3600.0
_PUSH_AGAIN_S = 5.0
_MODELS_KEPT = 2
_TELLING_BYTES = 1 << 20  # to tell of a smaller transfer takes as long as the transfer


class ClientAgent:
    """A site's agent; an async context manager around :meth:`run`.

    Args:
        name: of this client.
        node_id: its identity.
        state: its folder: package cache, models, finished reports.
        link_factory: makes the way up, given what returns the hello.
        runtime: runs entry points.
        databases: name to path, shown to entry points.
        variables: further variables that entry points see.
        parallel: how many pieces of work may run at once.
        run_timeout_s: the site's own limit for one run of an entry point; None: only the network's.
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
        databases: Mapping[str, Path | str],
        variables: Mapping[str, str],
        parallel: int = 1,
        run_timeout_s: float | None = None,
    ) -> None:
        self._name = name
        self._node_id = node_id
        self._version = version
        self._work = state / "work"
        self._runtime = runtime
        self._databases = databases
        self._variables = variables
        self._run_timeout_s = run_timeout_s
        self._outbox = Outbox(state / "outbox")
        shutil.rmtree(state / "models", ignore_errors=True)  # of an earlier process; nobody would ever remove them
        self._models = BlobStore(state / "models", durable=False)
        self._models_used: OrderedDict[str, None] = OrderedDict()
        self._book = JobBook(parallel=parallel, held=self._outbox.held())
        self._link = link_factory(self.hello)
        self._packages = PackageCache(state / "packages", self._fetch, runtime)
        self._logs = LogStream(name, self._link.send)
        self._running: dict[AssignmentKey, asyncio.Task[None]] = {}
        self._offers: dict[AssignmentKey, asyncio.Task[None]] = {}
        self._clearing: dict[AssignmentKey, asyncio.Task[None]] = {}
        self._deadlines: dict[AssignmentKey, float | None] = {}
        self._scopes: dict[AssignmentKey, asyncio.Timeout] = {}
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> ClientAgent:
        await asyncio.to_thread(shutil.rmtree, self._work, ignore_errors=True)
        await asyncio.to_thread(self._work.mkdir, parents=True)
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in [*self._running.values(), *self._offers.values()]:
            task.cancel()
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
        )
        return Hello(member=member)

    async def run(self) -> None:
        """Stay attached and work until cancelled.

        Raises:
            Unauthenticated, Forbidden, Conflict: the network does not want this client.
        """
        logs = self._group.create_task(self._logs.run(), name="logs")
        try:
            async with self._link:
                async for event in self._link:
                    match event:
                        case Attached():
                            log.info("attached", to=event.via, address=event.address)
                            self._logs.flush()
                        case Received(message=message):
                            self._received(message)
                        case Detached(reason=reason):
                            log.warning("detached; work goes on", reason=reason)
                            self._book.detached()
        finally:
            logs.cancel()

    def _received(self, message: Downward) -> None:
        match message:
            case Assignment():
                self._set_deadline(message)
                self._apply(self._book.assigned(message))
            case Settled(key=key):
                reach(CrashPoint.SETTLED_RECEIVED)
                log.info("settled", key=str(key), settlement=message.settlement.value)
                self._apply(self._book.dropped(key))
            case Cancel(key=key) if key is not None:
                log.info("called off", key=str(key), reason=message.reason)
                self._apply(self._book.dropped(key))
            case _:
                pass

    def _apply(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Start(assignment):
                    work = self._do(assignment, self._clearing.get(assignment.key))
                    self._running[assignment.key] = self._group.create_task(work, name=f"work {assignment.key}")
                case Offer(key, order_id):
                    if (earlier := self._offers.pop(key, None)) is not None:
                        earlier.cancel()
                    self._offers[key] = self._group.create_task(self._offer(key, order_id), name=f"offer {key}")
                case Abort(key) | Forget(key):
                    self._clear(key)

    def _clear(self, key: AssignmentKey) -> None:
        """End what is done with a piece of work and drop what it made; new work of the same name waits for this."""
        ending = [task for task in (self._running.pop(key, None), self._offers.pop(key, None)) if task is not None]
        for task in ending:
            task.cancel()
        if (earlier := self._clearing.get(key)) is not None:
            ending.append(earlier)
        self._clearing[key] = self._group.create_task(self._drop(key, ending), name=f"clear {key}")

    async def _drop(self, key: AssignmentKey, ending: list[asyncio.Task[None]]) -> None:
        if ending:
            await asyncio.wait(ending)
        await in_thread(self._outbox.drop, key)
        if self._clearing.get(key) is asyncio.current_task():
            del self._clearing[key]

    def _set_deadline(self, assignment: Assignment) -> None:
        """Count from when the order came: for work that waits, and for work under way since an earlier order."""
        deadline = None
        if assignment.remaining_s is not None:
            # Twice: the network calls the work off when its time is over, or asks again and the same run goes on; only
            # who hears nothing for so long ends by himself.
            deadline = asyncio.get_running_loop().time() + 2 * assignment.remaining_s
        for key in self._deadlines.keys() - self._book.jobs.keys():
            del self._deadlines[key]
        self._deadlines[assignment.key] = deadline
        scope = self._scopes.get(assignment.key)
        if scope is not None and not scope.expired():
            scope.reschedule(deadline)

    # ---- working

    async def _do(self, assignment: Assignment, clearing: asyncio.Task[None] | None) -> None:
        key = assignment.key
        if clearing is not None:
            await asyncio.wait((clearing,))
        folder = self._work / f"{key.session_id}-{key.round}-{key.work.value}"
        try:
            outcome, update = await self._outcome(assignment, folder)
            outcome = await self._keep(key, outcome, update)
            reach(CrashPoint.UPDATE_KEPT)
        finally:
            await in_thread(shutil.rmtree, folder, ignore_errors=True)
        del self._running[key]
        self._apply(self._book.finished(key, failed=outcome.failure is not None))

    async def _outcome(self, assignment: Assignment, folder: Path) -> tuple[Outcome, Path | None]:
        key = assignment.key
        elapsed_s: dict[str, float] = {}
        say = functools.partial(self._logs.add, key)
        log.info("working", key=str(key))
        try:
            # What the network leaves of its time covers preparing too; the deadline is carried, not restarted.
            async with asyncio.timeout_at(self._deadlines.get(key)) as self._scopes[key]:
                with storage_errors(folder):
                    await in_thread(folder.mkdir, parents=True, exist_ok=True)
                    outcome, update = await self._execute(assignment, folder, say, elapsed_s)
        except TimeoutError:
            failure = Failure(
                code="timeout", message=f"{self._name} was not done with {key} long after the round's time was over."
            )
            outcome, update = Outcome(client=self._name, failure=failure), None
        except RunnelError as err:
            tail = str(err.fields.get("log_tail", ""))
            failure = Failure(code=err.code, message=str(err), log_tail=tail)
            outcome, update = Outcome(client=self._name, failure=failure), None
        except OSError as err:
            # Of this site's files: its operator can mend it, and the client goes on with other work.
            failure = Failure(code=RunnelError.code, message=f"{self._name}: {err}")
            outcome, update = Outcome(client=self._name, failure=failure), None
        finally:
            del self._scopes[key]
        if outcome.failure is not None:
            log.warning("work failed", key=str(key), code=outcome.failure.code, error=outcome.failure.message)
            say("runnel", f"failed: {outcome.failure.message}")
        return dataclasses.replace(outcome, elapsed_s=elapsed_s), update

    async def _execute(
        self, assignment: Assignment, folder: Path, say: LineSink, elapsed_s: dict[str, float]
    ) -> tuple[Outcome, Path | None]:
        key = assignment.key
        env = entry_point_variables(
            client_name=self._name,
            session_id=key.session_id,
            round_number=key.round,
            data=self._databases,
            site=self._variables,
        )
        common: dict[str, Any] = {"workdir": folder, "env": env, "timeout_s": self._run_timeout_s, "say": say}
        if not self._packages.ready(assignment.package):
            self._progress(assignment, Stage.PREPARING)
        with _timed(elapsed_s, "prepare"):
            prepared = await self._packages.get(assignment.package, say)
            await startup(self._runtime, prepared, **common)
        if assignment.model.size_bytes > _TELLING_BYTES and not self._models.has(assignment.model):
            self._progress(assignment, Stage.FETCHING)
        with _timed(elapsed_s, "fetch"):
            model = await self._model(assignment.model)
        self._progress(assignment, Stage.RUNNING)
        with _timed(elapsed_s, "run"):
            settings = assignment.client_settings
            if key.work is Work.TRAIN:
                trained = await train(self._runtime, prepared, model=model, settings_json=settings, **common)
                return self._done(trained), trained.update
            validated = await validate(self._runtime, prepared, model=model, settings_json=settings, **common)
            return self._done(validated), None

    def _done(self, result: TrainResult | ValidateResult) -> Outcome:
        extra = json.dumps(result.extra) if result.extra else ""
        return Outcome(client=self._name, weight=result.weight, metrics=result.metrics, extra_json=extra)

    def _progress(self, assignment: Assignment, stage: Stage) -> None:
        job = self._book.jobs.get(assignment.key)
        if job is not None and job.order_id is not None:
            self._link.send(Progress(key=assignment.key, order_id=job.order_id, client=self._name, stage=stage))

    async def _keep(self, key: AssignmentKey, outcome: Outcome, update: Path | None) -> Outcome:
        """Keep a report, or that there was no room for it; return what is kept."""
        while True:
            try:
                await in_thread(self._outbox.keep, key, outcome, update)
            except StorageFull as err:
                log.error("no room for a finished report", key=str(key), error=str(err))
                await in_thread(self._outbox.drop, key)
                if update is None:  # not even for a failure
                    await asyncio.sleep(_PUSH_AGAIN_S)
                else:
                    failure = Failure(code=err.code, message=f"{self._name}: {err}")
                    outcome, update = dataclasses.replace(outcome, failure=failure), None
            else:
                return outcome

    # ---- transfers

    async def _fetch(self, ref: BlobRef, target: Path) -> None:
        await self._link.fetch(ref, target, deadline_s=_TRANSFER_DEADLINE_S)

    async def _model(self, ref: BlobRef) -> Path:
        """Return the global model; validating one round and training the next use the same file."""
        if not self._models.has(ref):
            target = self._models.temporary()
            try:
                await self._fetch(ref, target)
                await asyncio.to_thread(self._models.adopt, target, ref)
            except BaseException:
                await asyncio.to_thread(target.unlink, missing_ok=True)
                raise
        self._models_used[ref.sha256] = None
        self._models_used.move_to_end(ref.sha256)
        while len(self._models_used) > _MODELS_KEPT:
            self._models.delete(self._models_used.popitem(last=False)[0])
        return self._models.path(ref)

    async def _offer(self, key: AssignmentKey, order_id: str) -> None:
        try:
            await self._offer_held(key, order_id)
        finally:
            if self._offers.get(key) is asyncio.current_task():
                del self._offers[key]

    async def _offer_held(self, key: AssignmentKey, order_id: str) -> None:
        held = await asyncio.to_thread(self._outbox.get, key)
        while held is not None and self._book.wanted(key, order_id):
            try:
                await self._deliver(held, order_id)
            except StorageFull as err:
                log.error("no room above; trying again", key=str(key), error=str(err), again_in_s=_PUSH_AGAIN_S)
                await asyncio.sleep(_PUSH_AGAIN_S)
                continue
            except (TooLarge, InvalidInput, CorruptData) as err:
                log.error("update refused", key=str(key), code=err.code, error=str(err))
                failure = Failure(code=err.code, message=str(err))
                self._link.send(_report(held, order_id, dataclasses.replace(held.outcome, failure=failure)))
            except IllegalState as err:
                log.info("order closed", key=str(key), error=str(err))
            except RunnelError as err:
                log.warning("update not delivered; it is kept", key=str(key), error=str(err))
            return

    async def _deliver(self, held: HeldReport, order_id: str) -> None:
        """Push the payload and report it.

        Raises:
            RunnelError: it could not be delivered.
        """
        outcome = held.outcome
        if held.file is not None and held.payload is not None:
            job = self._book.jobs.get(held.key)
            if job is not None and job.assignment is not None and held.payload.size_bytes > _TELLING_BYTES:
                self._progress(job.assignment, Stage.PUSHING)
            elapsed_s = dict(outcome.elapsed_s)
            with _timed(elapsed_s, "push"):
                await self._link.push(order_id, held.file, held.payload, deadline_s=_TRANSFER_DEADLINE_S)
            outcome = dataclasses.replace(outcome, elapsed_s=elapsed_s)
            reach(CrashPoint.UPDATE_PUSHED)
        if self._book.wanted(held.key, order_id):
            self._link.send(_report(held, order_id, outcome))


def _report(held: HeldReport, order_id: str, outcome: Outcome) -> Report:
    if outcome.failure is not None or held.payload is None:
        return Report(key=held.key, order_id=order_id, outcomes=(outcome,))
    return Report(
        key=held.key,
        order_id=order_id,
        outcomes=(outcome,),
        payload_kind=PayloadKind.UPDATE,
        payload=held.payload,
        weight=outcome.weight,
    )


@contextmanager
def _timed(elapsed_s: dict[str, float], stage: str) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        elapsed_s[stage] = time.monotonic() - started
