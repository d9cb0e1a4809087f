"""How long the parts of a piece of work took, as its report tells them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def timed(elapsed_s: dict[str, float], part: str) -> Iterator[None]:
    """Put the seconds that the block takes into ``elapsed_s`` under ``part``, also if it fails."""
    started = time.monotonic()
    try:
        yield
    finally:
        elapsed_s[part] = time.monotonic() - started
