"""One line of a requirements file: what it asks for, which files it leads to, and whether it means FEDn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

FEDN_PLACE = "{fedn-shim}"
"""Stands in a line for the address of the stand-in's wheel."""

_COMMENT = re.compile(r"(^|\s)#.*$")
_OPTION = re.compile(r"(--[a-z-]+|-[a-zA-Z])(?:\s*=\s*|\s+|$)?(.*)", re.DOTALL)
_PER_REQUIREMENT = re.compile(r"\s+--(hash|config-settings?|global-option|build-option)\b.*", re.DOTALL)
_INCLUDES = {"-r": False, "--requirement": False, "-c": True, "--constraint": True}
_EDITABLE = ("-e", "--editable")
_FIND_LINKS = ("-f", "--find-links")
_ARCHIVE = re.compile(r"\.(whl|zip|tar\.gz|tgz|tar\.bz2)$")


class LineKind(Enum):
    """What a line is."""

    PLAIN = "plain"
    FEDN = "fedn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Include:
    """Another file whose lines belong here: requirements, or constraints on them."""

    path: str
    constraints: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line.

    Args:
        text: what the installer is given; empty if there is nothing for it.
        kind: whether it asks for FEDn, by name or by an address of its source.
        shim_text: of FEDn, the line that asks for the stand-in instead.
        include: the file that it includes.
        path: of a local wheel or folder, as it is written.
        wheels: of ``--find-links``, the folder or address, as it is written.
        hashed: whether it brings a hash, or asks for hashes everywhere.
    """

    text: str = ""
    kind: LineKind = LineKind.PLAIN
    shim_text: str = ""
    include: Include | None = None
    path: str | None = None
    wheels: str | None = None
    hashed: bool = False


def logical_lines(text: str) -> Iterator[str]:
    r"""Yield lines without comments and blank ones, those that go on after a backslash as one.

    >>> list(logical_lines("numpy \\\n  --hash=sha256:1\n# none\n\nscipy  # why"))
    ['numpy   --hash=sha256:1', 'scipy']
    """
    held = ""
    for physical in text.splitlines():
        if physical.endswith("\\") and not physical.lstrip().startswith("#"):
            held += physical[:-1]
            continue
        line = _COMMENT.sub("", held + physical).strip()
        held = ""
        if line:
            yield line
    if held.strip():
        yield held.strip()


def read_line(line: str) -> Line:
    """Read one logical line.

    >>> read_line("-r more/base.txt").include
    Include(path='more/base.txt', constraints=False)
    >>> read_line('fedn[flower]>=0.9 ; python_version > "3.8"').shim_text
    'fedn @ {fedn-shim} ; python_version > "3.8"'
    """
    if not line.startswith("-"):
        return _requirement(line)
    match = _OPTION.fullmatch(line)
    option, value = (match[1], _unquoted(match[2])) if match else (line, "")
    if option in _INCLUDES and "://" not in value:
        return Line(include=Include(path=value, constraints=_INCLUDES[option]))
    if option in _EDITABLE:
        return _requirement(value)
    if option == "--require-hashes":
        return Line(hashed=True)
    if option in _FIND_LINKS:
        return Line(wheels=value)
    return Line(text=line)


def _requirement(line: str) -> Line:
    options = _PER_REQUIREMENT.search(line)
    wanted = line[: options.start()] if options else line
    hashed = options is not None and "--hash" in options[0]
    try:
        if _ARCHIVE.search(wanted) and "@" not in wanted:
            raise InvalidRequirement(wanted)  # the bare name of a wheel looks like the name of a project
        parsed = Requirement(wanted)
    except InvalidRequirement:  # pip takes a bare path or address too
        address, _, marker = (part.strip() for part in _marked(wanted).partition(" ; "))
        if _is_fedn_address(address):
            return Line(text=line, kind=LineKind.FEDN, shim_text=_shim(marker, hashed), hashed=hashed)
        path = _local_path(address, plain=bool(_ARCHIVE.search(address)))
        return Line(text=line, path=path, hashed=hashed)
    if canonicalize_name(parsed.name) == "fedn" and not (parsed.url and _local_path(parsed.url)):
        return Line(text=line, kind=LineKind.FEDN, shim_text=_shim(str(parsed.marker or ""), hashed), hashed=hashed)
    return Line(text=line, path=_local_path(parsed.url) if parsed.url else None, hashed=hashed)


def _marked(text: str) -> str:
    return re.sub(r"\s+;\s*", " ; ", text, count=1)


def _shim(marker: str, hashed: bool) -> str:
    text = f"fedn @ {FEDN_PLACE}"
    if marker:
        text += f" ; {marker}"
    return f"{text} --hash=sha256:{FEDN_PLACE}" if hashed else text


def _is_fedn_address(address: str) -> bool:
    """Whether this is FEDn's source, as in ``git+https://HOST/scaleoutsystems/fedn.git@v0.9#egg=fedn``."""
    if "://" not in address:
        return False
    parts = urlsplit(address)
    fragment = dict(pair.partition("=")[::2] for pair in parts.fragment.split("&"))
    if "egg" in fragment:
        return canonicalize_name(fragment["egg"].partition("[")[0]) == "fedn"
    words = parts.path.strip("/").split("/")
    return any(re.fullmatch(r"fedn(\.git)?(@.*)?", word) for word in words[1:2])


def _local_path(text: str, *, plain: bool = True) -> str | None:
    """Return the path that ``text`` names, without ``file:``; None if it is an address, or no path at all."""
    text = text.strip()
    if text.startswith("file:"):
        return unquote(urlsplit(text).path)
    if "://" in text:
        return None
    path = re.sub(r"\[[^]]*\]$", "", text)
    looks_like_one = path.startswith((".", "~")) or "/" in path or plain
    return str(PurePosixPath(path)) if path and looks_like_one else None


def _unquoted(value: str) -> str:
    value = value.strip()
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
