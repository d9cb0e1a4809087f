"""The light stand-in for FEDn that packages of that system import, as a wheel that any installer takes.

Its source is in ``fedn_shim``: ``get_helper``, ``save_metadata`` and the helpers under all the names that they had, on
nothing but numpy. With it an environment that names ``fedn`` needs neither FEDn's servers nor their libraries.
"""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from pathlib import Path

SHIM_VERSION = "0.33.0+runnel"
"""The version of FEDn whose names it offers; ``fedn==0.33.0`` is satisfied by it."""

_WHEEL_NAME = f"fedn-{SHIM_VERSION}-py3-none-any.whl"
_INFO = f"fedn-{SHIM_VERSION}.dist-info"
# PyYAML is what packages of FEDn read their own settings with, trusting that FEDn brings it.
_METADATA = f"""\
Metadata-Version: 2.1
Name: fedn
Version: {SHIM_VERSION}
Summary: What compute packages import of FEDn, without its servers
Requires-Python: >=3.8
Requires-Dist: numpy
Requires-Dist: pyyaml
"""
_WHEEL = """\
Wheel-Version: 1.0
Generator: runnel
Root-Is-Purelib: true
Tag: py3-none-any
"""


def shim_source() -> Path:
    """Return the folder that holds the package ``fedn``, for the import path of an interpreter."""
    return Path(__file__).with_name("fedn_shim")


def shim_digest() -> str:
    """Return the SHA-256 of the wheel in hex; it changes with the stand-in. Blocks."""
    return hashlib.sha256(_wheel()).hexdigest()


def write_shim_wheel(folder: Path) -> Path:
    """Write the wheel into ``folder`` and return its path. Blocks."""
    path = folder / _WHEEL_NAME
    path.write_bytes(_wheel())
    return path


@functools.cache
def _wheel() -> bytes:
    source = shim_source()
    files = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*.py")}
    files |= {f"{_INFO}/METADATA": _METADATA.encode(), f"{_INFO}/WHEEL": _WHEEL.encode()}
    record = "".join(f"{name},,\n" for name in (*sorted(files), f"{_INFO}/RECORD"))
    files[f"{_INFO}/RECORD"] = record.encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in sorted(files):
            # With the date that ZipInfo has by itself: the same source gives the same bytes.
            archive.writestr(zipfile.ZipInfo(name), files[name])
    return made.getvalue()
