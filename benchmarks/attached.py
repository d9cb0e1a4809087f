"""What attached clients cost a combiner, and how fast a round goes through many of them.

Reducer and combiner are real processes. The clients are very light ones (see ``light_swarm.py``) in a few processes,
each with a connection of its own. First 1,000 attach and run rounds of a model of 4 KB, then more attach until there
are 5,000; then all are idle for a while; then rounds of 1,000 among the 5,000. Beside the combiner's memory per client
stands that of a server of as many bare streams of grpc.aio, in the same run.

Of a round are told: *fan-out*, from the commit after which the order goes out until the last client has the model;
*fan-in*, from the first update that is being pushed until the round is committed; and the whole, as the session tells
it. Clients answer as soon as they have the model, so fan-out and fan-in overlap. The clients share the machine: the
processor time of each role is listed too.

    python -m benchmarks.attached [--quick] [--json]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure, Result, figure, run_alone
from benchmarks.local_network import LocalNetwork, local_network
from benchmarks.usage import resident_bytes, running_seconds, total_cpu_seconds
from runnel.common.tensors import write_npz
from runnel.compute_package import pack

PARAMS = 1000
TARGET_ROUND_S = 1.0
ATTACH_S = 600.0
ROUND_S = 300.0
_SETTLE_S = 3.0
_PHASE = re.compile(r'timestamp=(\S+) .*event="session phase".* phase=(\w+) round=(\d+)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured. ``asked``: clients of a round; ``attached``: in the end; ``rounds``: the first warms up."""

    attached: int
    asked: int
    rounds: int
    processes: int
    idle_s: float


_FULL = Scale(attached=5000, asked=1000, rounds=8, processes=4, idle_s=30.0)
_QUICK = Scale(attached=60, asked=40, rounds=3, processes=2, idle_s=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTimes:
    """One round: seconds by part."""

    fan_out: float
    fan_out_order: float
    fan_in: float
    whole: float


class Swarms:
    """The processes with the clients; made by :func:`swarms`."""

    def __init__(self, processes: list[asyncio.subprocess.Process]) -> None:
        self._processes = processes
        self.told: list[dict[str, Any]] = []
        self._attached = 0
        self._news = asyncio.Event()

    @property
    def pids(self) -> list[int]:
        """Of the processes."""
        return [process.pid for process in self._processes]

    async def listen(self, process: asyncio.subprocess.Process) -> None:
        """Take note of what one process tells."""
        assert process.stdout is not None
        while line := await process.stdout.readline():
            said = json.loads(line)
            self._attached += said.get("attached", 0)
            if "round" in said:
                self.told.append(said)
            self._news.set()
        raise RuntimeError(f"clients ended with {await process.wait()}")

    async def attach(self, total: int) -> float:
        """Let clients attach until there are ``total``, spread over the processes; return how long that took."""
        began = time.monotonic()
        more, count = total - self._attached, len(self._processes)
        for n, process in enumerate(self._processes):
            assert process.stdin is not None
            process.stdin.write(f"{more // count + (n < more % count)}\n".encode())
        async with asyncio.timeout(ATTACH_S):
            while self._attached < total:
                self._news.clear()
                await self._news.wait()
        return time.monotonic() - began

    async def all_told(self, clients: int) -> None:
        """Wait until so many clients, over all rounds, have told that they were settled."""
        async with asyncio.timeout(ROUND_S):
            while sum(said["asked"] for said in self.told) < clients:
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def swarms(count: int, network: str, update: Path) -> AsyncIterator[Swarms]:
    """Have ``count`` processes without clients, until the end of the block."""
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "benchmarks.light_swarm", network, f"swarm-{n}", str(update)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for n in range(1, count + 1)
    ]
    try:
        async with asyncio.TaskGroup() as group:
            made = Swarms(processes)
            tasks = [group.create_task(made.listen(process)) for process in processes]
            yield made
            for task in tasks:
                task.cancel()
    finally:
        await _end(processes)


