"""Who reads which blob."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from runnel.common.protocol import BlobRef


class Readers:
    """Counts who reads a blob, by its name: the file of what somebody reads may go, and is not written over."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()

    def __contains__(self, name: str) -> bool:
        return name in self._count

    @contextmanager
    def reading(self, ref: BlobRef) -> Iterator[None]:
        """While the block runs, the blob is read."""
        self._count[ref.name] += 1
        try:
            yield
        finally:
            self._count[ref.name] -= 1
            if not self._count[ref.name]:
                del self._count[ref.name]
