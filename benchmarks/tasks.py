"""How fast tasks drain: a thousand of them, queued while nobody is there, over twenty clients that run nothing.

Reducer and combiner are real processes; the clients attach to the combiner, each over a connection of its own, within
this one. A run is told as assigned and running, gives out a file and ends, as fast as the network takes it. In the end
each run has begun once, ended well and been settled, and each client had its own in the order in which they were asked
for: else there is no figure but an error. Before it, single tasks at an idle network tell how long it takes from the
request over HTTP until the order is at its client, and until the result is known.

    python -m benchmarks.tasks [--quick] [--json]
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from benchmarks.figures import Result, figure, run_alone
from benchmarks.local_network import LocalNetwork, local_network
from benchmarks.usage import total_cpu_seconds
from runnel.common.protocol import (
    BlobRef,
    Hello,
    Member,
    NodeKind,
    ResultFile,
    RunResult,
    RunState,
    TaskNews,
    TaskOrder,
    TaskSettled,
)
from runnel.sdk import Network
from runnel.transport import Received, UplinkLink

_SLOTS = 4
_DRAIN_S = 600.0
_SPEC = {"executors": [{"image": "analysis:1"}]}


class LightClient:
    """Ends each run that it is given, at once."""

    def __init__(self, network: str, name: str) -> None:
        self.name = name
        self.given: list[tuple[str, float]] = []  # tasks in the order in which they came, and when
        self.begun: Counter[str] = Counter()
        self.settled: set[str] = set()
        self.news = asyncio.Event()
        self._held: set[str] = set()
        self._network = network
        self._link: UplinkLink

    def _hello(self) -> Hello:
        member = Member(
            name=self.name,
            node_id=f"id-{self.name}",
            kind=NodeKind.CLIENT,
            runs=tuple(self._held),
            task_slots=_SLOTS,
        )
        return Hello(member=member)

    @asynccontextmanager
    async def attached(self) -> AsyncIterator[None]:
        """Take runs while the block lasts."""
        self._link = UplinkLink(
            self._network,
            name=self.name,
            node_id=f"id-{self.name}",
            kind=NodeKind.CLIENT,
            token=None,
            hello=self._hello,
        )
        async with self._link, asyncio.TaskGroup() as group:
            listening = group.create_task(self._listen(group))
            yield
            listening.cancel()

    async def _listen(self, group: asyncio.TaskGroup) -> None:
        async for event in self._link:
            match event:
                case Received(message=TaskOrder() as order) if order.run_id not in self._held:
                    self._held.add(order.run_id)
                    self.given.append((order.task_id, time.monotonic()))
                    group.create_task(self._run(order))
                case Received(message=TaskSettled(run_id=run_id)):
                    self._held.discard(run_id)
                    self.settled.add(run_id)
                case _:
                    continue
            self.news.set()

    async def _run(self, order: TaskOrder) -> None:
        run_id = order.run_id
        self.begun[run_id] += 1
        for state in (RunState.ASSIGNED, RunState.RUNNING):
            self._link.send(TaskNews(run_id=run_id, client=self.name, state=state))
        data = f"{run_id}\n".encode()
        ref = BlobRef(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
        await self._link.push(run_id, memoryview(data), ref, deadline_s=_DRAIN_S)
        files = (ResultFile(name="stdout", media_type="text/plain", blob=ref),)
        done = TaskNews(
            run_id=run_id, client=self.name, state=RunState.DONE, result=RunResult(exit_code=0, files=files)
        )
        self._link.send(done)


async def measure(quick: bool) -> Result:
    """Let tasks drain, after single ones."""
    tasks, sites, singles = (40, 4, 5) if quick else (1000, 20, 40)
    async with local_network() as network:
        await network.start_combiners(1)
        names = [f"site-{number}" for number in range(1, sites + 1)]
        clients = {name: LightClient(network.rpc, name) for name in names}
        async with _all_attached(network, clients):
            reached, known = await _single_tasks(network, clients[names[0]], singles)
        await network.ask(lambda http: _until_away(http, sites))
        asked = await network.ask(lambda http: _ask(http, names, tasks))
        pids = {role: network.pids_of(role) for role in ("reducer", "combiner")}
        before = {role: total_cpu_seconds(found) for role, found in pids.items()}
        began = time.monotonic()
        async with _all_attached(network, clients):
            await _until_settled(clients, tasks + singles)
        took_s = time.monotonic() - began
        cpu_s = {role: total_cpu_seconds(found) - before[role] for role, found in pids.items()}
        _check(clients, asked)
    return Result(
        benchmark="tasks",
        parameters={"tasks": tasks, "clients": sites, "slots": _SLOTS},
        figures=[
            figure("request to order at its client", "ms", reached),
            figure("request to known result", "ms", known),
            figure("drain", "s", [took_s]),
            figure("drained runs per second", "1/s", [tasks / took_s], more_is_better=True),
            *(figure(f"cpu of {role} per run", "ms", [1e3 * each / tasks]) for role, each in cpu_s.items()),
        ],
        notes=("Every run began once, ended well and was settled; each client had its own in the order of asking.",),
    )


@asynccontextmanager
async def _all_attached(network: LocalNetwork, clients: dict[str, LightClient]) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for client in clients.values():
            await stack.enter_async_context(client.attached())
        await network.until_attached(clients=len(clients))
        yield


async def _single_tasks(network: LocalNetwork, client: LightClient, count: int) -> tuple[list[float], list[float]]:
    """Return milliseconds from the request until the order is at its client, and until the result is known."""
    reached, known = [], []
    for number in range(1, count + 1):
        began = time.monotonic()
        task = await network.ask(lambda http: http.tasks.submit(_SPEC, sites=[client.name]))
        await network.ask(lambda http, task=task: http.tasks.wait(task, timeout_s=_DRAIN_S))  # type: ignore[misc]
        known.append(1e3 * (time.monotonic() - began))
        reached.append(1e3 * (client.given[number - 1][1] - began))
    await _until_settled({client.name: client}, count)
    return reached, known


def _until_away(http: Network, sites: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if sum(node.status == "away" for node in http.nodes.list()) == sites:
            return
        time.sleep(0.1)
    raise AssertionError("the clients have left, and are not away")


def _ask(http: Network, names: list[str], tasks: int) -> dict[str, list[str]]:
    """Ask for tasks at one site each, in turn; return those of each site in the order of asking."""
    asked: dict[str, list[str]] = {name: [] for name in names}
    for number in range(tasks):
        site = names[number % len(names)]
        asked[site].append(http.tasks.submit(_SPEC, sites=[site]).task)
    return asked


async def _until_settled(clients: dict[str, LightClient], runs: int) -> None:
    async with asyncio.timeout(_DRAIN_S):
        while sum(len(client.settled) for client in clients.values()) < runs:
            waits = [asyncio.ensure_future(client.news.wait()) for client in clients.values()]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for client, wait in zip(clients.values(), waits, strict=True):
                wait.cancel()
                client.news.clear()


def _check(clients: dict[str, LightClient], asked: dict[str, list[str]]) -> None:
    for name, client in clients.items():
        if set(client.begun.values()) != {1}:
            raise AssertionError(f"{name} began runs more than once: {client.begun.most_common(3)}")
        came = [task for task, _ in client.given][-len(asked[name]) :]
        if came != asked[name]:
            raise AssertionError(f"{name} was not given its tasks in the order of asking")


if __name__ == "__main__":
    asyncio.run(run_alone(__doc__, measure))
