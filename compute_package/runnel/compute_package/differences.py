"""What is different between two versions of a compute package, for people."""

from __future__ import annotations

import difflib
import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runnel.compute_package.describe import Description, describe
from runnel.compute_package.pack import pack
from runnel.compute_package.unpack import unpack

MAX_TEXT_BYTES = 1 << 20
"""A larger file is told by its sizes alone, as if it were binary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDifference:
    """A file that only one of two packages has, or that is not the same in both.

    Attributes:
        name: relative to the package's root.
        before, after: size in bytes; None: it is not in that package.
        diff: lines of the unified difference, without line ends; empty if the file is no text in either, or too large.
    """

    name: str
    before: int | None
    after: int | None
    diff: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Return ``added``, ``removed`` or ``changed``."""
        return "added" if self.before is None else "removed" if self.after is None else "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageDifference:
    """How the package ``after`` differs from ``before``.

    Attributes:
        files: those that are not the same, by name.
        entry_points: command lines before and after by entry point; None: there is none.
        requirements: what its environment needs, before and after: the lines of the requirements file without comments
            and blank lines, or of the file that a ``fedn.yaml`` names. Only what is in one of both is in here.
    """

    before: Description
    after: Description
    files: tuple[FileDifference, ...]
    entry_points: Mapping[str, tuple[str | None, str | None]]
    requirements: tuple[tuple[str, ...], tuple[str, ...]]


def differences(before: Path, after: Path) -> PackageDifference:
    """Compare two packages, archives or folders.

    Raises:
        NotFound, BadPackage, StorageFull: see :func:`runnel.compute_package.describe`.
    """
    described = describe(before), describe(after)
    with tempfile.TemporaryDirectory(prefix="runnel-package-", ignore_cleanup_errors=True) as temporary:
        old, new = (_root(path, Path(temporary) / side) for path, side in ((before, "before"), (after, "after")))
        listed = [{file.name for file in each.files} for each in described]
        names = sorted(listed[0] | listed[1])
        found = [
            _compare(name, old / name if name in listed[0] else None, new / name if name in listed[1] else None)
            for name in names
        ]
        needs = [_needs(root, each) for root, each in zip((old, new), described, strict=True)]
    points = [each.manifest.entry_points for each in described]
    return PackageDifference(
        before=described[0],
        after=described[1],
        files=tuple(each for each in found if each is not None),
        entry_points={
            name: (points[0].get(name), points[1].get(name))
            for name in sorted(points[0].keys() | points[1].keys())
            if points[0].get(name) != points[1].get(name)
        },
        requirements=(
            tuple(line for line in needs[0] if line not in needs[1]),
            tuple(line for line in needs[1] if line not in needs[0]),
        ),
    )


def _root(path: Path, folder: Path) -> Path:
    """Return where the files of a package lie as a client would have them."""
    if path.is_dir():
        path = pack(path, folder.with_suffix(".tar.gz")).path
    return unpack(path, folder)


def _compare(name: str, old: Path | None, new: Path | None) -> FileDifference | None:
    contents = [_content(path) for path in (old, new)]
    if contents[0] == contents[1]:
        return None
    texts = [_text(path) for path in (old, new)]
    lines: list[str] = []
    if None not in texts:
        was, now = ((text or "").splitlines() for text in texts)
        labels = ("/dev/null" if old is None else f"a/{name}", "/dev/null" if new is None else f"b/{name}")
        lines = list(difflib.unified_diff(was, now, *labels, lineterm=""))
    return FileDifference(name=name, before=_size(old), after=_size(new), diff=tuple(lines))


def _content(path: Path | None) -> tuple[str, str] | None:
    """Return what the file is, for comparing; a link is where it leads, not what is there."""
    if path is None:
        return None
    if path.is_symlink():
        return "link", str(path.readlink())
    with path.open("rb") as file:
        return "file", hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path | None) -> int | None:
    return None if path is None else path.lstat().st_size


def _text(path: Path | None) -> str | None:
    """Return the text of a file, empty if it is not there; None: it is none, or too large."""
    if path is None:
        return ""
    if path.is_symlink():
        return f"link to {path.readlink()}"
    if path.stat().st_size > MAX_TEXT_BYTES:
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _needs(root: Path, described: Description) -> list[str]:
    named = described.manifest.requirements or described.manifest.python_env
    text = _text(root / named) if named and (root / named).exists() else None
    lines = [line.strip() for line in (text or "").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]
