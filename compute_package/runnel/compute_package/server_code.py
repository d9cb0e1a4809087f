"""A package's functions for the server: found by reading its source, of which nothing is run here."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runnel.common.errors import BadPackage

SERVER_FILE = "server.py"
SERVER_CLASS = "ServerFunctions"
SERVER_FUNCTIONS = ("client_selection", "client_settings", "aggregate", "incremental_aggregate")
"""What a class ``ServerFunctions`` may define; with the last goes ``get_incremental_aggregate_model``."""

_INCREMENTAL_RESULT = "get_incremental_aggregate_model"
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCode:
    """What a package does at the reducer.

    Attributes:
        file: relative to the package's root; it has a class ``ServerFunctions``.
        functions: those of :data:`SERVER_FUNCTIONS` that the class defines itself, in that order; at least one.
    """

    file: str
    functions: tuple[str, ...]

    @property
    def selects(self) -> bool:
        """Whether it chooses the clients of a round."""
        return "client_selection" in self.functions

    @property
    def begins(self) -> bool:
        """Whether it has to be asked before a round's clients are."""
        return self.selects or "client_settings" in self.functions

    @property
    def aggregator(self) -> str | None:
        """Name of the function that makes the next model, of two the incremental one; None: the strategy makes it."""
        return next((each for each in ("incremental_aggregate", "aggregate") if each in self.functions), None)

    def as_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` takes."""
        return {"file": self.file, "functions": list(self.functions)}

    @staticmethod
    def from_json(document: Mapping[str, Any] | None) -> ServerCode | None:
        """Return what :meth:`as_json` gave; None for None."""
        if document is None:
            return None
        return ServerCode(file=str(document["file"]), functions=tuple(map(str, document["functions"])))


def find_server_code(root: Path) -> ServerCode | None:
    """Return what ``server.py`` in a package's root offers; None if it is not there or has no such class.

    Raises:
        BadPackage: it has the class, and that is not usable; see :func:`read_server_code`.
    """
    path = root / SERVER_FILE
    if not path.is_file() or SERVER_CLASS.encode() not in _source(path, SERVER_FILE):
        return None
    return _server_code(path, SERVER_FILE, required=False)


def read_server_code(root: Path, file: str) -> ServerCode:
    """Return what the class ``ServerFunctions`` in ``file`` defines.

    Args:
        root: the package's folder.
        file: within it.

    Raises:
        BadPackage: it is no Python, lacks the class or the functions, or is larger than 1 MiB.
    """
    found = _server_code(root / file, file, required=True)
    if found is None:
        raise AssertionError("required")
    return found


def _server_code(path: Path, file: str, *, required: bool) -> ServerCode | None:
    try:
        tree = ast.parse(_source(path, file), filename=file)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadPackage(f"{file} can not be read as Python: {error}.", file=file) from error
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == SERVER_CLASS]
    if not classes:
        if not required:
            return None
        raise BadPackage(
            f"{file} has no class {SERVER_CLASS}, which is what a package's server file is for.",
            hint=f"Define class {SERVER_CLASS} at the top level of {file}.",
            file=file,
        )
    defined = _names(classes[-1])
    functions = tuple(name for name in SERVER_FUNCTIONS if name in defined)
    if not functions:
        raise BadPackage(
            f"The class {SERVER_CLASS} of {file} defines none of {', '.join(SERVER_FUNCTIONS)}.",
            hint="Define those that are to take the place of the reducer's own ways.",
            file=file,
        )
    if "incremental_aggregate" in functions and _INCREMENTAL_RESULT not in defined:
        raise BadPackage(
            f"The class {SERVER_CLASS} of {file} defines incremental_aggregate and not {_INCREMENTAL_RESULT}.",
            hint=f"Define {_INCREMENTAL_RESULT}, which returns the model of all updates that it was given.",
            file=file,
        )
    return ServerCode(file=file, functions=functions)


def _names(node: ast.ClassDef) -> set[str]:
    names = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
    for each in node.body:
        if isinstance(each, ast.Assign):
            names |= {target.id for target in each.targets if isinstance(target, ast.Name)}
    return names


def _source(path: Path, file: str) -> bytes:
    with path.open("rb") as source:
        data = source.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise BadPackage(f"{file} is larger than {_MAX_BYTES // 1024} KiB.", file=file)
    return data
