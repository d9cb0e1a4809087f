"""A disk of some megabytes for tests, which can be filled up and emptied again."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
        for spare in self.folder.rglob("*.spare"):
            spare.unlink(missing_ok=True)
        ballast = self.folder / "ballast"
        with ballast.open("wb") as file:
            try:
                left = self.free - room
                assert left > 0, f"{self.folder} has {self.free} bytes left, less than {room}"
                os.posix_fallocate(file.fileno(), 0, left)
                yield
            finally:
                ballast.unlink()


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[SmallDisk]:
    """Mount a file system of ``size`` bytes, in memory, at ``folder``, which is made; only root may."""
    needs(os.geteuid() == 0, "root, to mount a small disk")
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    needs(done.returncode == 0, f"leave to mount a tmpfs ({done.stderr.strip()})")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
