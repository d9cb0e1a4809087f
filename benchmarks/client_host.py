"""A process that hosts many real clients, for networks of more sites than a machine has room for processes.

Each is a :class:`runnel.client.agent.ClientAgent` with a state folder, a connection and a data file of its own, and
runs its entry points as processes as any client does. They share an event loop, and one warm runtime that runs all of
them from one unpacked copy of the package, so that one zygote serves them all.

    python client_host.py --network HOST:PORT --state DIR --sites DIR --first 1 --last 50
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import structlog

from runnel.client.agent import ClientAgent
from runnel.client.audit import AUDIT_FILE, AuditLog
from runnel.client.gate import Gate
from runnel.client.policy_file import default_policy
from runnel.client.reviews import Reviews
from runnel.client.runtimes import (
    Call,
    Finished,
    LineSink,
    PackageFiles,
    Prepared,
    ProcessRuntime,
    Runtime,
    site_variables,
)
from runnel.common.allocator import tune_allocator
from runnel.common.disk import state_folder
from runnel.common.endpoints import remove_endpoints, write_endpoints
from runnel.common.lifetime import main_process, run_until_signal
from runnel.common.logs import setup_logs
from runnel.common.protocol import Hello, NodeKind
from runnel.demo.processes import ONE_THREAD
from runnel.transport import UplinkLink
from runnel.transport.way_up import load_or_create_identity

log = structlog.get_logger()


class SharedCopies:
    """Runs every package from the copy that was prepared first, whoever unpacked it."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._prepared: dict[str, Prepared] = {}
        self._turn = asyncio.Lock()

    async def prepare(self, package: PackageFiles, say: LineSink) -> Prepared:
        """Prepare the first copy of a package; see :meth:`Runtime.prepare`."""
        async with self._turn:
            if package.digest not in self._prepared:
                self._prepared[package.digest] = await self._runtime.prepare(package, say)
            return self._prepared[package.digest]

    async def run(self, prepared: Prepared, call: Call, say: LineSink) -> Finished:
        """Run one entry point; see :meth:`Runtime.run`."""
        return await self._runtime.run(prepared, call, say)


async def host(network: str, state: Path, sites: Path, numbers: Sequence[int], stop: asyncio.Event) -> None:
    """Keep the clients of these numbers attached until ``stop`` is set; then end at once what they do."""
    await asyncio.to_thread(state_folder, state)
    async with ProcessRuntime(environments=state / "environments", environ=os.environ, warm=True) as processes:
        runtime = SharedCopies(processes)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(_stay(await asyncio.to_thread(_agent, number, network, state, sites, runtime)))
                    for number in numbers
                ]
                write_endpoints(state)
                log.info("ready", network=network, clients=len(tasks))
                await stop.wait()
                for task in tasks:
                    task.cancel()
        finally:
            remove_endpoints(state)


async def _stay(agent: ClientAgent) -> None:
    async with agent:
        await agent.run()


def _agent(number: int, network: str, state: Path, sites: Path, runtime: Runtime) -> ClientAgent:
    own = state / f"client-{number}"
    state_folder(own)
    identity = load_or_create_identity(own, kind="client", name=f"client-{number}")

    def link(hello: Callable[[], Hello]) -> UplinkLink:
        return UplinkLink(
            network, name=identity.name, node_id=identity.node_id, kind=NodeKind.CLIENT, token=None, hello=hello
        )

    return ClientAgent(
        name=identity.name,
        node_id=identity.node_id,
        version=version("runnel"),
        state=own,
        link_factory=link,
        runtime=runtime,
        gate=Gate(
            client=identity.name,
            site=default_policy(loopback=True),
            reviews=Reviews(own),
            audit=AuditLog(own / AUDIT_FILE),
        ),
        databases={"default": sites / f"site-{number}.npz"},
        variables=site_variables(["=".join(item) for item in ONE_THREAD.items()], os.environ),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run until a signal; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", metavar="HOST:PORT", required=True, help="the network's reducer")
    parser.add_argument("--state", type=Path, required=True, help="folder of all these clients' state")
    parser.add_argument("--sites", type=Path, required=True, help="folder with site-1.npz and so on")
    parser.add_argument("--first", type=int, required=True, help="number of the first client")
    parser.add_argument("--last", type=int, required=True, help="number of the last client")
    wanted = parser.parse_args(argv)
    setup_logs()
    tune_allocator()
    state, sites = wanted.state.absolute(), wanted.sites.absolute()
    numbers = range(wanted.first, wanted.last + 1)
    return main_process(lambda: run_until_signal(lambda stop: host(wanted.network, state, sites, numbers, stop)))


if __name__ == "__main__":
    sys.exit(main())
