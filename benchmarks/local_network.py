"""A whole network as real processes of this machine, started as people start it, for measuring."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from runnel.common.endpoints import read_endpoints
from runnel.common.errors import DeadlineExceeded, RunnelError
from runnel.demo.commands import combiner_arguments, reducer_arguments, runnel_argv
from runnel.demo.processes import ONE_THREAD, Processes, own_processes
from runnel.sdk import Network, Session

READY_S = 180.0
_LOOK_S = 0.2
_HOST = Path(__file__).with_name("client_host.py")

T = TypeVar("T")


class LocalNetwork:
    """A running network; made by :func:`local_network`.

    ``pids``: of the components by name, ``reducer``, ``combiner-1`` … and ``client-1`` …; ``starting_s``: seconds from
    the start of each to its line *ready*; ``rpc`` and ``url``: where the reducer serves.
    """

    def __init__(self, work: Path, processes: Processes) -> None:
        self.work = work
        self.pids: dict[str, int] = {}
        self.starting_s: dict[str, float] = {}
        self.rpc = ""
        self.url = ""
        self._processes = processes
        self._http: Network | None = None
        self._asking = asyncio.Lock()

    def pids_of(self, role: str) -> list[int]:
        """Return the processes of a role: ``reducer``, ``combiner`` or ``client``."""
        return [pid for name, pid in self.pids.items() if name.partition("-")[0] == role]

    async def start_reducer(self) -> None:
        """Start the reducer; it is the first."""
        await self._start("reducer", [*runnel_argv(), *reducer_arguments()])
        endpoints = read_endpoints(self.work / "reducer")
        if endpoints.rpc is None or endpoints.http is None:
            raise AssertionError("a reducer serves both")
        self.rpc, self.url = endpoints.rpc, f"http://{endpoints.http}"
        self._http = Network(self.url)

    async def start_combiners(self, count: int, *more: str) -> None:
        """Start combiners and wait until they are attached; ``more``: of their arguments."""
        for n in range(1, count + 1):
            name = f"combiner-{n}"
            await self._start(name, [*runnel_argv(), *combiner_arguments(name, self.rpc), *more])
        await self.until_attached(combiners=count)

    async def start_clients(
        self, count: int, data: Callable[[int], Mapping[str, Path]] = lambda _: {}, *, warm: bool = True
    ) -> None:
        """Start clients, whose entry points compute in one thread, and wait until they are attached.

        ``data``: returns the databases of the client of that number, by name; ``warm``: as they are by default;
        otherwise each run starts an interpreter.
        """
        variables = [word for item in ONE_THREAD.items() for word in ("--env", "=".join(item))]
        for n in range(1, count + 1):
            name = f"client-{n}"
            own = ["client", "--network", self.rpc, "--state", name, "--name", name, *variables, "--insecure"]
            own += [] if warm else ["--no-warm"]
            databases = [word for item in data(n).items() for word in ("--data", f"{item[0]}={item[1]}")]
            await self._start(name, [*runnel_argv(), *own, *databases])
        await self.until_attached(clients=count)

    async def start_hosted_clients(self, count: int, sites: Path, *, hosts: int) -> None:
        """Start clients in ``hosts`` processes (see ``client_host.py``) and wait until all are attached.

        ``sites``: folder with the data file of each, ``site-1.npz`` and so on.
        """
        bounds = [count * each // hosts for each in range(hosts + 1)]
        for number, (before, last) in enumerate(pairwise(bounds), start=1):
            name = f"host-{number}"
            own = ["--network", self.rpc, "--state", name, "--sites", str(sites)]
            # -P: no module of the folder where it lies hides another one of that name.
            program = [sys.executable, "-P", str(_HOST), *own, "--first", str(before + 1), "--last", str(last)]
            await self._start(name, program)
        await self.until_attached(clients=count)

    async def until_attached(self, *, combiners: int = 0, clients: int = 0) -> None:
        """Wait until so many nodes are attached."""
        await self._until(
            lambda network: (
                (status := network.status()).combiners_attached >= combiners and status.clients_attached >= clients
            ),
            timeout_s=READY_S,
        )

    async def ask(self, question: Callable[[Network], T]) -> T:
        """Ask the reducer over HTTP, off the loop, over one connection."""
        if self._http is None:
            raise AssertionError("the reducer is started first")
        async with self._asking:
            return await asyncio.to_thread(question, self._http)

    def close(self) -> None:
        """Close the connection."""
        if self._http is not None:
            self._http.close()

    async def train(self, *, timeout_s: float, look_s: float = _LOOK_S, **session: Any) -> Session:
        """Run a session to its end and return it with each client's part.

        Looks each ``look_s`` seconds whether it has ended, rather than following it, so that little but the training
        itself is measured.

        Raises:
            RunnelError: it did not finish.
            DeadlineExceeded: not in time.
        """
        started = await self.ask(lambda network: network.sessions.start(**session))
        await self._until(lambda network: network.status().sessions_running == 0, timeout_s=timeout_s, look_s=look_s)
        ended = await self.ask(lambda network: network.sessions.show(started, clients=True))
        if ended.status != "finished":
            raise RunnelError(f"The session {ended.status}: {ended.reason}")
        return ended

    async def _start(self, name: str, program: Sequence[str]) -> None:
        began = time.monotonic()
        await self._processes.start(name, program, timeout_s=READY_S)
        self.starting_s[name] = time.monotonic() - began
        self.pids[name] = read_endpoints(self.work / name).pid

    async def _until(self, holds: Callable[[Network], bool], *, timeout_s: float, look_s: float = _LOOK_S) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not await self.ask(holds):  # noqa: ASYNC110 - being told would cost what is measured
                    await asyncio.sleep(look_s)
        except TimeoutError as error:
            raise DeadlineExceeded(f"The network did not get there in {timeout_s:g} s.") from error


@asynccontextmanager
async def local_network(
    *, combiners: int = 0, clients: int = 0, warm: bool = True, environ: Mapping[str, str] | None = None
) -> AsyncIterator[LocalNetwork]:
    """Yield a network of so many components, all attached; nothing of it is left afterwards, on disk or alive."""
    with tempfile.TemporaryDirectory(prefix="runnel-bench-") as folder:
        async with own_processes(Path(folder), os.environ if environ is None else environ) as processes:
            network = LocalNetwork(Path(folder), processes)
            with closing(network):
                await network.start_reducer()
                await network.start_combiners(combiners)
                await network.start_clients(clients, warm=warm)
                yield network
