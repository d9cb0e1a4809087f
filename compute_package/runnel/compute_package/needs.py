"""What a package needs where it runs beside its requirements: a Python, and packages of the system."""

from __future__ import annotations

import re

from runnel.common.errors import BadPackage
from runnel.compute_package.strict_yaml import kind_of

_FILE = "runnel.yaml"
_PYTHON = re.compile(r"3\.[0-9]{1,3}(\.[0-9]{1,3})?", re.ASCII)
# Names and versions of Debian (Policy, 5.6.1 and 5.6.12); nothing that a shell or an option would be.
_APT = re.compile(r"[a-z0-9][a-z0-9+.-]{1,127}(=[0-9][A-Za-z0-9.+~:-]{0,127})?", re.ASCII)
_MOST_APT = 100


def read_python(value: object) -> str:
    """Return the ``python`` of a ``runnel.yaml``, ``3.11`` or ``3.11.7``; empty if there is none.

    Raises:
        BadPackage: it is no such text.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        hint = "Put it in quotation marks." if isinstance(value, float) else ""
        raise _bad("python", f"should be text but is {kind_of(value)}", hint)
    if not _PYTHON.fullmatch(value):
        raise _bad("python", f'should be a version like "3.11" or "3.11.7" but is {value[:40]!r}')
    return value


def read_apt(value: object) -> tuple[str, ...]:
    """Return the ``apt`` of a ``runnel.yaml``: names of Debian's packages, ``libgomp1`` or ``libgomp1=12.2.0-14``.

    Raises:
        BadPackage: it is no list of such names.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _bad("apt", f"should be a list of names but is {kind_of(value)}")
    if len(value) > _MOST_APT:
        raise _bad("apt", f"should have at most {_MOST_APT} names but has {len(value)}")
    names = []
    for each in value:
        if not isinstance(each, str) or not _APT.fullmatch(each):
            shown = repr(each[:40]) if isinstance(each, str) else kind_of(each)
            raise _bad("apt", f"should name packages of Debian like libgomp1 but has {shown}")
        names.append(each)
    return tuple(names)


def _bad(key: str, what: str, hint: str = "") -> BadPackage:
    return BadPackage(f"{_FILE}: {key} {what}.", hint=hint, file=_FILE, key=key)
