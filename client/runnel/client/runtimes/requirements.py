"""What a package wants installed: its ``requirements.txt`` or the ``python_env.yaml`` of FEDn packages."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from runnel.common.errors import BadPackage

_MAX_BYTES = 1 << 20
_YAML_KEYS = frozenset({"name", "python", "build_dependencies", "dependencies"})
# A wheel, a folder or another list beside the requirements: their content decides what is installed.
_LOCAL_OPTION = re.compile(r"(-r|-c|-e|--requirement|--constraint|--editable)\b")
_LOCAL_PATH = re.compile(r"(^|[\s=@])(\.{0,2}/|file:)|\.(whl|zip|tar\.gz|tgz)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What is to be installed.

    Args:
        text: in the format of pip's requirements files.
        folder: what relative paths in it are relative to.
        file: the file with exactly this text; None: it was made from another format.
    """

    text: str
    folder: Path
    file: Path | None

    @property
    def empty(self) -> bool:
        """Whether nothing is asked for: blank lines and comments only."""
        return not any(line.strip() and not line.lstrip().startswith("#") for line in self.text.splitlines())

    def digest(self) -> str:
        """Return the SHA-256 in hex of all that decides what is installed.

        That is the text and, if it refers to files beside it, the content of the whole folder. Blocks.
        """
        digest = hashlib.sha256(self.text.encode())
        if any(map(_is_local, self.text.splitlines())):
            for path in sorted(p for p in self.folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
                digest.update(f"\0{path.relative_to(self.folder)}\0".encode(errors="surrogateescape"))
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def _is_local(line: str) -> bool:
    line = line.strip()
    if _LOCAL_OPTION.match(line):
        return True
    return "://" not in line.replace("file://", "") and _LOCAL_PATH.search(line) is not None


def read_requirements(path: Path) -> Requirements:
    """Read a requirements file, or a ``python_env.yaml`` if the name of ``path`` ends so. Blocks.

    Of a ``python_env.yaml`` the ``build_dependencies`` and the ``dependencies`` count; the environment has the Python
    version of the client, as FEDn's had.

    Raises:
        BadPackage: there is no such file, it is larger than 1 MiB, not UTF-8, or not of that form.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise BadPackage(f"The package names {path.name} for its requirements but does not have it.") from error
    except UnicodeDecodeError as error:
        raise BadPackage(f"{path.name} should be UTF-8 text: {error}.", file=path.name) from error
    if len(raw) > _MAX_BYTES:
        raise BadPackage(f"{path.name} is larger than 1 MiB.", file=path.name)
    if path.suffix in (".yaml", ".yml"):
        return Requirements(text=_from_python_env(text, path.name), folder=path.parent, file=None)
    return Requirements(text=text, folder=path.parent, file=path)


def _from_python_env(text: str, name: str) -> str:
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
    return "".join(f"{line}\n" for line in lines)
