"""What the scripts of a package use of FEDn: whether they import it, and which of its helpers they name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_IMPORT = re.compile(rb"^[ \t]*(?:from|import)[ \t]+fedn\b", re.MULTILINE)
_HELPER = re.compile(rb"\b(numpy|keras|pytorch|binary|android|splitlearning)helper\b", re.IGNORECASE)
# Scripts of the older packages are called entrypoint, without suffix.
_SUFFIXES = ("", ".py")
_MAX_BYTES = 256 * 1024
_MAX_FILES = 500
_RAW = {"binaryhelper": "<f8", "androidhelper": "<f4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FednUse:
    """What a package uses of FEDn.

    Attributes:
        imports: whether one of its scripts imports ``fedn``.
        helpers: the helpers that its scripts name, in the order of the alphabet.
    """

    imports: bool = False
    helpers: tuple[str, ...] = ()

    @property
    def raw_dtype(self) -> str | None:
        """The dtype of the numbers that its model files are nothing but, in numpy's notation; None: ``.npz`` files.

        ``binaryhelper`` has float64, ``androidhelper`` float32. A package that names others beside is taken to use
        those.
        """
        return _RAW.get(self.helpers[0]) if self.imports and len(self.helpers) == 1 else None


NO_USE = FednUse()


def find_fedn_use(root: Path) -> FednUse:
    """Look through the scripts in ``root`` (at most 500, those of at most 256 KiB). Blocks."""
    imports, helpers = False, set()
    for number, path in enumerate(_scripts(root)):
        if number >= _MAX_FILES:
            break
        text = path.read_bytes()
        imports = imports or _IMPORT.search(text) is not None
        helpers |= {match[1].decode().lower() + "helper" for match in _HELPER.finditer(text)}
    return FednUse(imports=imports, helpers=tuple(sorted(helpers)))


def _scripts(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix not in _SUFFIXES or name.startswith(".") or path.is_symlink() or not path.is_file():
                continue
            if path.stat().st_size <= _MAX_BYTES:
                yield path
