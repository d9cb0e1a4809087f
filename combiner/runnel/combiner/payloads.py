"""What those below push, from the first byte until it is folded or no longer wanted."""

from __future__ import annotations

import asyncio
from pathlib import Path

from runnel.common.blobs import Spool, SpoolFile
from runnel.common.protocol import BlobRef


class Payloads:
    """The payloads of all orders: at most one for each order and node, whole or under way.

    Args:
        folder: scratch; emptied at the start.
    """

    def __init__(self, folder: Path) -> None:
        self._spool = Spool(folder, durable=False)
        self._spool.wipe()
        self._begun: dict[str, set[str]] = {}
        self._whole: dict[tuple[str, str], tuple[BlobRef, Path]] = {}

    async def open(self, order_id: str, name: str, ref: BlobRef) -> SpoolFile:
        """Return where the payload of a node for an order goes; another that it had begun is dropped."""
        self._begun.setdefault(order_id, set()).add(name)
        return await asyncio.to_thread(self._spool.open, f"{order_id}/{name}", ref)

    async def keep(self, order_id: str, name: str, ref: BlobRef, file: Path) -> None:
        """Keep a whole payload for its report; an earlier one of the same node for the same order is dropped."""
        _, earlier = self._whole.get((order_id, name), (None, file))
        self._whole[(order_id, name)] = (ref, file)
        if earlier != file:
            await asyncio.to_thread(earlier.unlink, missing_ok=True)

    def take(self, order_id: str, name: str) -> tuple[BlobRef, Path] | tuple[None, None]:
        """Hand over a whole payload, if there is one; the caller removes the file."""
        return self._whole.pop((order_id, name), (None, None))

    def drop(self, order_id: str) -> None:
        """Remove all that belongs to an order."""
        for key in [key for key in self._whole if key[0] == order_id]:
            self._whole.pop(key)[1].unlink(missing_ok=True)
        for name in self._begun.pop(order_id, ()):
            self._spool.forget(f"{order_id}/{name}")
