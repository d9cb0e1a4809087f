"""How files of a run go to its containers: mounted from the engine's host, or copied over its socket."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import structlog

from runnel.client.domain.cage import Cage
from runnel.client.runtimes.docker_copies import CopiedFiles
from runnel.client.runtimes.docker_engine import Engine
from runnel.client.runtimes.docker_files import FileSharing, HostView, MountedFiles, Placed, host_view
from runnel.client.tasks.contract import Mounted
from runnel.client.tasks.placement import places
from runnel.common.errors import BadSettings

log = structlog.get_logger()


class FileWay(Protocol):
    """Makes files of a run seen in a container."""

    def placed(self, mounts: Sequence[Mounted], image: str, cage: Cage) -> AbstractAsyncContextManager[Placed]:
        """Return what gives ``mounts`` to a container of ``image`` for as long as it is entered.

        Raises:
            EnvironmentFailed: the engine refused, or is gone.
            InvalidInput: something is to be where nothing can be.
        """
        ...


class MountedWay:
    """Mounts; ``view``: where the engine's host has the client's files, ``owner``: the client's uid and gid."""

    def __init__(self, engine: Engine, view: HostView, owner: tuple[int, int]) -> None:
        self._engine = engine
        self._view = view
        self._owner = owner

    @asynccontextmanager
    async def placed(self, mounts: Sequence[Mounted], image: str, cage: Cage) -> AsyncIterator[Placed]:
        """See :meth:`FileWay.placed`."""
        files = MountedFiles(self._engine, self._view, owner=cage.owner(self._owner), most=cage.disk_bytes)
        yield await files.mounted(places(mounts))


class CopiedWay:
    """Copies, for each container anew; ``labels`` of its volumes, ``owner``: the client's uid and gid."""

    def __init__(self, engine: Engine, labels: Mapping[str, str], owner: tuple[int, int]) -> None:
        self._engine = engine
        self._labels = labels
        self._owner = owner

    @asynccontextmanager
    async def placed(self, mounts: Sequence[Mounted], image: str, cage: Cage) -> AsyncIterator[Placed]:
        """See :meth:`FileWay.placed`."""
        # What carries files has no network, whatever the run has.
        alone = dataclasses.replace(cage, network="none")
        files = CopiedFiles(self._engine, owner=cage.owner(self._owner), cage=alone, labels=self._labels)
        async with files.seen(places(mounts), image) as placed:
            yield placed


async def choose_way(
    engine: Engine, *, state: Path, sharing: FileSharing | None, labels: Mapping[str, str], owner: tuple[int, int]
) -> FileWay:
    """Return how files go to containers; ``sharing`` None: as mounts where the engine's host has them.

    Raises:
        BadSettings: they are to be mounted, and the engine's host is not known to have them.
        EnvironmentFailed: the engine is gone.
    """
    if sharing is not FileSharing.COPY:
        view = await host_view(engine)
        if view is not None and (sharing is not None or view.shares(state)):
            return MountedWay(engine, view, owner)
        if sharing is not None:
            raise BadSettings(
                f"The Docker engine at {engine.host} is not known to have this client's files to mount.",
                hint="Set --docker-files copy.",
            )
    log.info("files of tasks go to containers as copies", host=engine.host)
    return CopiedWay(engine, labels, owner)
