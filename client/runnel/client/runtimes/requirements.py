"""What a package wants installed: its ``requirements.txt`` or the ``python_env.yaml`` of FEDn packages."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from runnel.client.runtimes.requirement_lines import (
    FEDN_PLACE,
    Include,
    LineKind,
    logical_lines,
    read_line,
)
from runnel.common.errors import BadPackage
from runnel.compute_package import shim_digest

FOLDER_PLACE = "{package}"
"""Stands in a line for the address of the folder that relative paths are relative to."""

_MAX_BYTES = 1 << 20
_MAX_FILES = 64
_YAML_KEYS = frozenset({"name", "python", "build_dependencies", "dependencies"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What is to be installed.

    Args:
        lines: in the format of pip's requirements files, those of included files among them. Where the stand-in for
            FEDn is to come from stands :data:`FEDN_PLACE`, and :data:`FOLDER_PLACE` before a folder of wheels.
        constraints: lines of constraints files.
        folder: what relative paths in ``lines`` are relative to.
        local: the files and folders of the package that lines name; what is in them decides what is installed.
        hashed: whether every file that is installed must have a hash in ``lines``.
        python: the Python that is asked for, as its author wrote it, such as ``3.11``; empty: any.
        python_from: the file that asks for it.
    """

    lines: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    folder: Path
    local: tuple[Path, ...] = ()
    hashed: bool = False
    python: str = ""
    python_from: str = ""

    @property
    def empty(self) -> bool:
        """Whether nothing is asked for."""
        return not self.lines

    @property
    def fedn_shim(self) -> bool:
        """Whether the stand-in for FEDn is among the lines."""
        return any(FEDN_PLACE in line for line in self.lines)

    def written(self, *, folder: str, shim: str = "") -> str:
        """Return the lines as a requirements file for where they are installed. Blocks.

        Args:
            folder: the address there (``file://…``) of :attr:`folder`.
            shim: the address there of the stand-in's wheel, if it is among the lines.
        """
        lines = list(self.lines)
        if self.hashed:  # also of a stand-in for what had none: it is as good as the client itself
            lines = [f"{line} --hash=sha256:{FEDN_PLACE}" if _is_unhashed_shim(line) else line for line in lines]
        text = "".join(f"{line}\n" for line in lines).replace(FOLDER_PLACE, folder)
        if not self.fedn_shim:
            return text
        return text.replace(f"sha256:{FEDN_PLACE}", f"sha256:{shim_digest()}").replace(FEDN_PLACE, shim)

    def digest(self) -> str:
        """Return the SHA-256 in hex of the lines and of all files in the package that they lead to. Blocks."""
        digest = hashlib.sha256()
        for line in (*self.lines, "\0", *self.constraints, "\0", str(self.hashed)):
            digest.update(f"{line}\n".encode())
        for path in _files(self.local):
            digest.update(f"\0{os.path.relpath(path, self.folder)}\0".encode(errors="surrogateescape"))
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def _is_unhashed_shim(line: str) -> bool:
    return FEDN_PLACE in line and "--hash" not in line


def _files(local: Iterable[Path]) -> list[Path]:
    found = set()
    for path in local:
        if path.is_dir():
            found |= {one for one in path.rglob("*") if one.is_file() and "__pycache__" not in one.parts}
        elif path.is_file():
            found.add(path)
    return sorted(found)


def read_requirements(path: Path, *, root: Path | None = None, fedn_shim: bool = True) -> Requirements:
    """Read a requirements file, or a ``python_env.yaml`` if the name of ``path`` ends so. Blocks.

    Files that it includes (``-r``, ``-c``) are relative to the file that includes them. Local wheels and folders are
    installed as they are; ``-e`` is read as if it were not there, for an environment may outlive the package's files.

    Of a ``python_env.yaml`` the ``build_dependencies``, the ``dependencies`` and the ``python`` count.

    Args:
        path: the file.
        root: the package's folder, which includes must not leave; the file's own by default.
        fedn_shim: whether ``fedn``, however it is named, is replaced by the stand-in.

    Raises:
        BadPackage: there is no such file, it includes one that is not there or is not the package's, or one of them is
            larger than 1 MiB, not UTF-8, or not of that form.
    """
    reading = _Reading(folder=path.parent, root=(root or path.parent).resolve(), fedn_shim=fedn_shim)
    text = reading.text(path)
    python = ""
    if path.suffix in (".yaml", ".yml"):
        text, python = _from_python_env(text, path.name)
    reading.take(text, path)
    return reading.result(python=python, python_from=path.name if python else "")


