"""What a person looks at before a package may run: its files and words, and what changed since the last approval.

The archive is unpacked as a client does it, into a folder that is removed again; nothing of it runs.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runnel.client.reviews import Decided, Pending, Reviews
from runnel.common.blobs import digest_file
from runnel.common.errors import CorruptData, NotFound
from runnel.compute_package import Manifest, read_manifest, unpack

_MAX_TEXT_BYTES = 256 << 10
_MAX_DIFFERENCE_LINES = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """A package that waits.

    ``files``: sizes in bytes by path. ``requirements``: the text of its list, empty if it has none. ``before``: the
    newest approval of a package of this name; ``difference``: unified, from that to this one, empty if there was none.
    """

    pending: Pending
    manifest: Manifest
    files: Mapping[str, int]
    requirements: str
    before: Decided | None
    difference: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        return dataclasses.asdict(self.pending) | {
            "entry_points": dict(self.manifest.entry_points),
            "files": [{"name": name, "size_bytes": size} for name, size in self.files.items()],
            "requirements": self.requirements,
            "approved_before": None if self.before is None else self.before.digest,
            "difference": list(self.difference),
        }


def inspect(reviews: Reviews, pending: Pending) -> Inspected:
    """Look at a package that waits. Blocks.

    Raises:
        NotFound: its archive is not here any more.
        CorruptData: its archive is not what it was when it came.
        BadPackage: it is no package, or hostile.
    """
    archive = reviews.archive(pending)
    if archive is None:
        raise NotFound(
            f"The archive of {pending.digest[:12]} is not here.", hint="It comes again when the package is asked for."
        )
    if digest_file(archive).sha256 != pending.digest:
        raise CorruptData(f"{archive} is not the package {pending.digest[:12]} any more.", path=str(archive))
    before = reviews.approved_before(pending)
    earlier = None if before is None else reviews.archive(before)
    with tempfile.TemporaryDirectory(prefix="runnel-review-", ignore_cleanup_errors=True) as temporary:
        root = unpack(archive, Path(temporary) / "package")
        manifest = read_manifest(root)
        listing = manifest.requirements or manifest.python_env
        files = _files(root)
        difference: tuple[str, ...] = ()
        if earlier is not None:
            difference = _difference(unpack(earlier, Path(temporary) / "before"), root)
        requirements = _text(root / listing) if listing else ""
    return Inspected(
        pending=pending,
        manifest=manifest,
        files=files,
        requirements=requirements or "",
        before=before if earlier is not None else None,
        difference=difference,
    )


def _files(root: Path) -> dict[str, int]:
    paths = sorted(path for path in root.rglob("*") if path.is_symlink() or path.is_file())
    return {path.relative_to(root).as_posix(): path.lstat().st_size for path in paths}


def _difference(before: Path, now: Path) -> tuple[str, ...]:
    lines: list[str] = []
    for name in sorted(_files(before).keys() | _files(now).keys()):
        old, new = before / name, now / name
        if _bytes(old) == _bytes(new):
            continue
        texts = [_text(path) for path in (old, new)]
        if None in texts:
            lines.append(f"{name}: no text, or too large to be shown; {_size(old)} bytes before, {_size(new)} now")
            continue
        texts = [_text(path) for path in (old, new)]
        if None in texts:
            lines.append(
                f"{name}: is not shown, it is no text or too large; {_size(old)} bytes before, {_size(new)} now"
            )
            continue
        was, is_now = ((text or "").splitlines() for text in texts)
        labels = [name if os.path.lexists(path) else "(not there)" for path in (old, new)]
        lines += difflib.unified_diff(was, is_now, labels[0], labels[1], lineterm="")
        if len(lines) > _MAX_DIFFERENCE_LINES:
            return (*lines[:_MAX_DIFFERENCE_LINES], "and more that is not shown")
    return tuple(lines)


def _bytes(path: Path) -> bytes | str | None:
    if path.is_symlink():
        return str(path.readlink())
    return path.read_bytes() if path.exists() else None


def _size(path: Path) -> int:
    return path.lstat().st_size if path.is_symlink() or path.exists() else 0


def _text(path: Path) -> str | None:
    """Return the text of a file, empty if there is none; None: it is none, or too large to read."""
    if path.is_symlink():
        return f"link to {path.readlink()}"
    if not path.exists():
        return ""
    if path.stat().st_size > _MAX_TEXT_BYTES:
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text
