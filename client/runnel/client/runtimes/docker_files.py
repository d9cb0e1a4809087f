"""How a container comes to see files of the client: mounted, from wherever the engine's host has them."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from aiodocker.exceptions import DockerError

from runnel.client.domain.cage import Cage
from runnel.client.runtimes.docker_engine import Engine, engine_errors
from runnel.client.runtimes.docker_paths import Layout, Place
from runnel.common.blobs import in_thread
from runnel.common.errors import BadSettings

_MOUNTINFO = Path("/proc/self/mountinfo")
# Mounted at its own place: while an engine copies, the files of its containers are mounted elsewhere on its host too.
_OWN_CONTAINER = re.compile(r"/containers/([0-9a-f]{64})/(hostname|hosts|resolv\.conf) /etc/\2 ")
# A file takes room even if it is empty.
_LEAST_FILE_BYTES = 4096


class FileSharing(Enum):
    """How files go to containers and back: as mounts of what the engine's host has, or as copies over its socket."""

    MOUNT = "mount"
    COPY = "copy"


class Placed(Protocol):
    """The files of one run, where its container sees them: ``mounts`` in the engine's form."""

    mounts: list[dict[str, Any]]

    async def over(self) -> bool:
        """Whether the run has written more than it may."""
        ...

    async def take(self) -> None:
        """Bring back what the run wrote, when it has ended well.

        Raises:
            BadOutput: it is more than it may.
        """
        ...


class Files(Protocol):
    """Makes files of the client seen in containers."""

    async def prepare(self, package: Path, image: str) -> None:
        """Make the unpacked ``package`` ready to be seen by containers of ``image``.

        Raises:
            EnvironmentFailed: the engine refused, or is gone.
        """
        ...

    def placed(self, layout: Layout, image: str) -> AbstractAsyncContextManager[Placed]:
        """Return what gives the files of a run to a container of ``image`` for as long as it is entered.

        Raises:
            EnvironmentFailed: the engine refused, or is gone.
            BadSettings: the engine can't have these files in this way.
        """
        ...

    def limit(self, cage: Cage) -> None:
        """Hold runs to another cage from now on."""
        ...

    async def close(self) -> None:
        """Remove what was made for containers to come."""
        ...


@dataclass(slots=True)
class _Mounted:
    mounts: list[dict[str, Any]]
    watched: tuple[Path, ...]
    most: int

    async def over(self) -> bool:
        return await in_thread(_over, self.watched, self.most)

    async def take(self) -> None:
        """Do nothing: it is where it should be."""


