"""Identifiers, secrets and the names of nodes."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

from runnel.common.errors import InvalidInput

RandomBits = Callable[[int], int]
"""From a number of bits to an integer of that many random bits: ``secrets.randbits``, ``Random(1).getrandbits``."""

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def _base32(bits: int, random: RandomBits) -> str:
    number = random(bits)
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(bits - 5, -1, -5))


def new_id(prefix: str, *, random: RandomBits = secrets.randbits) -> str:
    """Return a new identifier such as ``ses-7k3m9qx2w4``: ``prefix`` and 50 random bits in lower-case Crockford base32.

    The alphabet has no ``i``, ``l``, ``o`` and ``u``, so that an id survives being read out. Among a million ids of one
    prefix the chance that any two are equal is below one in two thousand: whoever stores them keeps them unique.
    """
    return f"{prefix}-{_base32(50, random)}"


def new_secret(*, random: RandomBits = secrets.randbits) -> str:
    """Return a new token of 260 random bits; it begins with ``rnl_`` so that scanners and people recognise it."""
    return f"rnl_{_base32(260, random)}"


def valid_name(text: str) -> str:
    """Return ``text`` if it may name a node, a database or a session.

    A name has 1 to 64 ASCII letters, digits, dots, dashes and underscores and begins with a letter or a digit, so it is
    safe as a file name, in a URL and on a command line.

    Raises:
        InvalidInput: it is anything else.
    """
    if not _NAME.fullmatch(text):
        shown = text if len(text) <= 80 else text[:80] + "…"
        raise InvalidInput(
            f"A name has 1 to 64 letters, digits, dots, dashes and underscores and begins with a letter or a digit; "
            f"{shown!r} does not fit.",
            hint="Choose another name.",
            name=shown,
        )
    return text
