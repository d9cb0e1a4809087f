"""Payloads that are part of a model now, until they are removed."""

from __future__ import annotations

from pathlib import Path

from runnel.reducer.store.blobs import Blobs


class SpentPayloads:
    """Removes payloads while the session waits for others: to free the pages of large ones takes tens of milliseconds.

    What a killed process did not come to is removed at the next start, as no row names it any more.

    Args:
        blobs: has the payloads.
    """

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._files: list[Path] = []

    def add(self, *files: Path) -> None:
        """Note payloads that no row of the ledger names any more."""
        self._files += files

    async def drop(self) -> None:
        """Remove what was noted."""
        if self._files:
            files, self._files = self._files, []
            await self._blobs.drop_payloads(*files)
