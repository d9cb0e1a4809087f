"""What a process imports and never gives back, kept from the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting_imports() -> Iterator[None]:
    """Import in the block what the process keeps to its end; it is no process that others share, as a test is.

    The collector would go through the same modules again and again while they grow, a sixth of the time that importing
    takes, to find some hundred objects, and once more whenever it looks at everything, while an event loop waits.
    Whatever there is at the end of the block it does not look at any more.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
