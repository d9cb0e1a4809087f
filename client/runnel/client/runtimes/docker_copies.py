"""Files for an engine that has none of the client's paths: copies on volumes, over the engine's socket."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import shutil
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import structlog

from runnel.client.domain.cage import Cage
from runnel.client.runtimes.docker_archives import Sent, everything_in, put, take
from runnel.client.runtimes.docker_container import Container, container_config, whole
from runnel.client.runtimes.docker_engine import Engine, engine_errors
from runnel.client.runtimes.docker_files import Placed
from runnel.client.runtimes.docker_leftovers import remove_volume, sweep
from runnel.client.runtimes.docker_paths import PACKAGE, RUN, Layout, Place
from runnel.client.runtimes.log_capture import LogCapture
from runnel.client.runtimes.runtime import STARTED_MARK, Limits
from runnel.common.blobs import in_thread
from runnel.common.errors import EnvironmentFailed

# Does nothing until it is removed: nobody writes to its standard input.
_WAIT = ("/bin/sh", "-c", "read -r end")

log = structlog.get_logger()


class CopiedFiles:
    """Copies files to volumes of the engine.

    A package has a volume from its preparation to the end of the client, data have one from their first use on; what
    has changed is copied anew. The folder of a run is a volume in memory, as large as the run may write: no other kind
    has a limit. Such a volume is empty again when nobody uses it, so a second container, which only waits, keeps it
    from before the run until its files were taken.

    Args:
        engine: that gets the files.
        owner: uid and gid of the processes in containers.
        cage: what containers may take.
        labels: of volumes and containers.
    """

    def __init__(self, engine: Engine, *, owner: tuple[int, int], cage: Cage, labels: Mapping[str, str]) -> None:
        self._engine = engine
        self._owner = owner
        self._cage = cage
        self._labels = dict(labels)
        self._copies: dict[Path, _Copy] = {}
        self._turn = asyncio.Lock()

    def limit(self, cage: Cage) -> None:
        """See :meth:`Files.limit`."""
        self._cage = cage

    async def prepare(self, package: Path, image: str) -> None:
        """Copy the package, unless it was copied as it is; what ``startup`` has made stays with its copy."""
        await self._copy_of(package, PACKAGE, image)

    @asynccontextmanager
    async def placed(self, layout: Layout, image: str) -> AsyncIterator[Placed]:
        """Copy what the run is given, and keep what it writes until it is taken."""
        package = self._copies[layout.package.outside].volume
        mounts = [_mount(package, layout.package.inside, writable=layout.package.writable)]
        for place in layout.data:
            folder = place.inside if await in_thread(place.outside.is_dir) else place.inside.parent
            mounts.append(_mount(await self._copy_of(place.outside, folder, image), folder, writable=False))
        async with self._run_volume() as volume:
            run = _mount(volume, RUN, writable=True)
            async with self._container(image, _WAIT, [run]) as keeper:
                await keeper.start()
                given = await in_thread(everything_in, layout.run.outside, ".")
                await put(keeper.handle, RUN, given, self._owner)
                yield _Copied([*mounts, run], self._engine, keeper, layout.run.outside, self._cage.disk_bytes)

    @asynccontextmanager
    async def seen(self, places: Sequence[Place], image: str) -> AsyncIterator[Placed]:
        """Copy ``places`` for one container, and bring back those that it may write when they are taken.

        A file is seen alone in its folder; one that may be written can't be had in this way.

        Raises:
            EnvironmentFailed: the engine refused, is gone, or has no way for one of the places.
        """
        mounts: dict[PurePosixPath, dict[str, Any]] = {}
        async with AsyncExitStack() as stack:
            written = [place for place in places if place.writable]
            for place in places:
                is_folder = await in_thread(place.outside.is_dir)
                folder = place.inside if is_folder else place.inside.parent
                if not folder.name or folder in mounts or not (is_folder or not place.writable):
                    raise EnvironmentFailed(
                        f"{place.inside} can't be put into a container by copying.",
                        hint="Only folders, and one file alone in its folder, can: run this client with the engine's"
                        " own files, --docker-files mount.",
                    )
                if place.writable:
                    volume = await stack.enter_async_context(self._run_volume())
                else:
                    volume = await self._copy_of(place.outside, folder, image)
                    stack.push_async_callback(self._forget, volume)
                mounts[folder] = _mount(volume, folder, writable=place.writable)
            kept = [mounts[place.inside] for place in written]
            keeper = await stack.enter_async_context(self._container(image, _WAIT, kept))
            await keeper.start()
            for place in written:
                given = await in_thread(everything_in, place.outside, ".")
                await put(keeper.handle, place.inside, given, self._owner)
            yield _CopiedPlaces(list(mounts.values()), self._engine, keeper, written, self._cage.disk_bytes)

    async def close(self) -> None:
        """Remove all volumes."""
        try:
            await sweep(self._engine, self._labels)
        except EnvironmentFailed as error:  # the next start tries again
            log.warning("volumes could not be removed", error=str(error))

    @asynccontextmanager
    async def _run_volume(self) -> AsyncIterator[str]:
        size, (uid, gid) = self._cage.disk_bytes, self._owner
        options = {"type": "tmpfs", "device": "tmpfs", "o": f"size={size},mode=0700,uid={uid},gid={gid}"}
        async with self._volume(options) as made:
            try:
                yield made
            finally:
                await whole(self._forget(made))

    @asynccontextmanager
    async def _volume(self, options: Mapping[str, str] | None = None) -> AsyncIterator[str]:
        """A new volume, which is removed if the block fails."""
        volumes: Any = self._engine.docker.volumes
        name = f"runnel-{secrets.token_hex(8)}"
        wanted = {"Name": name, "Driver": "local", "DriverOpts": dict(options or {}), "Labels": self._labels}
        try:
            with engine_errors("make a volume"):
                await volumes.create(wanted)
            yield name
        except BaseException:
            await whole(self._forget(name))
            raise

    async def _forget(self, volume: str) -> None:
        try:
            with engine_errors("remove a volume"):
                await remove_volume(self._engine, volume)
        except EnvironmentFailed as error:  # the next start tries again
            log.warning("a volume could not be removed", volume=volume, error=str(error))

    @asynccontextmanager
    async def _container(
        self, image: str, argv: Sequence[str], mounts: Sequence[Mapping[str, Any]], *, runs: bool = True
    ) -> AsyncIterator[Container]:
        """A container, as caged as any, through which volumes are reached; nothing ever runs in one that is not to."""
        config = container_config(
            image=image,
            argv=argv,
            env={},
            folder="/",
            mounts=mounts,
            cage=self._cage,
            owner=self._owner,
            limits=Limits(),
            cpus=self._engine.facts.cpus,
            labels=self._labels,
        )
        config["OpenStdin"] = True
        # An engine lets nobody write beside the volumes of a container whose root is read-only.
        config["HostConfig"]["ReadonlyRootfs"] = runs
        container = Container(
            engine=self._engine,
            name=f"runnel-files-{secrets.token_hex(8)}",
            config=config,
            capture=LogCapture(lambda _stream, _text: None),
            grace_s=0.0,
            full=_never,
        )
        try:
            await container.create()
            yield container
        finally:
            try:
                await container.end(politely=False)
            finally:
                await container.remove()

    async def _copy_of(self, path: Path, folder: PurePosixPath, image: str) -> str:
        """Return the volume that has ``path``, a folder or a file, as it is now; it is to be mounted at ``folder``."""
        async with self._turn:
            sent = await in_thread(_to_send, path, folder.name)
            now = await in_thread(_fingerprint, sent)
            known = self._copies.get(path)
            if known is not None and known.fingerprint == now:
                return known.volume
            log.info("copying to the docker engine", path=str(path))
            async with (
                self._volume() as volume,
                self._container(image, _WAIT, [_mount(volume, folder, writable=True)], runs=False) as way_in,
            ):
                # From above it: a volume's own folder takes its owner and rights only as a member of an archive.
                await put(way_in.handle, folder.parent, sent, self._owner)
            self._copies[path] = _Copy(volume=volume, fingerprint=now)
            if known is not None:
                await self._forget(known.volume)
            return volume


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    volume: str
    fingerprint: str


@dataclass(slots=True)
class _Copied:
    mounts: list[dict[str, Any]]
    engine: Engine
    keeper: Container
    target: Path
    most: int

    async def over(self) -> bool:
        """Return False: the volume itself ends at its limit."""
        return False

    async def take(self) -> None:
        await take(self.engine, self.keeper.handle.id, RUN, self.target, most=self.most)


@dataclass(slots=True)
class _CopiedPlaces:
    mounts: list[dict[str, Any]]
    engine: Engine
    keeper: Container
    written: Sequence[Place]
    most: int

    async def over(self) -> bool:
        """Return False: the volumes themselves end at their limit."""
        return False

    async def take(self) -> None:
        left = self.most
        for place in self.written:
            fresh = place.outside.with_name(f".{secrets.token_hex(8)}")
            await in_thread(fresh.mkdir)
            await take(self.engine, self.keeper.handle.id, place.inside, fresh, most=left)
            await in_thread(shutil.rmtree, place.outside)
            await in_thread(fresh.rename, place.outside)


def _mount(volume: str, target: PurePosixPath, *, writable: bool) -> dict[str, Any]:
    return {
        "Type": "volume",
        "Source": volume,
        "Target": str(target),
        "ReadOnly": not writable,
        # What an image has at this path is not copied in.
        "VolumeOptions": {"NoCopy": True},
    }


def _to_send(path: Path, name: str) -> list[Sent]:
    """Return ``path`` as what fills the folder ``name``."""
    if path.is_dir():
        return everything_in(path, name)
    return [Sent(path=path, name=f"{name}/{path.name}")]


def _fingerprint(files: Sequence[Sent]) -> str:
    """Return what is another when a file is changed, added or removed, without reading any. Blocks."""
    found = hashlib.sha256()
    for each in files:
        if each.path.name == STARTED_MARK:  # the client's own
            continue
        status = each.path.lstat()
        line = f"{each.name}\0{status.st_mode}"
        # A folder changes with what is in it, which is looked at.
        if not stat.S_ISDIR(status.st_mode):
            line += f"\0{status.st_size}\0{status.st_mtime_ns}"
        found.update(f"{line}\n".encode(errors="surrogateescape"))
    return found.hexdigest()


async def _never() -> bool:
    return False
