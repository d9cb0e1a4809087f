"""A network of a run's own, in which its container reaches this client and nothing beyond this machine."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Mapping

import aiohttp
import structlog
from aiodocker.exceptions import DockerError
from aiodocker.networks import DockerNetwork

from runnel.client.runtimes.docker_container import whole
from runnel.client.runtimes.docker_engine import Engine, engine_errors
from runnel.client.runtimes.docker_files import own_container
from runnel.client.tasks.contract import RunNetwork
from runnel.common.blobs import in_thread
from runnel.common.errors import EnvironmentFailed

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def run_network(engine: Engine, run_id: str, labels: Mapping[str, str]) -> AsyncIterator[RunNetwork]:
    """Make an internal network, which leads nowhere, and remove it at the end.

    A client that is itself a container of this engine joins it; of any other the machine's end of the network is its
    address. ``labels``: by which it is found again if this client is killed.

    Raises:
        EnvironmentFailed: the engine refused or is gone, or is on another machine.
    """
    own = await in_thread(own_container)
    if own is None and not engine.host.startswith("unix://"):
        raise EnvironmentFailed(
            f"Containers of the Docker engine at {engine.host} do not reach this client.",
            hint="Central functions and ways out (tasks.egress) need a client on the machine of its engine.",
        )
    config = {
        "Name": f"runnel-{run_id}-{secrets.token_hex(4)}",
        "Driver": "bridge",
        "Internal": True,
        "CheckDuplicate": True,
        "Labels": dict(labels),
    }
    with engine_errors("make a network for a run"):
        network = await engine.docker.networks.create(config)
    joined = False
    try:
        with engine_errors("join the network of a run"):
            if own is None:
                address = (await network.show())["IPAM"]["Config"][0]["Gateway"]
            else:
                await network.connect({"Container": own})
                joined = True
                shown = await engine.docker.containers.container(own).show()
                address = shown["NetworkSettings"]["Networks"][config["Name"]]["IPAddress"]
        yield RunNetwork(name=str(config["Name"]), address=address.partition("/")[0])
    finally:
        await whole(_removed(network, own if joined else None))


async def _removed(network: DockerNetwork, joined: str | None) -> None:
    if joined is not None:
        await _logged(network.disconnect({"Container": joined, "Force": True}), network)
    await _logged(network.delete(), network)


async def _logged(removal: Awaitable[object], network: DockerNetwork) -> None:
    try:
        await removal
    except (DockerError, aiohttp.ClientError, ConnectionError) as error:
        # It holds nothing, and is removed at the next start.
        log.warning("the network of a run could not be removed", network=network.id, error=str(error))
