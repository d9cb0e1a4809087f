"""The metrics of who is attached and what travels: models, packages and payloads, without messages."""

from __future__ import annotations

from runnel.common.metrics import Metric
from runnel.common.metrics.values import MetricKind

NODES = Metric(
    name="runnel_attached_nodes",
    kind=MetricKind.GAUGE,
    help="Nodes that are attached, here or further below.",
    labels=("kind",),
)
FETCHED = Metric(
    name="runnel_fetched_bytes_total",
    kind=MetricKind.COUNTER,
    help="Bytes of models and packages that came from the node above.",
)
PUSHED = Metric(
    name="runnel_pushed_bytes_total",
    kind=MetricKind.COUNTER,
    help="Bytes of payloads that the node above has taken whole.",
)
SERVED = Metric(
    name="runnel_served_bytes_total",
    kind=MetricKind.COUNTER,
    help="Bytes of models and packages that nodes below fetched here.",
)
RECEIVED = Metric(
    name="runnel_received_bytes_total",
    kind=MetricKind.COUNTER,
    help="Bytes of payloads that nodes below pushed here.",
)
ATTACHED = Metric(name="runnel_attached", kind=MetricKind.GAUGE, help="1 while attached to the node above, else 0.")
UPWARD_METRICS = (ATTACHED, FETCHED, PUSHED)