@dataclass(slots=True, kw_only=True)
class _Reading:
    """One walk through a requirements file and those that it includes."""

    folder: Path
    root: Path
    fedn_shim: bool
    lines: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    local: list[Path] = field(default_factory=list)
    hashed: bool = False
    seen: set[tuple[Path, bool]] = field(default_factory=set)

    def result(self, *, python: str, python_from: str) -> Requirements:
        return Requirements(
            lines=tuple(self.lines),
            constraints=tuple(self.constraints),
            folder=self.folder,
            local=tuple(self.local),
            hashed=self.hashed,
            python=python,
            python_from=python_from,
        )

    def text(self, path: Path) -> str:
        try:
            with path.open("rb") as file:
                raw = file.read(_MAX_BYTES + 1)
            text = raw.decode("utf-8-sig")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise BadPackage(f"The package names {path.name} for its requirements but does not have it.") from error
        except UnicodeDecodeError as error:
            raise BadPackage(f"{path.name} should be UTF-8 text: {error}.", file=path.name) from error
        if len(raw) > _MAX_BYTES:
            raise BadPackage(f"{path.name} is larger than 1 MiB.", file=path.name)
        return text

    def take(self, text: str, path: Path, *, constraints: bool = False) -> None:
        """Take over the lines of ``path``, and of what it includes at their place."""
        if (path.resolve(), constraints) in self.seen:
            return
        self.seen.add((path.resolve(), constraints))
        if len(self.seen) > _MAX_FILES:
            raise BadPackage(f"The requirements of the package include more than {_MAX_FILES} files.", file=path.name)
        for logical in logical_lines(text):
            line = read_line(logical)
            self.hashed |= line.hashed
            if line.include is not None:
                self._include(line.include, path, constraints=constraints)
            elif line.kind is LineKind.FEDN and self.fedn_shim:
                if not constraints:  # the version of the stand-in satisfies nobody's constraints
                    self.lines.append(line.shim_text)
            elif line.wheels is not None:
                self._links(line.wheels, path)
            elif line.text:
                (self.constraints if constraints else self.lines).append(line.text)
                self._note_local(line.path)

    def _include(self, include: Include, path: Path, *, constraints: bool) -> None:
        target = path.parent / include.path
        if not target.resolve().is_relative_to(self.root):
            raise BadPackage(
                f"{path.name} includes {include.path!r}, which is not in the package.",
                hint="Name a file of the package, relative to the one that includes it.",
                file=path.name,
            )
        self.take(self.text(target), target, constraints=constraints or include.constraints)

    def _links(self, wheels: str, path: Path) -> None:
        if "://" in wheels:
            self.lines.append(f"--find-links {wheels}")
            return
        target = next(
            (one for one in (path.parent / wheels, self.folder / wheels) if one.exists()), path.parent / wheels
        )
        # As written where the package's files are, for that is not the same folder at each site.
        self.lines.append(f"--find-links {FOLDER_PLACE}/{quote(os.path.relpath(target, self.folder))}")
        self._note_local(str(target))

    def _note_local(self, path: str | None) -> None:
        if path is not None:
            target = (self.folder / path).resolve()
            # What lies outside of the package is the site's, such as a folder with its wheels.
            if target.is_relative_to(self.root) and target.exists():
                self.local.append(target)


def _from_python_env(text: str, name: str) -> tuple[str, str]:
    """Return the requirements of a ``python_env.yaml`` as lines, and the Python that it names."""
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise BadPackage(f"{name} is not YAML: {error}", file=name) from error
    if not isinstance(document, dict):
        raise BadPackage(f"{name} should be a mapping but is {type(document).__name__}.", file=name)
    if unknown := sorted(map(str, document.keys() - _YAML_KEYS)):
        raise BadPackage(
            f"{name} has the unknown key {unknown[0]!r}; known are {', '.join(sorted(_YAML_KEYS))}.", file=name
        )
    lines: list[str] = []
    for key in ("build_dependencies", "dependencies"):
        value: Any = document.get(key) or []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise BadPackage(f"{key} in {name} should be a list of requirements, each a text.", file=name, key=key)
        lines += value
    python = ""
    if document.get("python") is not None:
        # As it is written: 3.10 is no number here.
        python = yaml.load(text, yaml.BaseLoader)["python"]  # noqa: S506 (it makes texts, lists and mappings only)
        if not isinstance(python, str):
            raise BadPackage(f"python in {name} should be a version, such as '3.11'.", file=name, key="python")
    return "".join(f"{line}\n" for line in lines), python.strip()
