"""Wheels made here, so that no test of environments asks a package index."""

from __future__ import annotations

import hashlib
import zipfile
from importlib.metadata import distribution
from pathlib import Path


def write_wheel(folder: Path, version: str = "1.0") -> Path:
    """Write a wheel of the project ``greeting`` with one module and one command."""
    info = f"greeting-{version}.dist-info"
    files = {
        "greeting.py": f"def main():\n    print('hello {version}')\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: greeting\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ngreet = greeting:main\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"greeting-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(name, text)
    return path


def write_installed_wheel(folder: Path, project: str) -> Path:
    """Write a wheel of ``project`` as it is installed in this environment, without its commands."""
    installed = distribution(project)
    tags = [line.partition(": ")[2] for line in (installed.read_text("WHEEL") or "").splitlines() if "Tag: " in line]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{installed.metadata['Name'].replace('-', '_')}-{installed.version}-{tags[0]}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for one in installed.files or ():
            name = one.as_posix()
            if ".." in one.parts or name.endswith((".pyc", "INSTALLER", "REQUESTED", "direct_url.json")):
                continue
            if "tests" in one.parts:
                continue  # a third of numpy
            archive.write(str(one.locate()), name)
    return path


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