async def _end(processes: Iterable[asyncio.subprocess.Process]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def measure(quick: bool) -> Result:
    """Measure the bare streams, then the network."""
    scale = _QUICK if quick else _FULL
    figures = [
        figure("bare grpc.aio stream: memory of its server", "kB/client", [await _bare_bytes(scale) / 1000]),
        *await _network(scale),
    ]
    return Result(
        benchmark="attached",
        parameters={
            "attached": scale.attached,
            "asked in a round": scale.asked,
            "model": "4 KB",
            "processes of clients": scale.processes,
        },
        figures=figures,
        notes=("Clients, reducer and combiner share the machine; fan-out and fan-in overlap.",),
    )


async def _bare_bytes(scale: Scale) -> float:
    """Return the resident memory of a server for each bare stream."""

    async def start(*words: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "benchmarks.bare_streams", *words),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        started.append(process)
        return process

    async def line(process: asyncio.subprocess.Process) -> str:
        assert process.stdout is not None
        async with asyncio.timeout(ATTACH_S):
            if said := (await process.stdout.readline()).decode().strip():
                return said
        raise RuntimeError(f"the bare streams ended with {await process.wait()}")

    started: list[asyncio.subprocess.Process] = []
    try:
        server = await start("serve")
        port = await line(server)
        await line(await start("attach", port, "1"))
        before = resident_bytes(server.pid)
        share = math.ceil(scale.attached / scale.processes)
        clients = [await start("attach", port, str(share)) for _ in range(scale.processes)]
        for process in clients:
            await line(process)
        return (resident_bytes(server.pid) - before) / (share * scale.processes)
    finally:
        await _end(started)


async def _network(scale: Scale) -> list[Figure]:
    async with local_network() as network:
        await network.start_combiners(1, "--capacity", str(scale.attached))
        seed, update, archive = await asyncio.to_thread(_prepare, network.work)
        pids = {"reducer": network.pids["reducer"], "combiner": network.pids["combiner-1"]}
        async with swarms(scale.processes, network.rpc, update) as clients:
            model = (await network.ask(lambda http: http.models.push(seed))).model
            package = (await network.ask(lambda http: http.packages.push(archive))).digest
            session = {"package": package, "seed": model, "rounds": scale.rounds, "min_clients": scale.asked}
            base = {role: resident_bytes(pid) for role, pid in pids.items()}
            attaching_s = await clients.attach(scale.asked)
            await network.until_attached(clients=scale.asked)
            figures = await _rounds(network, clients, pids, scale, session)
            attaching_s += await clients.attach(scale.attached)
            await network.until_attached(clients=scale.attached)
            figures.append(figure("attaching: seconds for all", "s", [attaching_s]))
            figures += [
                figure(f"{role}: memory", "kB/client", [(resident_bytes(pid) - base[role]) / 1000 / scale.attached])
                for role, pid in pids.items()
            ]
            figures += await _idle(pids | {"clients": 0}, clients.pids, scale.idle_s)
            figures += await _rounds(network, clients, pids, scale, session | {"sample": scale.asked})
            return figures


def _prepare(folder: Path) -> tuple[Path, Path, Path]:
    """Write the seed, the update of all clients, and a package that nobody runs."""
    seed, update, source = folder / "seed.npz", folder / "update.npz", folder / "package"
    write_npz(seed, {"w": np.zeros(PARAMS, np.float32)})
    write_npz(update, {"w": np.full(PARAMS, 2.0, np.float32)})
    source.mkdir()
    for name in ("train.py", "validate.py"):
        (source / name).write_text("raise SystemExit('light clients run nothing')\n")
    return seed, update, pack(source, folder / "package.tar.gz").path


async def _idle(pids: dict[str, int], clients: list[int], window_s: float) -> list[Figure]:
    """Return the share of a processor that each role takes while nothing is to do."""
    await asyncio.sleep(min(_SETTLE_S, window_s))
    of_role = {role: [pid] if pid else clients for role, pid in pids.items()}
    before = {role: sum(map(running_seconds, each)) for role, each in of_role.items()}
    await asyncio.sleep(window_s)
    return [
        figure(
            f"idle, all attached: {role}",
            "% of a processor",
            [100 * (sum(map(running_seconds, each)) - before[role]) / window_s],
        )
        for role, each in of_role.items()
    ]


async def _rounds(
    network: LocalNetwork, clients: Swarms, pids: dict[str, int], scale: Scale, session: dict[str, Any]
) -> list[Figure]:
    """Run a session and tell about its rounds, without the first."""
    log = network.work / "logs" / "reducer.log"
    clients.told.clear()
    skip = log.stat().st_size
    before = {role: total_cpu_seconds([pid]) for role, pid in pids.items()}
    before["clients"] = total_cpu_seconds(clients.pids)
    ended = await network.train(timeout_s=ROUND_S * scale.rounds, look_s=1.0, validate_every=0, retries=0, **session)
    await clients.all_told(scale.asked * scale.rounds)
    used = {role: total_cpu_seconds([pid]) - before[role] for role, pid in pids.items()}
    used["clients"] = total_cpu_seconds(clients.pids) - before["clients"]
    phases = dict(_phases(log, skip))
    rounds = [
        _times(phases, [said for said in clients.told if said["round"] == each.round], each.round, each.seconds or 0.0)
        for each in ended.rounds[1:]
    ]
    if any(each.updates != scale.asked for each in ended.rounds):
        raise AssertionError(f"updates by round: {[each.updates for each in ended.rounds]}")
    name = f"{scale.asked:,} of {scale.attached if 'sample' in session else scale.asked:,}"
    return [
        figure(f"{name}: round", "s", [each.whole for each in rounds], target=TARGET_ROUND_S),
        figure(f"{name}: fan-out, last has the order", "s", [each.fan_out_order for each in rounds]),
        figure(f"{name}: fan-out, last has the model", "s", [each.fan_out for each in rounds]),
        figure(f"{name}: fan-in, first pushes to commit", "s", [each.fan_in for each in rounds]),
        *(
            figure(f"{name}: processor time of the {role}, a round", "s", [seconds / scale.rounds])
            for role, seconds in used.items()
        ),
    ]


def _phases(log: Path, skip: int) -> Iterator[tuple[tuple[str, int], float]]:
    """Yield when (Unix time) each phase of each round was committed; read from a log, after ``skip`` bytes."""
    with log.open("rb") as file:
        file.seek(skip)
        for line in file.read().decode().splitlines():
            if found := _PHASE.search(line):
                at, phase, number = found.groups()
                yield (phase, int(number)), datetime.fromisoformat(at).timestamp()


def _times(phases: dict[tuple[str, int], float], told: list[dict[str, Any]], number: int, seconds: float) -> RoundTimes:
    ordered, committed = phases["training", number], phases["committed", number]
    return RoundTimes(
        fan_out=max(said["fetched_at"] for said in told) - ordered,
        fan_out_order=max(said["assigned_at"] for said in told) - ordered,
        fan_in=committed - min(said["pushing_at"] for said in told),
        whole=seconds,
    )


if __name__ == "__main__":
    asyncio.run(run_alone(__doc__, measure))
