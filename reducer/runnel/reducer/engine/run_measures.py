"""What the engine counts of tasks and their runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable

from runnel.common.errors import error_codes
from runnel.common.metrics import Distribution, Metric, Sample, Tally
from runnel.common.metrics.values import MetricKind
from runnel.common.protocol import ENDED, RunState
from runnel.reducer.domain.tasks import NOT_BEGUN, OpenRun, RunBook
from runnel.reducer.store.tables import RunRow

_OPEN = tuple(state for state in RunState if state not in ENDED)
_OTHER = "other"
_LIMITS = frozenset(f"{limit}_limit" for limit in ("memory", "time", "pids", "disk", "files", "output"))

# Runs take from a fraction of a second to days, and wait as long for a site that is away.
_BOUNDS_S = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0, 30_000.0, 100_000.0)

OPEN_RUNS = Metric(
    name="runnel_open_runs",
    kind=MetricKind.GAUGE,
    help="Runs of tasks that have not ended; those in awaiting-release wait for somebody at their site.",
    labels=("state",),
)
OPEN_TASKS = Metric(name="runnel_open_tasks", kind=MetricKind.GAUGE, help="Tasks of which some run has not ended.")
OLDEST_WAITING = Metric(
    name="runnel_oldest_waiting_run_seconds",
    kind=MetricKind.GAUGE,
    help="For how long the oldest of the runs that have not begun was asked for; 0 where none waits.",
)
BEGUN = Metric(name="runnel_runs_begun_total", kind=MetricKind.COUNTER, help="Runs that their site began to prepare.")
RUNS_ENDED = Metric(
    name="runnel_runs_ended_total",
    kind=MetricKind.COUNTER,
    help="Runs that ended, with the code of the error by which they did, which is empty for those that are done.",
    labels=("state", "code"),
)
WAITED = Metric(
    name="runnel_run_wait_seconds", kind=MetricKind.HISTOGRAM, help="From asking for runs to their beginning."
)
RUN_SECONDS = Metric(
    name="runnel_run_seconds",
    kind=MetricKind.HISTOGRAM,
    help="From the beginning of runs to their end, waiting for release and pushing included.",
)
RESULT_BYTES = Metric(
    name="runnel_result_bytes_total", kind=MetricKind.COUNTER, help="Bytes of the result files that runs gave out."
)
RUN_METRICS = (OPEN_RUNS, OPEN_TASKS, OLDEST_WAITING, BEGUN, RUNS_ENDED, WAITED, RUN_SECONDS, RESULT_BYTES)


class RunMeasures:
    """Counts since the process began; what is open now is read from the book.

    Args:
        book: of the runs that have not ended.
        clock: Unix time in seconds.
    """

    def __init__(self, book: RunBook, *, clock: Callable[[], float] = time.time) -> None:
        self._book = book
        self._clock = clock
        # Codes are told by clients: what none of ours is must not become a value of a label.
        self._codes = error_codes() | _LIMITS
        self._begun = 0
        self._result_bytes = 0
        self._ended = Tally((RunState.DONE.value, ""))
        self._waited = Distribution(_BOUNDS_S)
        self._took = Distribution(_BOUNDS_S)

    def moved(self, row: RunRow) -> None:
        """Count what is new about a run, before the book is told of it."""
        run = self._book.find(row.id)
        if run is None:  # its end is counted already
            return
        if run.state in NOT_BEGUN and row.started_at is not None:
            self._begun += 1
            self._waited.observe(max(0.0, (row.started_at - row.created_at).total_seconds()))
        if RunState(row.state) in ENDED:
            code = row.error_code or ""
            self._ended.add(row.state, code if not code or code in self._codes else _OTHER)
            if row.started_at is not None and row.finished_at is not None:
                self._took.observe(max(0.0, (row.finished_at - row.started_at).total_seconds()))

    def gave_out(self, sizes: Iterable[int]) -> None:
        """A run ended with files of so many bytes."""
        self._result_bytes += sum(sizes)

    def samples(self) -> list[Sample]:
        """Return the values of the moment."""
        states = Counter(run.state for run in self._book)
        return [
            *(OPEN_RUNS.sample(states[state], state.value) for state in _OPEN),
            OPEN_TASKS.sample(len({run.task_id for run in self._book})),
            OLDEST_WAITING.sample(self._oldest_s()),
            BEGUN.sample(self._begun),
            *self._ended.samples(RUNS_ENDED),
            WAITED.sample(self._waited),
            RUN_SECONDS.sample(self._took),
            RESULT_BYTES.sample(self._result_bytes),
        ]

    def _oldest_s(self) -> float:
        waiting = (run.asked_at for run in self._book if _waits(run) and run.asked_at is not None)
        oldest = min(waiting, default=None)
        return 0.0 if oldest is None else max(0.0, self._clock() - oldest)


def _waits(run: OpenRun) -> bool:
    return run.state in NOT_BEGUN