class MountedFiles:
    """Mounts files from the engine's host.

    Args:
        engine: on whose host they are.
        view: where the paths of this client are on that host.
        owner: uid and gid of the processes in containers.
        most: bytes that a run may write.
    """

    def __init__(self, engine: Engine, view: HostView, *, owner: tuple[int, int], most: int) -> None:
        self._engine = engine
        self._view = view
        self._owner = owner
        self._most = most

    def limit(self, cage: Cage) -> None:
        """See :meth:`Files.limit`."""
        self._most = cage.disk_bytes

    async def prepare(self, package: Path, image: str) -> None:
        """Let those who see the package read it."""
        self._view.of(package)
        await in_thread(make_readable, package)

    @asynccontextmanager
    async def placed(self, layout: Layout, image: str) -> AsyncIterator[Placed]:
        """Give what is to be mounted for one run; its processes own what they may write."""
        yield await self.mounted(layout.places)

    async def mounted(self, places: Sequence[Place]) -> Placed:
        """Return what gives ``places`` to a container; its processes own what they may write."""
        writable = tuple(place.outside for place in places if place.writable)
        for path in writable:
            await in_thread(hand_over, path, self._owner)
        return _Mounted([self._mount(place) for place in places], writable, self._most)

    async def close(self) -> None:
        """Do nothing."""

    def _mount(self, place: Place) -> dict[str, Any]:
        # What is mounted below would stay writable: it is left out, or made read-only too where the engine can do that
        # (it can't in its own folder, where volumes of a client that is a container are).
        options: dict[str, Any] = {"NonRecursive": True}
        if not place.writable and self._engine.facts.deep_read_only and self._view.mounts is None:
            options = {"ReadOnlyForceRecursive": True, "Propagation": "rprivate"}
        return {
            "Type": "bind",
            "Source": str(self._view.of(place.outside)),
            "Target": str(place.inside),
            "ReadOnly": not place.writable,
            "BindOptions": options,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """Where the paths of this client are on the engine's host.

    Args:
        mounts: what a client that is itself a container has from there: its own path to the host's. None: this client
            is no container and has the host's paths.
    """

    mounts: Mapping[Path, Path] | None = None

    def shares(self, path: Path) -> bool:
        """Whether the host has ``path``."""
        return self.mounts is None or any(own in self.mounts for own in (path, *path.parents))

    def of(self, path: Path) -> Path:
        """Return what ``path`` is on the host.

        Raises:
            BadSettings: it is in the client's own container only.
        """
        if self.mounts is None:
            return path
        for own in (path, *path.parents):
            if own in self.mounts:
                return self.mounts[own] / path.relative_to(own)
        raise BadSettings(
            f"{path} is in this client's own container, where its Docker engine can't mount it from.",
            hint="Put the state folder and the data on volumes of the client, or set --docker-files copy.",
            path=str(path),
        )


async def host_view(engine: Engine) -> HostView | None:
    """Return how the engine's host sees this client's paths; None: it doesn't share them.

    A client that is a container of this very engine learns from it what is mounted where.
    """
    own = await in_thread(own_container)
    if own is None:
        return HostView() if engine.host.startswith("unix://") else None
    try:
        with engine_errors("tell about this client's own container"):
            shown = await engine.docker.containers.container(own).show()
    except Exception as error:
        if isinstance(error.__cause__, DockerError) and error.__cause__.status == 404:
            return None  # a container of another engine
        raise
    return HostView(
        mounts={
            Path(mount["Destination"]): Path(mount["Source"])
            for mount in shown["Mounts"]
            if mount["Type"] in ("bind", "volume") and mount.get("Source")
        }
    )


def own_container() -> str | None:
    """Return the identity of the container that this process is in, which its mounts tell."""
    try:
        return container_of(_MOUNTINFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:  # not Linux
        return None


def container_of(mountinfo: str) -> str | None:
    """Return the identity of the container whose mounts these are, in the form of proc(5); None: it is none."""
    found = _OWN_CONTAINER.search(mountinfo)
    return found[1] if found else None


def hand_over(folder: Path, owner: tuple[int, int]) -> None:
    """Let ``owner`` write ``folder`` and all that is in it, and nothing else; links are not followed. Blocks.

    A file that has another name elsewhere, such as a cached model that is lent, is replaced by a copy: a run may write
    to it, and set back the time that would tell.

    Raises:
        BadSettings: this client may not give files away.
    """
    mine = os.geteuid()
    if mine not in (0, owner[0]):
        raise BadSettings(
            f"This client runs as user {mine} and can't let user {owner[0]} write the folders of its runs.",
            hint="Leave the user of the cage to the client, run it as root, or set --docker-files copy.",
        )
    found = [folder]
    for path, folders, files in os.walk(folder):
        found += [Path(path) / name for name in (*folders, *files)]
    for one in found:
        status = one.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            copy = one.with_name(f".{secrets.token_hex(8)}")
            shutil.copyfile(one, copy)
            copy.rename(one)
        if mine != owner[0]:
            os.chown(one, *owner, follow_symlinks=False)


def make_readable(folder: Path) -> None:
    """Let everybody who sees ``folder`` read it; the state folder above keeps others of this machine out. Blocks."""
    for path, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            one = Path(path) / name
            if not one.is_symlink():
                mode = one.stat().st_mode
                one.chmod(mode | (0o555 if one.is_dir() or mode & 0o100 else 0o444))


def _over(folders: Iterable[Path], most: int) -> bool:
    """Whether there is more than ``most`` bytes in ``folders``; looks no further than it has to."""
    used = 0
    left = [str(folder) for folder in folders]
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    used += max(status.st_blocks * 512, _LEAST_FILE_BYTES)
                    if used > most:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):  # removed meanwhile
            continue
        except OSError:  # its name is too long, or it has no rights: what can't be looked at may be anything
            return True
    return False
