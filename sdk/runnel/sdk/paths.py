"""Ids and files in addresses: what people give, told apart."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

from runnel.common.errors import InvalidInput

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def quoted(name: str) -> str:
    """Return ``name`` as one segment of a path; raises InvalidInput when it can't be an id."""
    if not name or name in {".", ".."}:
        raise InvalidInput(f"{name!r} is no id.")
    return quote(name, safe="")


def file_given(value: str | Path, *, what: str, make: str) -> Path | None:
    """Return the file that ``value`` names, or None when it is an id.

    Raises:
        InvalidInput: it is a folder, or neither an existing file nor of the form of an id. ``what`` says what was to
            be given, ``make`` how to make it of a folder.
    """
    path = Path(value)
    if path.is_file():
        return path
    if path.is_dir():
        raise InvalidInput(f"{what}: {path} is a folder.", hint=make, path=str(path))
    if isinstance(value, Path) or not _ID.fullmatch(value):
        raise InvalidInput(
            f"{what}: there is no file {path}.", hint="Give a file, or the id of one that was pushed.", path=str(path)
        )
    return None
