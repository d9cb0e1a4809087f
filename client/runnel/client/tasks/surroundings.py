"""What a task brings along beside its contract: its payload and inputs, shared volumes, further outputs."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path, PurePosixPath

from runnel.client.tasks.book import remove_tree
from runnel.client.tasks.contract import PAYLOAD, Layout, Mounted, Produced
from runnel.client.tasks.output_zip import write_zip
from runnel.client.tasks.placement import where, within
from runnel.common.blobs import in_thread
from runnel.common.errors import InvalidInput
from runnel.common.protocol import BlobRef
from runnel.common.storage import storage_errors
from runnel.common.tasks import Content, TaskSpec

Fetch = Callable[[BlobRef, Path], Awaitable[None]]
"""Brings a blob of the network into a file."""

OUTPUTS = "outputs"
"""Name of the result with what a task wants collected besides what its contract has."""

_INPUTS = "given"
_VOLUMES = "volumes"
_GROUPS_KEPT_S = 30 * 86_400.0


async def fetch_content(content: Content, target: Path, fetch: Fetch) -> None:
    """Write the content of a file that comes with a task.

    Raises:
        RunnelError: the network does not have it, or there is no room.
    """
    if content.blob is not None:
        await fetch(BlobRef(sha256=content.blob.sha256, size_bytes=content.blob.size_bytes), target)
    else:
        with storage_errors(target):
            await in_thread(target.write_bytes, content.data or b"")


async def fetch_files(spec: TaskSpec, folder: Path, fetch: Fetch) -> None:
    """Bring the payload and the inputs of a task to ``folder``, the run's own; raises as :func:`fetch_content`."""
    if spec.payload is not None:
        await fetch_content(spec.payload, folder / PAYLOAD, fetch)
    (folder / _INPUTS).mkdir()
    for number, each in enumerate(spec.inputs):
        await fetch_content(each.content, folder / _INPUTS / str(number), fetch)


def add_surroundings(spec: TaskSpec, layout: Layout, folder: Path) -> Layout:
    """Return ``layout`` with the task's inputs, volumes and outputs at their places. Blocks.

    An input within a folder of the run goes there; another is mounted by itself. An output that no container could
    write otherwise is made: a file if its name has an ending, else a folder.

    Raises:
        InvalidInput: two have the same place, or one would be in a folder that outlives the run.
        StorageFull: no room.
    """
    mounts = list(layout.mounts)
    with storage_errors(folder):
        for number, each in enumerate(spec.inputs):
            _place_input(layout, folder, folder / _INPUTS / str(number), each.path, mounts)
        for number, path in enumerate(spec.volumes):
            if not any(within(path, each.target) and not each.read_only for each in mounts):
                place = folder / _VOLUMES / str(number)
                place.mkdir(parents=True)
                mounts.append(Mounted(source=place, target=path, read_only=False))
        for number, path in enumerate(spec.outputs):
            if not any(within(path, each.target) and not each.read_only for each in mounts):
                place = folder / OUTPUTS / str(number)
                place.parent.mkdir(exist_ok=True)
                if PurePosixPath(path).suffix:
                    place.touch()
                else:
                    place.mkdir()
                mounts.append(Mounted(source=place, target=path, read_only=False))
        for mount in mounts:
            if mount.read_only and mount.source.is_relative_to(folder):
                _let_read(mount.source)
    return dataclasses.replace(layout, mounts=tuple(mounts))


def _place_input(layout: Layout, folder: Path, source: Path, path: str, mounts: list[Mounted]) -> None:
    found = where(layout, path)
    if found is None:
        mounts.append(Mounted(source=source, target=path))
        return
    root, rest = found
    if not rest or not root.is_relative_to(folder):
        raise InvalidInput(f"The input {path} has the place of something that the contract puts there.", path=path)
    target = root / rest
    if target.exists():
        raise InvalidInput(f"There is something else at {path} already, so the input can't be there.", path=path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InvalidInput(f"The input {path} should be in a folder that is a file.", path=path) from error
    source.rename(target)


def _let_read(path: Path) -> None:
    # With the engine's library, which is there when there is a layout.
    from runnel.client.runtimes.docker_files import make_readable

    if path.is_dir():
        make_readable(path)
    else:
        path.chmod(0o644)


def collect_outputs(
    spec: TaskSpec, own: Layout, whole: Layout, folder: Path, *, most_bytes: int, most_files: int
) -> Sequence[Produced]:
    """Return the archive of the outputs that are in no folder of the contract's ``own`` layout. Blocks.

    Raises:
        BadOutput: they are more than the site lets out.
        StorageFull: no room.
    """
    sources = []
    for path in spec.outputs:
        found = where(whole, path, writable=True)
        if found is not None and where(own, path, writable=True) is None:
            root, rest = found
            # A file that is mounted by itself is below its folder, which is the client's.
            sources.append(
                (root, rest, path.lstrip("/")) if root.is_dir() else (root.parent, root.name, path.lstrip("/"))
            )
    if not sources:
        return ()
    target = folder / "collected-outputs.zip"
    write_zip(target, sources, most_bytes=most_bytes, most_files=most_files)
    return (Produced(name=OUTPUTS, media_type="application/zip", path=target),)


class Groups:
    """Folders of groups of runs, below ``root``; each stays for 30 days after its last use. All methods block."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, organisation: str, group: str) -> Path:
        """Return the folder of a group, made if it is not there.

        Raises:
            StorageFull: no room.
        """
        name = hashlib.sha256(f"{organisation}\0{group}".encode()).hexdigest()[:32]
        folder = self._root / name / "files"
        with storage_errors(self._root):
            folder.mkdir(parents=True, exist_ok=True)
            (self._root / name / "used").touch()
        return folder

    def sweep(self, now: Callable[[], float] = time.time) -> None:
        """Remove what was not used for long."""
        if not self._root.is_dir():
            return
        for folder in self._root.iterdir():
            used = folder / "used"
            if not used.exists() or now() - used.stat().st_mtime > _GROUPS_KEPT_S:
                remove_tree(folder)
