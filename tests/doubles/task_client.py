"""A light client for tasks: it speaks the wire as a real one does, and runs nothing."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType

from runnel.common.errors import ResultsBlocked, RunnelError, Unreachable
from runnel.common.protocol import (
    ENDED,
    BlobRef,
    CatalogueNews,
    CatalogueWanted,
    Failure,
    Hello,
    LogLine,
    Member,
    NodeKind,
    ResultFile,
    RunResult,
    RunState,
    TaskNews,
    TaskOrder,
    TaskRelease,
    TaskSettled,
)
from runnel.transport import Attached, Received, RetryPolicy, UplinkLink

Produce = Callable[[TaskOrder], Mapping[str, bytes]]
FAST = RetryPolicy(initial_s=0.02, max_s=0.2)


def says_its_name(order: TaskOrder) -> dict[str, bytes]:
    """Return the files of a run that only wrote where it ran."""
    return {"stdout": f"{order.run_id} at {order.client}\n".encode(), "stderr": b""}


class TaskClient:
    """Takes runs, waits for its ``gate``, gives out what ``produce`` makes, and forgets what is settled.

    What it holds outlives its attachments, as a real client's disk does: leave the block and enter another with the
    same object, and it is the same client started again.

    Args:
        network: address of the directory.
        name: of the client.
        slots: how many runs it works on at once.
        prefer: the combiner to attach to.
        produce: makes the files of a run; raises RunnelError when the run fails.
        review: results wait for a decision.
        kinds: media types of files that are no plain text, by name.
        token: by which it joins; None: the network asks for none.
        catalogue: what it publishes of its data, as JSON.
    """

    def __init__(
        self,
        network: str,
        name: str,
        *,
        slots: int = 2,
        prefer: str = "",
        produce: Produce = says_its_name,
        review: bool = False,
        kinds: Mapping[str, str] | None = None,
        token: str | None = None,
        catalogue: str = "",
    ) -> None:
        self.name = name
        self.gate = asyncio.Event()
        self.gate.set()
        self.held: dict[str, TaskOrder] = {}
        self.newest: dict[str, TaskNews] = {}
        self.finished: dict[str, Mapping[str, bytes]] = {}
        self.begun: Counter[str] = Counter()
        self.settled: list[TaskSettled] = []
        self.at_work = self.most_at_work = self.most_held = 0
        self.link: UplinkLink
        self._decided: dict[str, asyncio.Future[bool]] = {}
        self._network, self._slots, self._prefer, self._token = network, slots, prefer, token
        self._produce, self._review, self._kinds = produce, review, kinds or {}
        self._catalogue = catalogue
        self._at_work: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(slots)

    def _hello(self) -> Hello:
        member = Member(
            name=self.name,
            node_id=f"id-{self.name}",
            kind=NodeKind.CLIENT,
            runs=tuple(self.held),
            task_slots=self._slots,
            catalogue=hashlib.sha256(self._catalogue.encode()).hexdigest() if self._catalogue else "",
        )
        return Hello(member=member)

    async def __aenter__(self) -> TaskClient:
        self._group = await asyncio.TaskGroup().__aenter__()
        self.link = UplinkLink(
            self._network,
            name=self.name,
            node_id=f"id-{self.name}",
            kind=NodeKind.CLIENT,
            token=self._token,
            hello=self._hello,
            prefer=self._prefer,
            retry=FAST,
        )
        await self.link.__aenter__()
        self._listening = self._group.create_task(self._listen())
        for run_id in self.held:
            self._work(run_id)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in (self._listening, *self._at_work.values()):
            task.cancel()
        self._at_work.clear()
        await self.link.__aexit__(kind, error, trace)
        await self._group.__aexit__(kind, error, trace)

    async def _listen(self) -> None:
        async for event in self.link:
            match event:
                case Attached():
                    for run_id in list(self.newest):
                        if run_id in self.finished:
                            self._work(run_id)
                        else:
                            self.link.send(self.newest[run_id])
                case Received(message=TaskOrder() as order):
                    self._ordered(order)
                case Received(message=TaskSettled() as settled):
                    self._over(settled)
                case Received(message=TaskRelease() as decision):
                    if decision.run_id in self._decided and not self._decided[decision.run_id].done():
                        self._decided[decision.run_id].set_result(decision.release)
                case Received(message=CatalogueWanted()):
                    self.link.send(CatalogueNews(client=self.name, document=self._catalogue))
                case _:
                    pass

    def _ordered(self, order: TaskOrder) -> None:
        if order.run_id in self.held:
            self.link.send(self.newest[order.run_id])
            return
        self.held[order.run_id] = order
        self.most_held = max(self.most_held, len(self.held))
        self.say(order.run_id, RunState.ASSIGNED)
        self._work(order.run_id)

    def _over(self, settled: TaskSettled) -> None:
        self.settled.append(settled)
        for kept in (self.held, self.newest, self.finished):
            kept.pop(settled.run_id, None)
        task = self._at_work.pop(settled.run_id, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def say(self, run_id: str, state: RunState, result: RunResult | None = None, detail: str = "") -> None:
        """Say how far a run is."""
        news = TaskNews(run_id=run_id, client=self.name, state=state, result=result, detail=detail)
        self.newest[run_id] = news
        self.link.send(news)

    def _work(self, run_id: str) -> None:
        earlier = self._at_work.get(run_id)
        if earlier is None or earlier.done():
            self._at_work[run_id] = self._group.create_task(self._run(run_id), name=f"{self.name} {run_id}")

    async def _run(self, run_id: str) -> None:
        order = self.held[run_id]
        if run_id not in self.finished:
            async with self._room:
                self.begun[run_id] += 1
                self.at_work += 1
                self.most_at_work = max(self.most_at_work, self.at_work)
                try:
                    self.say(run_id, RunState.PREPARING, detail="looking for the image")
                    self.say(run_id, RunState.RUNNING)
                    line = LogLine(at_ms=time.time_ns() // 1_000_000, stream="stdout", text=f"hello from {self.name}")
                    self.link.send(TaskNews(run_id=run_id, client=self.name, state=RunState.RUNNING, lines=(line,)))
                    await self.gate.wait()
                finally:
                    self.at_work -= 1
            try:
                self.finished[run_id] = self._produce(order)
            except RunnelError as error:
                failure = Failure(code=error.code, message=error.message)
                self.finished[run_id] = {}
                self.say(run_id, RunState.FAILED, RunResult(failure=failure, exit_code=1))
                return
        before = self.newest[run_id]
        if before.state in ENDED and before.result is not None and before.result.failure is not None:
            self.link.send(before)
            return
        if self._review and not await self._released(run_id):
            failure = Failure(code=ResultsBlocked.code, message="Somebody at the site keeps them.")
            self.say(run_id, RunState.REJECTED, RunResult(failure=failure, exit_code=0))
            return
        await self._give_out(run_id)

    async def _released(self, run_id: str) -> bool:
        decided = self._decided.setdefault(run_id, asyncio.get_running_loop().create_future())
        if not decided.done():
            self.say(run_id, RunState.AWAITING_RELEASE)
        return await asyncio.shield(decided)

    async def _give_out(self, run_id: str) -> None:
        files = [
            (name, data, BlobRef(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data)))
            for name, data in self.finished[run_id].items()
        ]
        try:
            for _, data, ref in files:
                await self.link.push(run_id, memoryview(data), ref, deadline_s=30)
        except Unreachable:
            return  # with the next attachment
        except RunnelError as error:
            self.say(run_id, RunState.FAILED, RunResult(failure=Failure(code=error.code, message=error.message)))
            return
        result = RunResult(
            exit_code=0,
            files=tuple(
                ResultFile(name=name, media_type=self._kinds.get(name, "text/plain"), blob=ref)
                for name, _, ref in files
            ),
            elapsed_s={"run": 0.5},
            image_digest="sha256:1",
        )
        self.say(run_id, RunState.DONE, result)
