"""A whole network as real processes of this machine, started as people start it, for measuring."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, TypeVar

from runnel.common.endpoints import read_endpoints
from runnel.common.errors import DeadlineExceeded, RunnelError
from runnel.demo.commands import combiner_arguments, reducer_arguments, runnel_argv
from runnel.demo.processes import ONE_THREAD, Processes, own_processes
from runnel.sdk import Network, Session

READY_S = 60.0
_LOOK_S = 0.2

T = TypeVar("T")


class LocalNetwork:
    """A running network; made by :func:`local_network`.

    ``pids``: of the components by name, ``reducer``, ``combiner-1`` … and ``client-1`` …; ``starting_s``: seconds from
    the start of each to its line *ready*.
    """

    def __init__(self, work: Path, processes: Processes) -> None:
        self.work = work
        self.pids: dict[str, int] = {}
        self.starting_s: dict[str, float] = {}
        self.rpc = ""
        self._processes = processes
        self._http: Network | None = None
        self._asking = asyncio.Lock()

    def pids_of(self, role: str) -> list[int]:
        """Return the processes of a role: ``reducer``, ``combiner`` or ``client``."""
        return [pid for name, pid in self.pids.items() if name.partition("-")[0] == role]

    async def start_reducer(self) -> None:
        """Start the reducer; it is the first."""
        await self._start("reducer", reducer_arguments())
        endpoints = read_endpoints(self.work / "reducer")
        if endpoints.rpc is None or endpoints.http is None:
            raise AssertionError("a reducer serves both")
        self.rpc, self._http = endpoints.rpc, Network(f"http://{endpoints.http}")

    async def start_combiners(self, count: int) -> None:
        """Start combiners and wait until they are attached."""
        for n in range(1, count + 1):
            await self._start(f"combiner-{n}", combiner_arguments(f"combiner-{n}", self.rpc))
        await self.until_attached(combiners=count)

    async def start_clients(self, count: int) -> None:
        """Start clients, whose entry points compute in one thread, and wait until they are attached."""
        variables = [word for item in ONE_THREAD.items() for word in ("--env", "=".join(item))]
        for n in range(1, count + 1):
            name = f"client-{n}"
            own = ["client", "--network", self.rpc, "--state", name, "--name", name, *variables, "--insecure"]
            await self._start(name, own)
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

    async def _start(self, name: str, arguments: list[str]) -> None:
        began = time.monotonic()
        await self._processes.start(name, [*runnel_argv(), *arguments], timeout_s=READY_S)
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
    *, combiners: int = 0, clients: int = 0, environ: Mapping[str, str] | None = None
) -> AsyncIterator[LocalNetwork]:
    """Yield a network of so many components, all attached; nothing of it is left afterwards, on disk or alive."""
    with tempfile.TemporaryDirectory(prefix="runnel-bench-") as folder:
        async with own_processes(Path(folder), os.environ if environ is None else environ) as processes:
            network = LocalNetwork(Path(folder), processes)
            with closing(network):
                await network.start_reducer()
                await network.start_combiners(combiners)
                await network.start_clients(clients)
                yield network
