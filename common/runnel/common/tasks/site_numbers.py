"""Sites by number, for communities whose algorithms know each other by integers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def site_number(name: str) -> int:
    """Return the number of the site ``name``: positive, below 2**31, and the same in every network and every run.

    >>> site_number("hospital-a")
    405236921
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 0x7FFF_FFFE + 1


def numbered_sites(names: Iterable[str]) -> dict[int, str]:
    """Return the sites by number, in the order of the numbers.

    Of two that would have the same number, once in some billion pairs, the second by name has the next that is free.
    """
    numbered: dict[int, str] = {}
    for name in sorted(set(names)):
        number = site_number(name)
        while number in numbered:
            number += 1
        numbered[number] = name
    return dict(sorted(numbered.items()))
