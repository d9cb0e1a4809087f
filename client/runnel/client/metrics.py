"""What a client exports for Prometheus, where its site asks it to."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from runnel.client.agent import ClientAgent
from runnel.client.domain.jobs import JobState
from runnel.client.tasks.measures import TASK_METRICS
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
from runnel.transport.traffic import UPWARD_METRICS

JOBS = Metric(
    name="runnel_jobs",
    kind=MetricKind.GAUGE,
    help="Pieces of work that wait, run, or are finished and not settled yet.",
    labels=("state",),
)
WORK = Metric(
    name="runnel_work_total",
    kind=MetricKind.COUNTER,
    help="Pieces of work that came to their end.",
    labels=("work", "outcome"),
)
SETTLED = Metric(
    name="runnel_settlements_total",
    kind=MetricKind.COUNTER,
    help="What became of finished work: counted, late or discarded.",
    labels=("settlement",),
)
CLIENT_METRICS = (*PROCESS_METRICS, *UPWARD_METRICS, JOBS, WORK, SETTLED, *TASK_METRICS)


def client_page(agent: ClientAgent, state: Path, lag: LoopLag) -> MetricsPage:
    """Make the page of a client.

    Args:
        agent: itself.
        state: its state folder.
        lag: of its event loop.
    """
    # Environments have too many files to look at each time.
    names = ("models", "packages", "outbox", "leftovers", "work")
    folders = {name: [state / name] for name in names}

    async def read() -> list[Sample]:
        states = Counter(agent.job_states)
        return [
            *process_samples("client", lag),
            *await asyncio.to_thread(folder_samples, state, folders),
            *agent.link.samples(),
            *(JOBS.sample(states[each], each.value) for each in JobState),
            *agent.work.samples(WORK),
            *agent.settlements.samples(SETTLED),
            *agent.task_samples(),
        ]

    return MetricsPage(CLIENT_METRICS, read)
