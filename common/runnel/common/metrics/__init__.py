"""What a component measures of itself, and how Prometheus reads it.

Components count in plain numbers as they go; nothing else happens until somebody asks. The client library of
Prometheus is imported by :class:`MetricsPage` alone.
"""

from runnel.common.metrics.page import MetricsPage
from runnel.common.metrics.process import PROCESS_METRICS, LoopLag, folder_samples, process_samples
from runnel.common.metrics.server import MetricsServer
from runnel.common.metrics.values import Distribution, Metric, Sample, Tally

__all__ = [
    "PROCESS_METRICS",
    "Distribution",
    "LoopLag",
    "Metric",
    "MetricsPage",
    "MetricsServer",
    "Sample",
    "Tally",
    "folder_samples",
    "process_samples",
]
