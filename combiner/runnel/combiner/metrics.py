"""What a combiner exports for Prometheus, where it is asked to."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from runnel.combiner.combiner import Combiner
from runnel.common.metrics import (
    PROCESS_METRICS,
    LoopLag,
    Metric,
    MetricsPage,
    Sample,
    folder_samples,
    process_samples,
)
from runnel.common.metrics.values import MetricKind
from runnel.common.protocol import NodeKind
from runnel.transport import UplinkServer
from runnel.transport.traffic import NODES, RECEIVED, SERVED, UPWARD_METRICS

ORDERS = Metric(name="runnel_open_orders", kind=MetricKind.GAUGE, help="Orders whose report is not sent yet.")
FOLDED = Metric(
    name="runnel_folded_reports_total",
    kind=MetricKind.COUNTER,
    help="Reports from below whose updates were folded, or refused.",
    labels=("outcome",),
)
COMBINER_METRICS = (*PROCESS_METRICS, *UPWARD_METRICS, NODES, ORDERS, FOLDED, SERVED, RECEIVED)


def combiner_page(combiner: Combiner, uplink: UplinkServer, state: Path, lag: LoopLag) -> MetricsPage:
    """Make the page of a combiner.

    Args:
        combiner: itself.
        uplink: what it serves to those below.
        state: its state folder.
        lag: of its event loop.
    """
    folders = {"blobs": [state / "blobs"], "spool": [state / "spool", state / "sums"]}

    async def read() -> list[Sample]:
        kinds = Counter(member.kind for member in combiner.below)
        return [
            *process_samples("combiner", lag),
            *await asyncio.to_thread(folder_samples, state, folders),
            *combiner.link.samples(),
            *(NODES.sample(kinds[kind], kind.value) for kind in NodeKind),
            ORDERS.sample(combiner.open_orders),
            *combiner.folded.samples(FOLDED),
            SERVED.sample(uplink.served_bytes),
            RECEIVED.sample(uplink.received_bytes),
        ]

    return MetricsPage(COMBINER_METRICS, read)
