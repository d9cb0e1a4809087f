"""Which names and links a package may hold, for packing and unpacking alike."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_DRIVE = re.compile(r"[A-Za-z]:")
_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 1024
_MAX_DEPTH = 64


def name_fault(name: str) -> str | None:
    """Return what keeps ``name`` from being the name of a member, as the end of a sentence; None if it is fine.

    A good name stays in its folder and means the same on every operating system: relative, no ``..``, no drive letter,
    no backslash, no NUL or other control character, UTF-8, no longer and no deeper than file systems and tools take.

    >>> name_fault("sub/train.py"), name_fault("../train.py")
    (None, 'has .. in it')
    """
    path = PurePosixPath(name)
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        return "is not UTF-8"
    faults = {
        "has no name": not path.parts,
        "has a control character": any(ord(char) < 32 or ord(char) == 127 for char in name),
        "has a backslash": "\\" in name,
        "is an absolute path": name.startswith("/"),
        "has a drive letter": bool(_DRIVE.match(name)),
        "has .. in it": ".." in path.parts,
        "is nested too deeply": len(path.parts) > _MAX_DEPTH,
        "is too long": len(encoded) > _MAX_PATH_BYTES or any(len(p.encode()) > _MAX_NAME_BYTES for p in path.parts),
    }
    return next((fault for fault, present in faults.items() if present), None)


def link_fault(name: str, target: str) -> str | None:
    """Return what keeps the symbolic link ``name`` from pointing to ``target``; None if it is fine.

    ``..`` may only stand at the beginning. There it is counted from the real folder of the link, as no member lies
    below a link; behind a name, which may itself be a link, it could lead anywhere.

    >>> link_fault("sub/link", "../train.py"), link_fault("link", "../train.py")
    (None, 'is a link out of the package')
    """
    path = PurePosixPath(target)
    if not target:
        return "is a link to nothing"
    up = 0
    while up < len(path.parts) and path.parts[up] == "..":
        up += 1
    if path.is_absolute() or up > len(PurePosixPath(name).parts) - 1:
        return "is a link out of the package"
    if ".." in path.parts[up:]:
        return "is a link with .. in the middle of its target"
    fault = name_fault("/".join(path.parts[up:])) if path.parts[up:] else None
    return None if fault is None else f"is a link whose target {fault}"
