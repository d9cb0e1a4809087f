"""What goes into a package's archive: the files of its folder, more from elsewhere, less what its author leaves out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pathspec

from runnel.common.errors import BadPackage
from runnel.compute_package.members import name_fault
from runnel.compute_package.strict_yaml import kind_of, load_yaml

IGNORE_FILES = (".runnelignore", ".fednignore")
DEFAULT_IGNORES = (
    "__pycache__/",
    "*.py[cod]",
    ".git",
    ".hg",
    ".svn",
    ".venv",
    "venv/",
    ".env",
    "*.egg-info/",
    ".ipynb_checkpoints/",
    ".pytest_cache/",
    ".mypy_cache/",
    ".ruff_cache/",
    ".DS_Store",
    "Thumbs.db",
)
"""What no package carries unless its author says so: caches, version control, environments, secrets."""

CONTENT_KEYS = ("include", "exclude", "force_include")
"""Keys of ``runnel.yaml`` that matter where a package is packed and nowhere else."""

_MANIFEST = "runnel.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file that goes in: where it is, and the folder that its name in the package is relative to."""

    path: Path
    root: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What ``runnel.yaml`` says of the archive.

    Args:
        include: files and folders from elsewhere, relative to the package's folder or absolute, that lie in the
            package's root under their own names.
        exclude: patterns of ``.gitignore`` for what is left out.
        force_include: patterns for what goes in although an ignore file, ``exclude`` or a default leaves it out.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    force_include: tuple[str, ...] = ()


def read_contents(document: Mapping[object, object]) -> Contents:
    """Read the keys of a ``runnel.yaml`` that say what is packed.

    Raises:
        BadPackage: a value is no list of texts.
    """
    found = {key: document[key] for key in CONTENT_KEYS if document.get(key) is not None}
    for key, value in found.items():
        wrong = value if not isinstance(value, list) else next((one for one in value if not _is_text(one)), None)
        if wrong is not None or not isinstance(value, list):
            raise BadPackage(
                f"{_MANIFEST}: {key} should be a list of texts but {'is' if wrong is value else 'has'}"
                f" {kind_of(wrong)}.",
                file=_MANIFEST,
                key=key,
            )
    return Contents(**{key: tuple(value) for key, value in found.items() if isinstance(value, list)})


def find_sources(root: Path, *, skip: Path) -> dict[str, Source]:
    """Return by name what goes into the archive of the folder ``root``, in the order of the names' UTF-8 bytes.

    Args:
        root: resolved folder of the package.
        skip: a file that is never packed.

    Raises:
        BadPackage: something that is to be included is not there, or would lie where something else does; a name does
            not travel; a pattern is none.
    """
    contents = Contents()
    if (root / _MANIFEST).is_file():
        contents = read_contents(load_yaml(root / _MANIFEST))
    rules = _Rules(
        ignored=_spec([*DEFAULT_IGNORES, *_ignore_lines(root), *contents.exclude]),
        forced=_spec(contents.force_include) if contents.force_include else None,
    )
    found = {name: Source(path=path, root=root) for name, path in rules.walk(root, root) if path != skip}
    for text in contents.include:
        for name, source in _included(root, text, rules):
            if name in found or any(part in found for part in _parents(name)):
                raise BadPackage(
                    f"{_MANIFEST}: include names {text!r}, and the package has another {name}.",
                    hint="Rename one of them.",
                    file=_MANIFEST,
                    key="include",
                )
            found[name] = source
    return {name: found[name] for name in sorted(found, key=os.fsencode)}


def _included(root: Path, text: str, rules: _Rules) -> Iterator[tuple[str, Source]]:
    path = Path(os.path.normpath(root / text))
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        raise BadPackage(
            f"{_MANIFEST}: include names {text!r}, which is {'a link' if path.is_symlink() else 'not there'}.",
            hint="Name a file or folder, relative to the package's folder.",
            file=_MANIFEST,
            key="include",
        )
    if path.is_relative_to(root) or root.is_relative_to(path):
        raise BadPackage(
            f"{_MANIFEST}: include names {text!r}, which has the package in it, or is in the package already.",
            hint="What an ignore file leaves out goes in by force_include.",
            file=_MANIFEST,
            key="include",
        )
    origin = path.parent.resolve()
    if path.is_dir():
        for name, each in rules.walk(origin / path.name, origin):
            yield name, Source(path=each, root=origin)
    else:
        # It is named; a pattern that is meant for files of the folder does not take it away again.
        _require_name(path.name)
        yield path.name, Source(path=origin / path.name, root=origin)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    ignored: pathspec.GitIgnoreSpec
    forced: pathspec.GitIgnoreSpec | None

    def walk(self, folder: Path, root: Path, *, left_out: bool = False) -> Iterator[tuple[str, Path]]:
        """Yield name and path of what goes in; ``left_out``: of this folder nothing but what is forced."""
        with os.scandir(folder) as listing:
            entries = list(listing)
        for entry in entries:
            path = Path(entry.path)
            name = path.relative_to(root).as_posix()
            is_folder = entry.is_dir(follow_symlinks=False)
            out = left_out or self.ignored.match_file(f"{name}/" if is_folder else name)
            if out and (self.forced is None or not (is_folder or self.forced.match_file(name))):
                continue
            if is_folder and out:
                yield from self.walk(path, root, left_out=True)
                continue
            _require_name(name)
            if is_folder:
                yield from self.walk(path, root)
            else:
                yield name, path


def _require_name(name: str) -> None:
    if fault := name_fault(name):
        raise BadPackage(
            f"The name {name!a} {fault}, so it does not travel.", hint="Rename or ignore it.", member=ascii(name)
        )


def _parents(name: str) -> Iterator[str]:
    parts = name.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def _ignore_lines(root: Path) -> list[str]:
    lines: list[str] = []
    for name in IGNORE_FILES:
        if (root / name).is_file():
            try:
                lines += (root / name).read_text(encoding="utf-8").splitlines()
            except UnicodeDecodeError as error:
                raise BadPackage(f"{name} should be UTF-8 text but is not: {error}.", file=name) from error
    return lines


def _spec(lines: list[str] | tuple[str, ...]) -> pathspec.GitIgnoreSpec:
    try:
        return pathspec.GitIgnoreSpec.from_lines(lines)
    except ValueError as error:
        raise BadPackage(f"An ignore file, or {_MANIFEST}, has a line that is no pattern: {error}.") from error


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
