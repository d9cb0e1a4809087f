"""Which installed modules the scripts of a package import, found by reading them: nothing of them is run."""

from __future__ import annotations

import ast
import importlib.machinery
from collections.abc import Iterable, Iterator
from pathlib import Path

Import = tuple[str, tuple[str, ...]]
"""A module, and the names that are taken from it (``from module import names``)."""

# What numpy imports only when it reads or writes the first .npz, which models are.
_OF_NPZ: tuple[Import, ...] = (("zipfile", ()), ("pathlib", ()), ("encodings.cp437", ()))
_MAX_BYTES = 1 << 20
_MAX_FILES = 200


def installed_imports(scripts: Iterable[Path]) -> list[Import]:
    """Return what ``scripts`` and the modules beside them import at their top level, in their order. Blocks.

    A module that is a file beside a script (or a package there) is followed and not returned. What stands in a
    function, a class or a condition may never be imported and does not count; what stands in a ``try`` does. A file
    that is no Python is passed over: its run will tell.
    """
    found: dict[Import, None] = {}
    for script in scripts:
        reading = _Reading(script.parent)
        reading.read(script, package=())
        found |= reading.found
    if any(module.partition(".")[0] == "numpy" for module, _ in found):
        found |= dict.fromkeys(_OF_NPZ)
    return list(found)


class _Reading:
    """Follows the imports of the files in one folder."""

    def __init__(self, folder: Path) -> None:
        self.found: dict[Import, None] = {}
        self._folder = folder
        self._seen: set[Path] = set()

    def read(self, file: Path, package: tuple[str, ...]) -> None:
        if file in self._seen or len(self._seen) >= _MAX_FILES:
            return
        self._seen.add(file)
        try:
            with file.open("rb") as opened:
                source = opened.read(_MAX_BYTES + 1)
            tree = ast.parse(source) if len(source) <= _MAX_BYTES else ast.Module([], [])
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            return  # what is wrong with it is told by the run
        for statement in _top_level(tree.body):
            if isinstance(statement, ast.Import):
                for alias in statement.names:
                    self._imported(tuple(alias.name.split(".")), ())
            elif isinstance(statement, ast.ImportFrom):
                above = package[: len(package) - statement.level + 1] if statement.level else ()
                module = (*above, *(statement.module or "").split(".")) if statement.module else above
                self._imported(module, tuple(alias.name for alias in statement.names))

    def _imported(self, module: tuple[str, ...], names: tuple[str, ...]) -> None:
        if not module or module[0] == "__future__":
            return
        if self._file_of(module[:1]) is None:
            if not _is_extension(self._folder, module[0]):
                self.found[".".join(module), names] = None
            return
        for depth in range(1, len(module) + 1):
            self._follow(module[:depth])
        for name in names:
            self._follow((*module, name))

    def _follow(self, module: tuple[str, ...]) -> None:
        file = self._file_of(module)
        if file is not None:
            self.read(file, package=module if file.name == "__init__.py" else module[:-1])

    def _file_of(self, module: tuple[str, ...]) -> Path | None:
        place = self._folder.joinpath(*module)
        return next(
            (file for file in (place / "__init__.py", place.with_name(f"{place.name}.py")) if file.is_file()), None
        )


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        if isinstance(statement, (ast.Try, ast.TryStar)):
            yield from _top_level((*statement.body, *statement.orelse, *statement.finalbody))
        else:
            yield statement


def _is_extension(folder: Path, name: str) -> bool:
    return any((folder / f"{name}{suffix}").is_file() for suffix in importlib.machinery.EXTENSION_SUFFIXES)
