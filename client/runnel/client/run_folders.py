"""The folder in which an entry point runs, and what is left of it."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from runnel.common.blobs import SMALL_BYTES, in_thread, storage_errors

_FEW_FILES = 16


@dataclass(slots=True)
class RunFolder:
    """A folder for one run. It is ``workdir``, if that was made for it, or a folder in it.

    ``cleared``: there is nothing to be removed any more.
    """

    workdir: Path
    path: Path
    cleared: bool = False

    def clear(self, update: Path) -> Path:
        """Keep the file ``update`` in the work folder, remove all else of the run, and return where it is. It blocks.

        Its name is one that is free: ext4 writes a file to the disk at once that takes the place of another one.
        """
        kept = update.rename(self.workdir / f"update-{secrets.token_hex(8)}.npz")
        if self.path != self.workdir:
            _remove(self.path)
        else:
            _remove_beside(kept)
        self.cleared = True
        return kept


@asynccontextmanager
async def run_folder(workdir: Path) -> AsyncIterator[RunFolder]:
    """Have a folder for a run, which is removed with everything in it, unless it was cleared.

    Raises:
        StorageFull: no room for it.
    """
    with storage_errors(workdir):
        folder = _make(workdir)
    try:
        yield folder
    finally:
        if not folder.cleared:
            await in_thread(_remove, folder.path)


def _make(workdir: Path) -> RunFolder:
    workdir = workdir.absolute()
    try:
        workdir.mkdir(0o700)
    except FileNotFoundError:
        workdir.parent.mkdir(parents=True, exist_ok=True)
        return _make(workdir)
    except FileExistsError:
        return RunFolder(workdir, Path(tempfile.mkdtemp(prefix="run-", dir=workdir)))
    return RunFolder(workdir, workdir)


def few_bytes(folder: Path) -> int:
    """Return how much is in ``folder``; more than is small if there are folders in it, or many files."""
    nbytes = 0
    try:
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries):
                if number == _FEW_FILES or entry.is_dir(follow_symlinks=False):
                    return SMALL_BYTES + 1
                nbytes += entry.stat(follow_symlinks=False).st_size
    except OSError:  # what a run has left behind may go on removing files
        return SMALL_BYTES + 1
    return nbytes


def _remove_beside(kept: Path) -> None:
    with os.scandir(kept.parent) as entries:
        others = [(Path(entry), entry.is_dir(follow_symlinks=False)) for entry in entries if entry.name != kept.name]
    for path, is_folder in others:
        if is_folder:
            _remove(path)
        else:
            path.unlink(missing_ok=True)  # what a run has left behind may go on removing files


def _remove(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):  # a script may have taken the rights from its folders, or nested thousands
        _remove_level(folder)


def _remove_level(folder: Path) -> None:
    """Remove ``folder`` by moving all folders in it, however deep, right below it first."""
    left = [folder]
    for each in left:
        each.chmod(0o700)
        with os.scandir(each) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for name, is_folder in found:
            if not is_folder:
                (each / name).unlink()
            elif each is not folder:
                # To move a folder is to write to it.
                (each / name).chmod(0o700)
                left.append((each / name).rename(folder / f"{secrets.token_hex(8)}"))
            else:
                left.append(each / name)
    for each in reversed(left):
        each.rmdir()
