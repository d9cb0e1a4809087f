"""Which Python a package asks for, and which of this machine's that is."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from runnel.common.errors import BadPackage, EnvironmentFailed

_PLAIN = re.compile(r"(?:c?python)?\s*(\d+(?:\.\d+){0,2})", re.IGNORECASE)
# As uv lists them: cpython-3.11.7-linux-x86_64-gnu    /usr/bin/python3 -> python3.11
_LISTED = re.compile(r"cpython-(\d[0-9a-z.]*)-\S+\s+(\S.*?)(?:\s+->\s.*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonRequest:
    """The Python that a package asks for.

    Args:
        text: as its author wrote it: ``3.11``, ``3.11.7``, ``>=3.9,<3.13``.
        source: the file that says so.
        specifiers: what it means.
    """

    text: str
    source: str
    specifiers: SpecifierSet

    def accepts(self, version: str) -> bool:
        """Tell whether this Python will do."""
        try:
            return self.specifiers.contains(Version(version))
        except InvalidVersion:  # such as a distributor's own build
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledPython:
    """An interpreter of this machine."""

    version: str
    path: Path


def read_request(text: str, source: str) -> PythonRequest:
    """Read what a package says about its Python.

    >>> read_request("3.11", "python_env.yaml").accepts("3.11.7"), read_request(">=3.12", "x").accepts("3.11.7")
    (True, False)

    Raises:
        BadPackage: it is neither a version nor a list of specifiers.
    """
    plain = _PLAIN.fullmatch(text.strip())
    try:
        if plain is not None:
            version = plain[1]
            specifiers = SpecifierSet(f"=={version}" if version.count(".") == 2 else f"=={version}.*")
        else:
            specifiers = SpecifierSet(text)
    except InvalidSpecifier as error:
        raise BadPackage(
            f"{source} asks for the Python {text[:80]!r}, which is neither a version nor a range of versions.",
            hint="Write 3.11, or >=3.10,<3.13.",
            file=source,
        ) from error
    return PythonRequest(text=text, source=source, specifiers=specifiers)


def read_listing(lines: Iterable[str]) -> tuple[InstalledPython, ...]:
    """Read the interpreters that ``uv python list --only-installed`` printed.

    >>> read_listing(["cpython-3.11.2-linux-x86_64-gnu    /usr/bin/python3 -> python3.11", "warning: none"])
    (InstalledPython(version='3.11.2', path=PosixPath('/usr/bin/python3')),)
    """
    found = (_LISTED.fullmatch(line.strip()) for line in lines)
    return tuple(InstalledPython(version=one[1], path=Path(one[2])) for one in found if one is not None)


def choose(request: PythonRequest, installed: Iterable[InstalledPython]) -> InstalledPython:
    """Return the newest interpreter that will do.

    Raises:
        EnvironmentFailed: none will; the message has the request and the versions that are there.
    """
    there = list(installed)
    fitting = [one for one in there if request.accepts(one.version)]
    if fitting:
        return max(fitting, key=lambda one: Version(one.version))
    versions = sorted({*(one.version for one in there), platform.python_version()}, key=Version, reverse=True)
    raise EnvironmentFailed(
        f"{request.source} asks for Python {request.text}, and this machine has {', '.join(versions)}.",
        hint="Install that Python at the client, where uv finds it (PATH); none is downloaded.",
        log_tail="",
    )
