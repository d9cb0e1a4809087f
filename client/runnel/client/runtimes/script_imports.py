"""Which installed modules the scripts of a package import, found by reading them: nothing of them is run."""

from __future__ import annotations

import ast
import importlib.machinery
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

Import = tuple[str, tuple[str, ...]]
"""A module, and the names that are taken from it (``from module import names``)."""

# What numpy imports only when it reads or writes the first .npz, which models are.
_OF_NPZ: tuple[Import, ...] = (("zipfile", ()), ("pathlib", ()), ("encodings.cp437", ()))
_MAX_BYTES = 1 << 20
_MAX_FILES = 200
# What decides what imports find and see, the methods of it that change nothing, and functions that change it.
_STATE = frozenset({"os.environ", "os.environb", "sys.meta_path", "sys.modules", "sys.path", "sys.path_hooks"})
_READS = frozenset({"copy", "count", "get", "index", "items", "keys", "values"})
_CHANGERS = frozenset({"addsitedir", "load_dotenv", "putenv", "unsetenv"})


class ImportsPrepared(Exception):
    """A script changes what an import of it finds or sees before that import; tells where, what and which import."""


def installed_imports(scripts: Iterable[Path]) -> list[Import]:
    """Return what ``scripts`` and the modules beside them import at their top level, in their order. Blocks.

    A module that is a file beside a script (or a package there) is followed and not returned. What stands in a
    function, a class or a condition may never be imported and does not count; what stands in a ``try`` does. A file
    that is no Python is passed over: its run will tell.

    Raises:
        ImportsPrepared: an import follows a change of the variables or of where modules are found, which whoever
            imports that module elsewhere has not made.
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
        self._changers = set(_CHANGERS)
        self._prepared = ""

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
        meant: dict[str, str] = {}
        for statement in _top_level(tree.body):
            if isinstance(statement, ast.Import):
                for alias in statement.names:
                    self._imported(tuple(alias.name.split(".")), ())
                    if alias.asname:
                        meant[alias.asname] = alias.name
            elif isinstance(statement, ast.ImportFrom):
                above = package[: len(package) - statement.level + 1] if statement.level else ()
                module = (*above, *(statement.module or "").split(".")) if statement.module else above
                self._imported(module, tuple(alias.name for alias in statement.names))
                meant |= {alias.asname or alias.name: f"{statement.module}.{alias.name}" for alias in statement.names}
            elif not self._prepared:
                self._look_for_changes(statement, meant, file)

    def _imported(self, module: tuple[str, ...], names: tuple[str, ...]) -> None:
        if not module or module[0] == "__future__":
            return
        if self._file_of(module[:1]) is None:
            if not _is_extension(self._folder, module[0]):
                self._found_installed(".".join(module), names)
            return
        for depth in range(1, len(module) + 1):
            self._follow(module[:depth])
        for name in names:
            self._follow((*module, name))

    def _found_installed(self, module: str, names: tuple[str, ...]) -> None:
        if self._prepared and (module, names) not in self.found:
            raise ImportsPrepared(f"{self._prepared} before it imports {module}")
        self.found[module, names] = None

    def _look_for_changes(self, statement: ast.AST, meant: dict[str, str], file: Path) -> None:
        for node in _executed(statement):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if any(_change(part, meant, self._changers) for part in ast.walk(node)):
                    self._changers.add(node.name)
            elif what := _change(node, meant, self._changers):
                self._prepared = f"{file.name} prepares its imports ({what}, line {getattr(node, 'lineno', 0)})"
                return

    def _follow(self, module: tuple[str, ...]) -> None:
        file = self._file_of(module)
        if file is not None:
            self.read(file, package=module if file.name == "__init__.py" else module[:-1])

    def _file_of(self, module: tuple[str, ...]) -> Path | None:
        place = self._folder.joinpath(*module)
        return next(
            (file for file in (place / "__init__.py", place.with_name(f"{place.name}.py")) if file.is_file()), None
        )


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.AST]:
    for statement in body:
        if isinstance(statement, (ast.Try, ast.TryStar)):
            yield from _top_level(statement.body)
            yield from statement.handlers
            yield from _top_level((*statement.orelse, *statement.finalbody))
        else:
            yield statement


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield ``node`` and what is in it, without what is only defined."""
    left = [node]
    while left:
        yield (part := left.pop())
        if not isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            left += reversed(list(ast.iter_child_nodes(part)))


def _change(node: ast.AST, meant: dict[str, str], changers: Container[str]) -> str:
    """Return what ``node`` changes of what imports depend on, or calls to do so."""
    if isinstance(node, ast.Call):
        called = _dotted(node.func, meant)
        owner, _, name = called.rpartition(".")
        if name in changers:
            return called
        return owner if owner in _STATE and name not in _READS else ""
    if isinstance(getattr(node, "ctx", None), (ast.Store, ast.Del)):
        while isinstance(node, ast.Subscript):
            node = node.value
        changed = _dotted(node, meant)
        return changed if changed in _STATE else ""
    return ""


def _dotted(node: ast.AST, meant: dict[str, str]) -> str:
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join([meant.get(node.id, node.id), *reversed(names)]) if isinstance(node, ast.Name) else ""


def _is_extension(folder: Path, name: str) -> bool:
    return any((folder / f"{name}{suffix}").is_file() for suffix in importlib.machinery.EXTENSION_SUFFIXES)
