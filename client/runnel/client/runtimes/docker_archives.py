"""Files on their way into a container and out of it: streams of tar, the form in which engines take and give them."""

from __future__ import annotations

import os
import stat
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import aiohttp
from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError

from runnel.client.runtimes.docker_engine import Engine, engine_errors
from runnel.common.blobs import in_thread, storage_errors
from runnel.common.errors import BadOutput

_CHUNK_BYTES = 1 << 20
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A file or folder of the client and its name in an archive."""

    path: Path
    name: str


def everything_in(folder: Path, name: str) -> list[Sent]:
    """Return all that is in ``folder``, which comes first itself, as ``name``. Blocks."""
    found = [Sent(path=folder, name=name)]
    for path in sorted(folder.rglob("*")):
        if stat.S_IFMT(path.lstat().st_mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            found.append(Sent(path=path, name=f"{name}/{path.relative_to(folder).as_posix()}"))
    return found


async def put(container: DockerContainer, folder: PurePosixPath, sent: Iterable[Sent], owner: tuple[int, int]) -> None:
    """Write ``sent`` to ``folder`` of ``container``; all of it belongs to ``owner``.

    Raises:
        EnvironmentFailed: the engine refused, or is gone.
    """
    untyped: Any = container
    with engine_errors("take the files of a run"):
        await untyped.put_archive(str(folder), _stream(sent, owner))


async def _stream(sent: Iterable[Sent], owner: tuple[int, int]) -> AsyncIterator[bytes]:
    for each in sent:
        info = await in_thread(_describe, each, owner)
        yield info.tobuf(tarfile.PAX_FORMAT)
        if info.isreg():
            with each.path.open("rb") as file:
                left = info.size
                while left:
                    chunk = await in_thread(file.read, min(left, _CHUNK_BYTES))
                    if not chunk:  # it has become shorter: what was announced has to come
                        chunk = bytes(min(left, _CHUNK_BYTES))
                    left -= len(chunk)
                    yield chunk
            yield bytes(-info.size % _BLOCK)
    yield bytes(2 * _BLOCK)


def _describe(each: Sent, owner: tuple[int, int]) -> tarfile.TarInfo:
    status = each.path.lstat()
    info = tarfile.TarInfo(each.name)
    info.uid, info.gid = owner
    info.mtime = int(status.st_mtime)
    info.mode = stat.S_IMODE(status.st_mode) & 0o777 | 0o600
    if stat.S_ISDIR(status.st_mode):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    elif stat.S_ISLNK(status.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(each.path)  # noqa: PTH115 (as it is written)
    else:
        info.size = status.st_size
    return info


async def take(engine: Engine, container: str, folder: PurePosixPath, target: Path, *, most: int) -> None:
    """Bring what is in ``folder`` of a container to ``target``, but for what is there already.

    What came from a container is not trusted: nothing is written outside of ``target``, and whatever is neither file
    nor folder becomes a pipe, so that it is seen to be something else and leads nowhere.

    Raises:
        EnvironmentFailed: the engine refused, or is gone.
        BadOutput: it is more than ``most`` bytes, or no archive.
        StorageFull: no room for it.
    """
    url = f"{engine.docker.docker_host}/{engine.docker.api_version}/containers/{container}/archive"
    with storage_errors(target):
        spool: IO[bytes] = await in_thread(tempfile.TemporaryFile, "w+b", dir=target.parent)
        with spool, engine_errors("give the files of a run"):
            async with engine.docker.session.get(url, params={"path": str(folder)}) as response:
                if response.status != 200:
                    raise DockerError(response.status, await response.text())
                await _receive(response.content, spool, most)
            try:
                await in_thread(_extract, spool, target)
            except tarfile.TarError as error:
                raise BadOutput(f"What the engine gave as the files of a run is no archive: {error}.") from error


async def _receive(content: aiohttp.StreamReader, spool: IO[bytes], most: int) -> None:
    size = 0
    # Names and ends of files take room too.
    limit = most + most // 4 + _CHUNK_BYTES
    async for chunk in content.iter_chunked(_CHUNK_BYTES):
        size += len(chunk)
        if size > limit:
            raise BadOutput(f"The run wrote more than the {most:,} bytes that it may.", limit="disk")
        await in_thread(spool.write, chunk)


def _extract(spool: IO[bytes], target: Path) -> None:
    spool.seek(0)
    with tarfile.open(fileobj=spool, mode="r:") as archive:
        for member in archive:
            # The archive begins with the folder's own name.
            parts = PurePosixPath(member.name).parts[1:]
            path = target.joinpath(*parts)
            if not parts or ".." in parts or os.path.lexists(path) or not path.parent.is_dir():
                continue
            if member.isdir():
                path.mkdir()
            elif member.isreg():
                _write(archive, member, path)
            elif member.islnk() and (source := _second_name(member, target)) is not None:
                path.hardlink_to(source)
            else:
                os.mkfifo(path)


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    content = archive.extractfile(member)
    if content is None:
        raise AssertionError("it is a file")
    with content, path.open("xb") as file:
        while chunk := content.read(_CHUNK_BYTES):
            file.write(chunk)


def _second_name(member: tarfile.TarInfo, target: Path) -> Path | None:
    """Return the file that came before, of which ``member`` is another name."""
    parts = PurePosixPath(member.linkname).parts[1:]
    source = target.joinpath(*parts)
    if not parts or ".." in parts or not os.path.lexists(source):
        return None
    return source if stat.S_ISREG(source.lstat().st_mode) else None
