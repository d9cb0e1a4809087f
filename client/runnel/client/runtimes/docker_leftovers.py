"""What a client that was killed has left at its engine: known by labels, removed at its next start."""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import structlog
from aiodocker.exceptions import DockerError
from aiodocker.networks import DockerNetwork
from aiodocker.volumes import DockerVolume

from runnel.client.runtimes.docker_engine import Engine, engine_errors

LABEL_CLIENT = "runnel.client"
LABEL_STATE = "runnel.state"

log = structlog.get_logger()


def labels_of(client: str, state: Path) -> dict[str, str]:
    """Return the labels of all that the client with the identity ``client`` and this state folder makes."""
    return {LABEL_CLIENT: client, LABEL_STATE: str(state)}


async def sweep(engine: Engine, labels: dict[str, str]) -> int:
    """Remove the containers, networks and volumes with exactly these ``labels``; return how many there were.

    Raises:
        EnvironmentFailed: the engine refused, or is gone.
    """
    wanted = {"label": [f"{name}={value}" for name, value in labels.items()]}
    with engine_errors("remove what an earlier start of this client left"):
        found = await engine.docker.containers.list(all=True, filters=wanted)
        for container in found:
            await _gone(container.delete(force=True, v=True))
        networks = await engine.docker.networks.list(filters=wanted)
        for each in networks:
            await _remove_network(engine, each["Id"])
        # The library has no types here.
        all_volumes: Any = engine.docker.volumes
        volumes = (await all_volumes.list(filters=wanted)).get("Volumes") or []
        for volume in volumes:
            await remove_volume(engine, volume["Name"])
    left = len(found) + len(networks) + len(volumes)
    if left:
        log.info("containers of an earlier start were removed", containers=len(found), volumes=len(volumes))
    return left


async def _remove_network(engine: Engine, identity: str) -> None:
    network: Any = DockerNetwork
    found = network(engine.docker, identity)
    for joined in (await found.show()).get("Containers") or ():
        await _gone(found.disconnect({"Container": joined, "Force": True}))
    await _gone(found.delete())


async def remove_volume(engine: Engine, name: str) -> None:
    """Remove a volume if it is there.

    Raises:
        DockerError: the engine refused.
    """
    volume: Any = DockerVolume
    await _gone(volume(engine.docker, name).delete(force=True))


async def _gone(removal: Awaitable[object]) -> None:
    try:
        await removal
    except DockerError as error:
        if error.status != 404:  # ended by itself meanwhile
            raise
