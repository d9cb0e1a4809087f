"""Files in folders that containers could write: nothing there is followed out of them, and only files are opened.

What a container leaves may be a link to any file of this machine, a pipe that blocks whoever opens it, or a tree that
changes while one looks. So each step of a path is opened by itself, from the folder before it, never through a link.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from runnel.common.errors import BadOutput

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DEPTH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A file below a folder: its path from there, and its open descriptor, which is the finder's for the moment."""

    path: PurePosixPath
    descriptor: int
    size_bytes: int
    mode: int


@contextlib.contextmanager
def open_beneath(root: Path, path: str | PurePosixPath) -> Iterator[BinaryIO | None]:
    """Open the regular file ``path`` below ``root`` to read it; None: there is no such file, or it is something else.

    Raises:
        ValueError: ``path`` leads up, or is absolute.
    """
    descriptor = _open(root, path, _FILE)
    if descriptor is None:
        yield None
        return
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        yield None
        return
    with os.fdopen(descriptor, "rb") as file:
        yield file


def read_beneath(root: Path, path: str | PurePosixPath, *, most: int) -> bytes | None:
    """Return the content of a file as :func:`open_beneath` finds it.

    Raises:
        BadOutput: it has more than ``most`` bytes.
    """
    with open_beneath(root, path) as file:
        if file is None:
            return None
        data = file.read(most + 1)
    if len(data) > most:
        raise BadOutput(f"The run wrote more than {most:,} bytes to {PurePosixPath(path).name}.", limit="output")
    return data


def write_beneath(root: Path, path: str | PurePosixPath, source: Path) -> bool:
    """Put the content of ``source`` into a new file ``path`` below ``root``, in place of whatever has that name.

    Folders on the way are made where they are missing.

    Returns:
        Whether that could be: what is on the way has to be folders, and no links.
    """
    parts = _parts(path)
    with contextlib.ExitStack() as stack:
        folder = None
        for length in range(len(parts)):
            if length:
                _make_folder(root, parts[:length])
            folder = _open(root, PurePosixPath(*parts[:length]), _FOLDER)
            if folder is None:
                return False
            stack.callback(os.close, folder)
        if folder is None:
            return False
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(parts[-1], dir_fd=folder)
            made = os.open(
                parts[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder
            )
        except OSError:  # a folder has the name, or the run made it again meanwhile: the run's own doing
            return False
        with os.fdopen(made, "wb") as target, source.open("rb") as file:
            while block := file.read(1 << 20):
                target.write(block)
    return True


def files_beneath(root: Path, path: str = "", *, most_files: int) -> Iterator[Found]:
    """Yield the regular files below the folder ``path`` of ``root``, by their paths from there, in order of names.

    Anything but files and folders is left out.

    Raises:
        BadOutput: there are more than ``most_files`` entries, or folders in folders deeper than 100.
    """
    left = most_files

    def walk(folder: int, path: PurePosixPath) -> Iterator[Found]:
        nonlocal left
        if len(path.parts) > _DEPTH:
            raise BadOutput(f"The run left folders in folders, more than {_DEPTH} deep.", limit="files")
        names = []
        with os.scandir(folder) as entries:
            for entry in entries:
                left -= 1
                if left < 0:
                    raise BadOutput(f"The run left more than {most_files:,} files and folders.", limit="files")
                names.append(entry.name)
        for name in sorted(names):
            descriptor = _step(folder, name, _FILE)
            if descriptor is None:
                continue
            try:
                status = os.fstat(descriptor)
                if stat.S_ISDIR(status.st_mode):
                    yield from walk(descriptor, path / name)
                elif stat.S_ISREG(status.st_mode):
                    yield Found(path=path / name, descriptor=descriptor, size_bytes=status.st_size, mode=status.st_mode)
            finally:
                os.close(descriptor)

    top = _open(root, path, _FOLDER)
    if top is None:
        return
    try:
        yield from walk(top, PurePosixPath())
    finally:
        os.close(top)


def _make_folder(root: Path, parts: tuple[str, ...]) -> None:
    above = _open(root, PurePosixPath(*parts[:-1]), _FOLDER)
    if above is None:
        return
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(parts[-1], 0o755, dir_fd=above)
    finally:
        os.close(above)


def _parts(path: str | PurePosixPath) -> tuple[str, ...]:
    parts = PurePosixPath(path).parts
    if ".." in parts or PurePosixPath(path).is_absolute():
        raise ValueError(f"should lead downward from the folder but is {path}")
    return parts


def _open(root: Path, path: str | PurePosixPath, flags: int) -> int | None:
    parts = _parts(path)
    # The root itself is the client's.
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for number, name in enumerate(parts, 1):
        below = _step(descriptor, name, flags if number == len(parts) else _FOLDER)
        os.close(descriptor)
        if below is None:
            return None
        descriptor = below
    return descriptor


def _step(folder: int, name: str, flags: int) -> int | None:
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError:  # not there, a link, a socket, without rights: nothing that is to be read
        return None
