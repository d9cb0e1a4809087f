"""The network above a client that runs tasks, as a list: what it was told, and the files that were pushed to it."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import io
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runnel.client.audit import AUDIT_FILE, AuditLog
from runnel.client.domain.policy import ANYTHING, Policy
from runnel.client.tasks.book import RunBook
from runnel.client.tasks.plain import PlainContract
from runnel.client.tasks.release import RUNS, Decisions
from runnel.client.tasks.runner import TaskRunner
from runnel.client.tasks.site_facts import Selector, SiteFacts
from runnel.client.tasks.site_tasks import Carrier, SiteTasks
from runnel.client.tasks.surroundings import Groups
from runnel.client.tasks.task_engine import EngineSettings, TaskEngine
from runnel.common.blobs import Source
from runnel.common.errors import NotFound, RunnelError, Unreachable
from runnel.common.protocol import ENDED, BlobRef, LogLine, RunState, TaskNews, TaskOrder
from runnel.common.tasks import Contract, TaskSpec
from tests.eventually import eventually

CLIENT = "site-a"


class TaskNetwork:
    """See above; ``refusing`` is raised by each push while it is set, ``attached`` False loses everything."""

    def __init__(self) -> None:
        self.attached = True
        self.refusing: RunnelError | None = None
        self.news: list[TaskNews] = []
        self.files: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.pushes = 0
        self.left = 0

    def send(self, message: TaskNews) -> bool:
        if self.attached:
            self.news.append(message)
        return self.attached

    offer = send

    def leave(self) -> None:
        self.left += 1

    async def push(self, order_id: str, source: Source, ref: BlobRef, *, deadline_s: float) -> None:
        await asyncio.sleep(0)
        if not self.attached:
            raise Unreachable("Not attached.")
        if self.refusing is not None:
            raise self.refusing
        assert isinstance(source, Path)
        data = await asyncio.to_thread(source.read_bytes)
        assert hashlib.sha256(data).hexdigest() == ref.sha256
        self.pushes += 1
        self.files[ref.sha256] = data

    async def fetch(self, ref: BlobRef, target: Path) -> None:
        if ref.sha256 not in self.blobs:
            raise NotFound("No such blob.")
        await asyncio.to_thread(target.write_bytes, self.blobs[ref.sha256])

    def blob(self, data: bytes) -> dict[str, Any]:
        """Store ``data``; return how a task names it."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.blobs[sha256] = data
        return {"sha256": sha256, "size_bytes": len(data)}

    # ---- what was told

    def states(self, run_id: str) -> list[RunState]:
        """Return the states of a run, each once where it was said several times one after another."""
        found: list[RunState] = []
        for news in self.news:
            if news.run_id == run_id and news.state not in found[-1:]:
                found.append(news.state)
        return found

    def end(self, run_id: str) -> TaskNews | None:
        """Return how a run ended, if it has."""
        return next((news for news in self.news if news.run_id == run_id and news.state in ENDED), None)

    def lines(self, run_id: str) -> list[LogLine]:
        """Return all lines of a run."""
        return [line for news in self.news if news.run_id == run_id for line in news.lines]

    async def ended(self, run_id: str, *, timeout_s: float = 30.0) -> TaskNews:
        """Wait for the end of a run."""
        await eventually(lambda: self.end(run_id), timeout_s=timeout_s, state=lambda: self.news[-5:])
        found = self.end(run_id)
        assert found is not None
        return found

    def content(self, end: TaskNews, name: str) -> bytes:
        """Return the result file ``name``, which must have been pushed."""
        assert end.result is not None
        return self.files[next(each.blob.sha256 for each in end.result.files if each.name == name)]

    def unzipped(self, end: TaskNews, name: str = "output") -> dict[str, bytes]:
        """Return the files in an archive among the results."""
        with zipfile.ZipFile(io.BytesIO(self.content(end, name))) as archive:
            return {info.filename: archive.read(info) for info in archive.infolist()}


def order(run_id: str, spec: TaskSpec | str, **choices: Any) -> TaskOrder:
    """Return a run for the client."""
    usual: dict[str, Any] = {"client": CLIENT, "task_id": "task-0000000001", "organisation": "org", "user": "ada"}
    text = spec if isinstance(spec, str) else spec.as_json()
    return TaskOrder(run_id=run_id, spec=text, **(usual | choices))


def plain(image: str, *command: str, **choices: Any) -> TaskSpec:
    """Return a task of one container."""
    executor = {"image": image, "command": command, **choices.pop("executor", {})}
    return TaskSpec.model_validate({"executors": [executor], **choices})


def client_of(state: Path) -> str:
    """Return the identity of the client with this state: one of its own, for other tests use the engine meanwhile."""
    return f"client-of-{state.name}-{hashlib.sha256(bytes(state)).hexdigest()[:8]}"


@asynccontextmanager
async def site(
    state: Path,
    network: TaskNetwork,
    *,
    host: str | None = None,
    policy: Policy = ANYTHING,
    selector: Selector | None = None,
    contracts: Mapping[Contract, Any] | None = None,
    client: str = "",
    files: str | None = None,
    parallel: int = 2,
    runner: Carrier | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    engine: Mapping[str, Any] | None = None,
    **choices: Any,
) -> AsyncIterator[SiteTasks]:
    """The tasks of a client whose state is in ``state``, at the engine ``host``; None: there is no engine."""
    await asyncio.to_thread(state.mkdir, parents=True, exist_ok=True)
    usual: dict[str, Any] = {
        "client": client or client_of(state),
        "state": state,
        "environ": {},
        "host": host or f"unix://{state}/no-engine.sock",
        "files": files,
        "grace_s": 0.5,
    }
    settings = EngineSettings(**(usual | dict(engine or {})))
    facts = SiteFacts(
        name=CLIENT,
        policy=lambda: policy,
        contracts=contracts or {Contract.PLAIN: PlainContract()},
        groups=Groups(state / "groups"),
        selector=selector,
    )
    door, audit = TaskEngine(settings), AuditLog(state / AUDIT_FILE)
    real = TaskRunner(site=dataclasses.replace(facts, **choices), engine=door, fetch=network.fetch, audit=audit)
    tasks = SiteTasks(
        name=CLIENT,
        book=await asyncio.to_thread(RunBook, state / RUNS),
        decisions=Decisions(state / RUNS),
        runner=runner or real,
        engine=door,
        link=network,
        policy=lambda: policy,
        audit=audit,
        parallel=parallel,
        clock=clock,
    )
    async with tasks:
        yield tasks
