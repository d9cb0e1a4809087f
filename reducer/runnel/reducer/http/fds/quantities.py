"""Kubernetes' quantities: numbers with a unit, such as 100m, 1.5, 128Mi or 129e6."""

from __future__ import annotations

import re

from runnel.common.errors import InvalidInput

_QUANTITY = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,30})?)(?:e([0-9]{1,2})|(m|[kKMGTPE]i?))?", re.ASCII)
_POWERS = {letter: power for power, letter in enumerate("kMGTPE", 1)}


def amount_of(text: str | None, what: str) -> float | None:
    """Return the number that ``text`` writes; None and nothing: None. ``what`` it is, for the message.

    Raises:
        InvalidInput: it is none.

    >>> amount_of("100m", "cpu"), amount_of("128Mi", "memory"), amount_of("129e6", "memory")
    (0.1, 134217728.0, 129000000.0)
    """
    if text is None or not text.strip():
        return None
    found = _QUANTITY.fullmatch(text.strip())
    if found is None:
        raise InvalidInput(f"{what}: {text[:100]!r} came; it has to be a quantity such as 500m, 2, 128Mi or 1.5G.")
    number, exponent, unit = found.groups()
    if exponent is not None:
        return float(f"{number}e{exponent}")
    if unit is None:
        return float(number)
    if unit == "m":
        return float(number) / 1000
    base = 1024 if unit.endswith("i") else 1000
    return float(number) * float(base ** _POWERS["k" if unit[0] == "K" else unit[0]])
