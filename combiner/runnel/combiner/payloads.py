"""What those below push, from the first byte until it is folded or no longer wanted."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from pathlib import Path

from runnel.common.blobs import Leftovers, Spool, SpoolFile, require_room, storage_errors
from runnel.common.errors import CorruptData
from runnel.common.protocol import BlobRef

_LOOK_LATER_S = 0.1  # than what was left is over


class Payloads:
    """The payloads of all orders: at most one for each order and node, whole or under way.

    Args:
        folder: scratch; emptied at the start.
        keep_s: how long what a lost node had begun is kept for it to go on.
    """

    def __init__(self, folder: Path, *, keep_s: float) -> None:
        self._spool = Spool(folder, durable=False)
        self._spool.wipe()
        self._folder = folder
        self._numbers = itertools.count(1)
        self._left = Leftovers(self._spool, keep_s)
        self._keep_s = keep_s
        self._begun: dict[str, set[str]] = {}
        self._whole: dict[tuple[str, str], tuple[BlobRef, Path]] = {}

    async def open(self, order_id: str, name: str, ref: BlobRef) -> SpoolFile:
        """Return where the payload of a node for an order goes; another that it had begun is dropped."""
        self._begun.setdefault(order_id, set()).add(name)
        self._left.take_up(f"{order_id}/{name}", name, ref.sha256)
        return await asyncio.to_thread(self._spool.open, f"{order_id}/{name}", ref)

    async def keep(self, order_id: str, name: str, ref: BlobRef, file: Path) -> None:
        """Keep a whole payload for its report; an earlier one of the same node for the same order is dropped."""
        _, earlier = self._whole.get((order_id, name), (None, file))
        self._whole[(order_id, name)] = (ref, file)
        if earlier != file:
            await asyncio.to_thread(earlier.unlink, missing_ok=True)

    def keep_data(self, order_id: str, name: str, ref: BlobRef, data: bytes, *, besides_bytes: int = 0) -> None:
        """Keep a small payload that came within its report; quick enough for the event loop.

        Args:
            order_id: under which it is reported.
            name: of the node.
            ref: what it is to be.
            data: the payload.
            besides_bytes: what is to fit on the disk besides.

        Raises:
            CorruptData: it is not what it is announced as.
            StorageFull: there is no room.
        """
        if hashlib.sha256(data).hexdigest() != ref.sha256:
            raise CorruptData(f"The payload of {name} for {order_id} is not what its report says.", node=name)
        file = self._folder / f"within-{next(self._numbers)}.payload"
        if besides_bytes:
            require_room(file, len(data) + besides_bytes)
        with storage_errors(file, need_bytes=len(data)):
            try:
                file.write_bytes(data)
            except OSError:
                file.unlink(missing_ok=True)
                raise
        _, earlier = self._whole.get((order_id, name), (None, None))
        if earlier is not None:
            earlier.unlink(missing_ok=True)
        self._whole[(order_id, name)] = (ref, file)

    def left(self, name: str) -> None:
        """A node is gone: keep what it had begun for a while, as it offers the same under another order."""
        for order_id, names in self._begun.items():
            if name in names:
                names.discard(name)
                self._left.leave(f"{order_id}/{name}", name)
                asyncio.get_running_loop().call_later(self._keep_s + _LOOK_LATER_S, self._left.expire)

    def take(self, order_id: str, name: str) -> tuple[BlobRef, Path] | tuple[None, None]:
        """Hand over a whole payload, if there is one; the caller removes the file."""
        return self._whole.pop((order_id, name), (None, None))

    def drop(self, order_id: str) -> None:
        """Remove all that belongs to an order."""
        for key in [key for key in self._whole if key[0] == order_id]:
            self._whole.pop(key)[1].unlink(missing_ok=True)
        for name in self._begun.pop(order_id, ()):
            self._spool.forget(f"{order_id}/{name}")
