"""What somebody may have meant by a name that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from runnel.common.errors import UnknownData

_SHOWN = 20


def unknown(kind: str, name: str, there: Iterable[str], *, inside: str = "") -> UnknownData:
    """Return the error for a ``kind`` (database, table, field) that is not among those that are ``there``.

    Args:
        kind: of thing.
        name: what came.
        there: what could have been asked for.
        inside: where it was looked for, as ``table patients``.
    """
    names = sorted(there)
    where = f" in {inside}" if inside else ""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        hint = f"Did you mean {near[0]!r}?"
    elif names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        hint = f"There are {', '.join(names[:_SHOWN])}{more}."
    else:
        hint = "There are none."
    return UnknownData(f"There is no {kind} {name[:200]!r}{where}.", hint=hint, kind=kind, name=name[:200])
