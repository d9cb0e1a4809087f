"""What those below push, from the first byte until it is folded or no longer wanted."""

from __future__ import annotations

import asyncio
from pathlib import Path

from runnel.common.blobs import Leftovers, Spool, SpoolFile, is_blob
from runnel.common.errors import CorruptData
from runnel.common.protocol import BlobRef

_LOOK_LATER_S = 0.1  # than what was left is over


Payload = Path | bytes
"""A file, or what came within a report: at most 16 KiB, for which a file costs more than all else."""


def remove(payload: Payload) -> None:
    """Remove the file of a payload, if it has one."""
    if isinstance(payload, Path):
        payload.unlink(missing_ok=True)


class Payloads:
    """The payloads of all orders: at most one for each order and node, whole or under way.

    Args:
        folder: scratch; emptied at the start.
        keep_s: how long what a lost node had begun is kept for it to go on.
    """

    def __init__(self, folder: Path, *, keep_s: float) -> None:
        self._spool = Spool(folder, durable=False, reuse=True)
        self._spool.wipe()
        self._left = Leftovers(self._spool, keep_s)
        self._keep_s = keep_s
        self._begun: dict[str, set[str]] = {}
        self._whole: dict[tuple[str, str], tuple[BlobRef, Payload]] = {}

    async def open(self, order_id: str, name: str, ref: BlobRef) -> SpoolFile:
        """Return where the payload of a node for an order goes; another that it had begun is dropped."""
        self._begun.setdefault(order_id, set()).add(name)
        self._left.take_up(f"{order_id}/{name}", name, ref.name)
        return await asyncio.to_thread(self._spool.open, f"{order_id}/{name}", ref)

    async def keep(self, order_id: str, name: str, ref: BlobRef, file: Path) -> None:
        """Keep a whole payload for its report; an earlier one of the same node for the same order is dropped."""
        _, earlier = self._whole.get((order_id, name), (None, None))
        self._whole[(order_id, name)] = (ref, file)
        if earlier is not None and earlier != file:
            await asyncio.to_thread(remove, earlier)

    def keep_data(self, order_id: str, name: str, ref: BlobRef, data: bytes) -> None:
        """Keep a small payload that came within its report.

        Raises:
            CorruptData: it is not what it is announced as.
        """
        if not is_blob(data, ref):
            raise CorruptData(f"The payload of {name} for {order_id} is not what its report says.", node=name)
        _, earlier = self._whole.get((order_id, name), (None, b""))
        self._whole[(order_id, name)] = (ref, data)
        remove(earlier)

    def left(self, name: str) -> None:
        """A node is gone: keep what it had begun for a while, as it offers the same under another order."""
        for order_id, names in self._begun.items():
            if name in names:
                names.discard(name)
                self._left.leave(f"{order_id}/{name}", name)
                asyncio.get_running_loop().call_later(self._keep_s + _LOOK_LATER_S, self._left.expire)

    def take(self, order_id: str, name: str) -> tuple[BlobRef, Payload] | tuple[None, None]:
        """Hand over a whole payload, if there is one; the caller gives it to :meth:`spend`."""
        return self._whole.pop((order_id, name), (None, None))

    async def spend(self, payload: Payload | None) -> None:
        """Take back a payload that was handed over and is not read any more."""
        if isinstance(payload, Path):
            await self._spool.spares.spend(payload)

    def drop(self, order_id: str) -> None:
        """Remove all that belongs to an order."""
        for key in [key for key in self._whole if key[0] == order_id]:
            remove(self._whole.pop(key)[1])
        for name in self._begun.pop(order_id, ()):
            self._spool.forget(f"{order_id}/{name}")
