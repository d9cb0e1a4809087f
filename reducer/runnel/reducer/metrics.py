"""What a reducer exports for Prometheus."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

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
from runnel.reducer.engine.engine import Engine
from runnel.reducer.engine.measures import ENGINE_METRICS
from runnel.reducer.engine.run_measures import RUN_METRICS
from runnel.transport import UplinkServer
from runnel.transport.traffic import NODES, RECEIVED, SERVED

ORDERS = Metric(name="runnel_open_orders", kind=MetricKind.GAUGE, help="Orders whose report is waited for.")
SESSIONS = Metric(name="runnel_sessions_running", kind=MetricKind.GAUGE, help="Sessions that run.")
STALLED = Metric(
    name="runnel_sessions_stalled",
    kind=MetricKind.GAUGE,
    help="Sessions that run and wait for this reducer's disk or database; `runnel session show` tells why.",
)
REDUCER_METRICS = (*PROCESS_METRICS, *ENGINE_METRICS, *RUN_METRICS, NODES, ORDERS, SESSIONS, STALLED, SERVED, RECEIVED)


def reducer_page(engine: Engine, uplink: UplinkServer, state: Path, lag: LoopLag) -> MetricsPage:
    """Make the page of a reducer.

    Args:
        engine: its sessions and nodes.
        uplink: what it serves to those below.
        state: its state folder.
        lag: of its event loop.
    """
    database = [state / f"reducer.db{suffix}" for suffix in ("", "-wal", "-shm")]
    folders = {
        "blobs": [state / "blobs", state / "blob-cache"],
        "database": database,
        "spool": [state / "spool", state / "run-spool", state / "partials"],
    }

    async def read() -> list[Sample]:
        kinds = Counter(member.kind for member in engine.members(None))
        return [
            *process_samples("reducer", lag),
            *await asyncio.to_thread(folder_samples, state, folders),
            *engine.measures.samples(),
            *engine.tasks.measures.samples(),
            *(NODES.sample(kinds[kind], kind.value) for kind in NodeKind),
            ORDERS.sample(engine.open_orders),
            SESSIONS.sample(engine.running),
            STALLED.sample(len(engine.stalled)),
            SERVED.sample(uplink.served_bytes),
            RECEIVED.sample(uplink.received_bytes),
        ]

    return MetricsPage(REDUCER_METRICS, read)
