"""Which payloads a combiner takes from those below it, and where they go."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from runnel.combiner.domain import OrderBook
from runnel.combiner.domain.orders import Order, SlotState
from runnel.combiner.payloads import Payloads
from runnel.common.blobs import SpoolFile
from runnel.common.compression import decoding_bytes, parse_compression
from runnel.common.crash_points import CrashPoint, reach
from runnel.common.errors import IllegalState, StorageFull
from runnel.common.payload_limits import require_fitting_payload
from runnel.common.protocol import BlobRef, NodeKind
from runnel.transport import NodeIdentity

log = structlog.get_logger()


def room_to_decode(order: Order, kind: NodeKind) -> int:
    """Return how many bytes folding an answer of a node of this kind takes for a while: clients compress, others don't.

    Raises:
        InvalidInput: there is no such compression.
    """
    asked = order.assignment
    return (
        decoding_bytes(parse_compression(asked.compression), asked.model.size_bytes) if kind is NodeKind.CLIENT else 0
    )


class Intake:
    """Takes what a living order waits for.

    Args:
        name: of the combiner.
        book: its orders.
        payloads: where they wait to be folded.
        max_overhead_bytes: by how much an update may be larger than the global model.
    """

    def __init__(self, name: str, book: OrderBook, payloads: Payloads, *, max_overhead_bytes: int) -> None:
        self._name = name
        self._book = book
        self._payloads = payloads
        self._max_overhead_bytes = max_overhead_bytes

    async def open(self, identity: NodeIdentity, order_id: str, ref: BlobRef) -> SpoolFile:
        """Return where a payload for a living order goes.

        Raises:
            IllegalState: no order waits for it.
            TooLarge, InvalidInput: it can't be what it is said to be.
            StorageFull: there is no room for it, or then to decode it.
        """
        order = self.wanted(identity, order_id)
        require_fitting_payload(
            ref,
            source=identity.name,
            kind=identity.kind,
            gather=order.assignment.gather,
            model=order.assignment.model,
            clients=len(order.under(identity.name, SlotState.WAITING)),
            overhead_bytes=self._max_overhead_bytes,
        )
        file = await self._payloads.open(order_id, identity.name, ref)
        try:
            await asyncio.to_thread(file.require_room, room_to_decode(order, identity.kind))
        except StorageFull as err:
            log.error("no room for an update", client=identity.name, order_id=order_id, error=str(err))
            raise
        self.wanted(identity, order_id)
        return file

    async def keep(self, identity: NodeIdentity, order_id: str, ref: BlobRef, file: Path) -> None:
        """Take a verified payload.

        Raises:
            IllegalState: no order waits for it any more; ``file`` is removed.
        """
        try:
            self.wanted(identity, order_id)
        except IllegalState:
            await asyncio.to_thread(file.unlink, missing_ok=True)
            raise
        reach(CrashPoint.UPDATE_RECEIVED)
        await self._payloads.keep(order_id, identity.name, ref, file)

    def wanted(self, identity: NodeIdentity, order_id: str) -> Order:
        """Return the order for which a payload of this node is waited for; raises ``IllegalState`` if none is."""
        order = self._book.orders.get(order_id)
        if order is None or order.finished or not order.under(identity.name, SlotState.WAITING):
            raise IllegalState(
                f"Order {order_id} takes nothing (more) of {identity.name} at {self._name}.",
                order_id=order_id,
                client=identity.name,
            )
        if order.closing and identity.kind is NodeKind.CLIENT:
            raise IllegalState(f"Order {order_id} is closed: the round went on without {identity.name}.")
        return order
