"""Metrics in the text format of Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from runnel.common.errors import BadSettings
from runnel.common.metrics.values import Distribution, Metric, MetricKind, Sample

if TYPE_CHECKING:
    from prometheus_client import Metric as Family


class MetricsPage:
    """What a scrape gets.

    Args:
        metrics: all that ``read`` may give.
        read: returns the values of the moment.

    Raises:
        BadSettings: the library of Prometheus is not installed.
    """

    def __init__(self, metrics: Sequence[Metric], read: Callable[[], Awaitable[Iterable[Sample]]]) -> None:
        try:
            import prometheus_client  # noqa: F401 - only who is asked for metrics needs it
        except ImportError as error:
            raise BadSettings(
                "Metrics need a library that is not installed.", hint="Install it: pip install 'runnel[metrics]'."
            ) from error
        self.metrics = tuple(metrics)
        self._read = read

    async def render(self) -> tuple[bytes, str]:
        """Return the page and its media type."""
        samples = list(await self._read())
        return await asyncio.to_thread(self._rendered, samples)

    def _rendered(self, samples: list[Sample]) -> tuple[bytes, str]:
        from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, ProcessCollector, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        registry.register(_Collected(self.metrics, samples))
        return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


class _Collected:
    """The samples of one scrape, as the library collects them."""

    def __init__(self, metrics: Sequence[Metric], samples: Iterable[Sample]) -> None:
        self._by_name: dict[str, list[Sample]] = {metric.name: [] for metric in metrics}
        self._metrics = metrics
        for sample in samples:
            self._by_name[sample.metric.name].append(sample)

    def collect(self) -> Iterator[Family]:
        """Yield each metric with its values."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for metric in self._metrics:
            about = (metric.name, metric.help)
            match metric.kind:
                case MetricKind.HISTOGRAM:
                    histogram = HistogramMetricFamily(*about, labels=metric.labels)
                    for sample in self._by_name[metric.name]:
                        assert isinstance(sample.value, Distribution)
                        histogram.add_metric(sample.labels, sample.value.cumulative(), sample.value.sum)
                    yield histogram
                case kind:
                    of = CounterMetricFamily if kind is MetricKind.COUNTER else GaugeMetricFamily
                    family = of(*about, labels=metric.labels)
                    for sample in self._by_name[metric.name]:
                        assert not isinstance(sample.value, Distribution)
                        family.add_metric(sample.labels, sample.value)
                    yield family
