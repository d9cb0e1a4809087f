"""What the engine counts of the rounds that it runs."""

from __future__ import annotations

from runnel.common.metrics import Distribution, Metric, Sample, Tally
from runnel.common.metrics.values import MetricKind
from runnel.reducer.domain.values import ENDED, RoundView, SessionStatus

_TIMED = (SessionStatus.SELECTING, SessionStatus.TRAINING, SessionStatus.REDUCING, SessionStatus.VALIDATING)

ROUNDS = Metric(
    name="runnel_rounds_committed_total", kind=MetricKind.COUNTER, help="Rounds that were committed, of all sessions."
)
ROUND_SECONDS = Metric(
    name="runnel_round_seconds", kind=MetricKind.HISTOGRAM, help="How long rounds took, from selecting to committed."
)
PHASE_SECONDS = Metric(
    name="runnel_round_phase_seconds",
    kind=MetricKind.HISTOGRAM,
    help="How long the phases of rounds took.",
    labels=("phase",),
)
UPDATES = Metric(
    name="runnel_updates_total",
    kind=MetricKind.COUNTER,
    help="Updates of committed rounds: counted, late or failed.",
    labels=("outcome",),
)
SESSIONS_ENDED = Metric(
    name="runnel_sessions_ended_total",
    kind=MetricKind.COUNTER,
    help="Sessions that were finished, stopped or failed.",
    labels=("status",),
)
ENGINE_METRICS = (ROUNDS, ROUND_SECONDS, PHASE_SECONDS, UPDATES, SESSIONS_ENDED)


class Measures:
    """Counts since the process began."""

    def __init__(self) -> None:
        self._rounds = 0
        self._seconds = Distribution()
        self._phases = {phase: Distribution() for phase in _TIMED}
        self._updates = Tally(("counted",), ("late",), ("failed",))
        self._ended = Tally(*((status,) for status in ENDED))

    def took(self, left: SessionStatus, seconds: float, to: SessionStatus, committed: RoundView | None) -> None:
        """A session went from ``left``, where it was for so long, to another phase, and ``committed`` a round if so."""
        if (phase := self._phases.get(left)) is not None:
            phase.observe(seconds)
        if to.ended:
            self._ended.add(to.value)
        if committed is not None:
            self._rounds += 1
            self._seconds.observe(committed.seconds or 0.0)
            counts = (("counted", committed.updates), ("late", committed.late), ("failed", committed.failed))
            for outcome, count in counts:
                self._updates.add(outcome, amount=count)

    def samples(self) -> list[Sample]:
        """Return the values of the moment."""
        return [
            ROUNDS.sample(self._rounds),
            ROUND_SECONDS.sample(self._seconds),
            *(PHASE_SECONDS.sample(took, phase.value) for phase, took in self._phases.items()),
            *self._updates.samples(UPDATES),
            *self._ended.samples(SESSIONS_ENDED),
        ]
