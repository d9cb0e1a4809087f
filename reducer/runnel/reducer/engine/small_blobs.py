"""Small models that go down within orders, and small payloads that come up within reports.

A call of its own for a few kilobytes, with its stream, its files and its ways to threads, is a large part of what a
round of a small model costs.
"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import structlog

from runnel.common.blobs import is_blob
from runnel.common.disk import write_bytes
from runnel.common.errors import CorruptData, RunnelError
from runnel.common.protocol import MOST_WITHIN_BYTES, BlobRef, Report
from runnel.reducer.store.blobs import Blobs

log = structlog.get_logger()


async def small_model(blobs: Blobs, model: BlobRef) -> bytes:
    """Return a model that is to go within orders; nothing if it is too large, or not at hand: then it is fetched."""
    if model.size_bytes > MOST_WITHIN_BYTES:
        return b""
    try:
        async with blobs.held(model) as path:
            return path.read_bytes()  # a few kilobytes that were just written: less than the way to a thread
    except (RunnelError, OSError) as err:
        log.warning("small model not at hand", sha256=model.sha256, error=str(err))
        return b""


def payload_name(order_id: str) -> str:
    """Return a name for the file of a payload of an order.

    One for each push: not even the same payload, pushed again, may take the place of one that is being checked or
    counted, for that may be decoded there, and is removed only by whoever has it.
    """
    return f"{order_id}-{secrets.token_hex(8)}.payload"


async def keep_small_payload(report: Report, folder: Path) -> Path:
    """Make a payload that came within its report a file that lasts, like one that was pushed; return it.

    Raises:
        CorruptData: it is not what the report says.
        StorageFull: there is no room.
    """
    data, ref = report.payload_data, report.payload
    if ref is None or not is_blob(data, ref):
        raise CorruptData(f"The payload within the report for {report.key} is not what the report says.")
    place = folder / payload_name(report.order_id)
    await asyncio.to_thread(write_bytes, place, data)
    return place
