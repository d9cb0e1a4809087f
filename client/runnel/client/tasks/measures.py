"""What a client counts of the runs of tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from runnel.client.tasks.book import HeldRun
from runnel.common.metrics import Distribution, Metric, Sample, Tally
from runnel.common.metrics.values import MetricKind

_HELD = ("waiting", "running", "awaiting-release", "ended")
_OUTCOMES = ("done", "failed", "rejected")

HELD = Metric(
    name="runnel_held_runs",
    kind=MetricKind.GAUGE,
    help="Runs of tasks that wait, run, await release here, or have ended and are not settled yet.",
    labels=("state",),
)
SLOTS = Metric(
    name="runnel_task_slots", kind=MetricKind.GAUGE, help="Runs of tasks that may go on at once; 0 without an engine."
)
OUTCOMES = Metric(
    name="runnel_site_runs_total",
    kind=MetricKind.COUNTER,
    help="Runs of tasks that came to their end here, whatever is decided about their results.",
    labels=("outcome",),
)
STARTED = Metric(
    name="runnel_container_start_seconds",
    kind=MetricKind.HISTOGRAM,
    help="From asking the engine for the container of a task to the moment when it runs.",
)
TASK_METRICS = (HELD, SLOTS, OUTCOMES, STARTED)


class TaskMeasures:
    """Counts since the process began."""

    def __init__(self) -> None:
        self.started = Distribution()
        self._outcomes = Tally(*((outcome,) for outcome in _OUTCOMES))

    def ended(self, held: HeldRun) -> None:
        """Count a run that has ended here."""
        failed = held.result is not None and held.result.failure is not None
        self._outcomes.add("rejected" if held.rejected else "failed" if failed else "done")

    def samples(self, runs: Iterable[HeldRun], running: Collection[str], slots: int) -> list[Sample]:
        """Return the values of the moment.

        Args:
            runs: that are held.
            running: the ids of those that go on.
            slots: how many may.
        """
        states = Counter(_state(held, running) for held in runs)
        return [
            *(HELD.sample(states[state], state) for state in _HELD),
            SLOTS.sample(slots),
            *self._outcomes.samples(OUTCOMES),
            STARTED.sample(self.started),
        ]


def _state(held: HeldRun, running: Collection[str]) -> str:
    if held.result is None:
        return "running" if held.run_id in running else "waiting"
    return "awaiting-release" if held.reviewed else "ended"
