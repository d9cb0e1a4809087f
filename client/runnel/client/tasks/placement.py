"""How the containers of a run come to see its files: from a layout to mounts of the engine."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from runnel.client.runtimes.docker_paths import Place
from runnel.client.tasks.contract import Layout, Mounted
from runnel.common.errors import InvalidInput

_KERNEL = ("/proc", "/sys", "/dev")


def within(path: str, folder: str) -> bool:
    """Whether the absolute ``path`` is ``folder`` or below it.

    >>> within("/mnt/input/a", "/mnt/input"), within("/mnt/inputs", "/mnt/input")
    (True, False)
    """
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def require_mountable(target: str) -> str:
    """Return ``target`` if a container may have something of the client there.

    Raises:
        InvalidInput: it is the root, or the kernel's.
    """
    plain = posixpath.normpath(target)
    if plain == "/" or any(within(plain, folder) for folder in _KERNEL):
        raise InvalidInput(f"Nothing can be put at {target} in a container: that is the engine's own.", path=target)
    return plain


def where(layout: Layout, inside: str, *, writable: bool = False) -> tuple[Path, str] | None:
    """Return the client's folder in which ``inside`` lies, and the rest of its path below that. Blocks.

    A file that is mounted by itself is below the folder that it is in. ``writable``: only what the container may write.
    None: it is in none of the mounts.
    """
    fitting = [each for each in layout.mounts if within(inside, each.target) and not (writable and each.read_only)]
    if not fitting:
        return None
    # One that is mounted within another hides it.
    nearest = max(fitting, key=lambda each: len(each.target))
    source, rest = nearest.source, inside[len(nearest.target) :].strip("/")
    return (source, rest) if source.is_dir() else (source.parent, f"{source.name}/{rest}".rstrip("/"))


def places(mounts: Iterable[Mounted]) -> Sequence[Place]:
    """Return mounts as what the engine's files take, the outer before the inner.

    Raises:
        InvalidInput: one is where nothing may be, or two have the same place.
    """
    found: dict[str, Place] = {}
    for each in mounts:
        target = require_mountable(each.target)
        if target in found:
            raise InvalidInput(f"Two files or folders are to be at {target} in a container.", path=target)
        found[target] = Place(outside=each.source, inside=PurePosixPath(target), writable=not each.read_only)
    return [found[target] for target in sorted(found)]
