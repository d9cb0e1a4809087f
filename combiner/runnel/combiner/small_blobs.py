"""Small models that go down within orders, and small updates that come up within reports.

Calls of their own for a few kilobytes, with their streams, files and threads, are most of what a round of a thousand
clients costs.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

import structlog

from runnel.combiner.blob_cache import BlobCache
from runnel.combiner.payloads import Payloads
from runnel.common.crash_points import CrashPoint, reach
from runnel.common.errors import CorruptData, IllegalState, RunnelError
from runnel.common.protocol import MOST_WITHIN_BYTES, Assignment, Report
from runnel.transport import NodeIdentity

log = structlog.get_logger()

_MODEL_S = 5.0


async def with_small_model(order: Assignment, cache: BlobCache) -> Assignment:
    """Return an order as it goes down: with its model, if that is small, and with leave for small payloads.

    What comes from above after it has to wait meanwhile, so that nothing overtakes the order.
    """
    data = order.model_data
    if not data and order.model.size_bytes <= MOST_WITHIN_BYTES:
        try:
            async with asyncio.timeout(_MODEL_S):
                async with cache.held(order.model) as path:
                    data = path.read_bytes()  # less than the way to a thread
        except (RunnelError, OSError) as err:  # a time-out too: those below fetch it then
            log.warning("small model not at hand", sha256=order.model.sha256, error=str(err))
    return dataclasses.replace(order, model_data=data, payload_within=MOST_WITHIN_BYTES)


def take_small_payload(
    payloads: Payloads, identity: NodeIdentity, report: Report, require_wanted: Callable[[NodeIdentity, str], object]
) -> None:
    """Keep a payload that came within its report like one that was pushed before, unless it is not wanted.

    Args:
        payloads: where to.
        identity: whose it is.
        report: with the payload.
        require_wanted: raises ``IllegalState`` if no payload of this node is waited for under the order.
    """
    name, order_id, ref = identity.name, report.order_id, report.payload
    if ref is None:
        return
    try:
        require_wanted(identity, order_id)
        payloads.keep_data(order_id, name, ref, report.payload_data)
    except (IllegalState, CorruptData) as err:
        log.info("payload not taken", client=name, order_id=order_id, error=str(err))
    else:
        reach(CrashPoint.UPDATE_RECEIVED)
