"""A disk of some megabytes for tests, which can be filled up and emptied again."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from tests.needs import needs


class SmallDisk:
    """What is mounted at ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def free(self) -> int:
        """Bytes that can still be written."""
        return shutil.disk_usage(self.folder).free

    @contextmanager
    def filled(self, room: int) -> Iterator[None]:
        """Leave only ``room`` bytes, rounded down to whole pages, until the block is left; spares are no room then."""
        for inside, _, names in os.walk(self.folder):  # folders that are removed meanwhile are no error to it
            for name in names:
                if name.endswith(".spare"):
                    Path(inside, name).unlink(missing_ok=True)
        ballast = self.folder / "ballast"
        with ballast.open("wb") as file:
            try:
                self._fill(file, room)
                yield
            finally:
                ballast.unlink()

    def _fill(self, file: IO[bytes], room: int) -> None:
        while True:  # somebody may write meanwhile
            left = self.free - room
            assert left > 0, f"{self.folder} has {self.free} bytes left, less than {room}"
            try:
                return os.posix_fallocate(file.fileno(), 0, left)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


class CannotMount(Exception):
    """Raised where no small disk can be had, with the reason."""


@contextmanager
def mounted_disk(folder: Path, size: int) -> Iterator[SmallDisk]:
    """Mount a file system of ``size`` bytes, in memory, at ``folder``, which is made; raises :class:`CannotMount`."""
    if os.geteuid() != 0:
        raise CannotMount("root, to mount a small disk")
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        folder.rmdir()
        raise CannotMount(f"leave to mount a tmpfs ({done.stderr.strip()})")
    try:
        yield SmallDisk(folder)
    finally:
        # Lazily: what a process that was killed had started may be about to end.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[SmallDisk]:
    """Mount as above; skips (or fails in CI) where that can't be."""
    with ExitStack() as stack:
        try:
            disk = stack.enter_context(mounted_disk(folder, size))
        except CannotMount as error:
            needs(False, str(error))
        yield disk
