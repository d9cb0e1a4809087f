"""Steps of a session from phase to phase, each committed with all that belongs to it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from runnel.common.crash_points import CrashPoint, reach
from runnel.reducer.domain.lifecycle import require_transition
from runnel.reducer.domain.values import RoundView, SessionStatus
from runnel.reducer.engine.measures import Measures
from runnel.reducer.engine.position import Position
from runnel.reducer.engine.retention import Retention
from runnel.reducer.store import ledger
from runnel.reducer.store.journal import Journal, Transaction
from runnel.reducer.store.tables import RoundRow, SessionRow

log = structlog.get_logger()

_CRASH_POINTS = {
    SessionStatus.COMMITTED: CrashPoint.ROUND_COMMITTED,
    SessionStatus.TRAINING: CrashPoint.SLOTS_STORED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A transition: ``change`` is what is written with it, and returns the steps that follow within the same commit.

    That to SELECTING begins the next round.
    """

    to: SessionStatus
    change: Change | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """A step that was taken: from ``left``, where the session was for some seconds; ``committed``: the round, if so."""

    left: SessionStatus
    seconds: float
    to: SessionStatus
    round: int
    committed: RoundView | None


Change = Callable[[Transaction, SessionRow], Coroutine[Any, Any, Sequence[Step]]]


class Transitions:
    """Commits the steps of one session and keeps its position up.

    Args:
        position: where the session is; changed once a step is committed.
        journal: the durable state.
        retention: is asked with each committed round what may go.
        measures: is told what was committed.
    """

    def __init__(self, position: Position, journal: Journal, retention: Retention, measures: Measures) -> None:
        self._measures = measures
        self._position = position
        self._journal = journal
        self._retention = retention
        self._deferred: list[tuple[Step, float]] = []
        self._durable: Position | None = None  # the position without the steps that are deferred

    def defer(self, step: Step) -> None:
        """Take a step after which nothing is done that a restart from before it would not do again the same.

        It is committed with the next one.

        Raises:
            IllegalState: it does not follow.
        """
        position = self._position
        require_transition(position.session_id, position.history, step.to)
        now = time.monotonic()
        if self._durable is None:
            self._durable = dataclasses.replace(position)
        self._deferred.append((step, now))
        position.history, position.phase_since = (*position.history[-20:], step.to), now

    async def commit(self, *steps: Step) -> None:
        """Take the steps, and those that follow, in one transaction; events are public after it.

        Raises:
            IllegalState: the phases do not follow each other so; nothing is written.
            Unreachable: the durable state does not answer.
        """
        position = self._position
        now = time.monotonic()
        ahead = dataclasses.replace(self._durable or position)
        taken: list[_Taken] = []
        given_up = False
        left = [*self._deferred, *((step, now) for step in steps)]
        async with self._journal.transaction(short=True) as tx:
            row, current = await ledger.present_round(tx.session, position.session_id)
            while left:
                step, at = left.pop(0)
                require_transition(position.session_id, ahead.history, step.to)
                if step.to is SessionStatus.SELECTING:
                    row.round += 1
                    current = _new_round(row)
                    tx.session.add(current)
                with tx.session.no_autoflush:  # each row is written once, with all that changed
                    if step.change is not None:
                        left += [(each, now) for each in await step.change(tx, row)]
                    committed = await self._write(tx, row, current, ahead, step.to, at)
                seconds = at - ahead.phase_since
                taken.append(
                    _Taken(left=ahead.phase, seconds=seconds, to=step.to, round=row.round, committed=committed)
                )
                if step.to is SessionStatus.COMMITTED:
                    given_up |= await self._retention.give_up(tx, row)
                ahead.round, ahead.history = row.round, (*ahead.history[-20:], step.to)
                ahead.phase_since = at
                if step.to is SessionStatus.SELECTING:
                    ahead.round_since = at
        self._deferred.clear()
        self._durable = None
        position.round, position.history = ahead.round, ahead.history
        position.phase_since, position.round_since = ahead.phase_since, ahead.round_since
        for each in taken:
            self._measures.took(each.left, each.seconds, each.to, each.committed)
            log.info("session phase", session_id=position.session_id, phase=each.to.value, round=each.round)
        for each in taken:
            if (point := _CRASH_POINTS.get(each.to)) is not None:
                reach(point)
        if given_up:
            await self._retention.remove_files()

    async def _write(
        self, tx: Transaction, row: SessionRow, current: RoundRow | None, at: Position, to: SessionStatus, now: float
    ) -> RoundView | None:
        """Write that the session goes from where it is ``at`` to another phase, ``now`` in monotonic seconds.

        Returns the round that is committed with it.
        """
        if current is not None and not to.ended:
            if at.phase is not SessionStatus.COMMITTED:
                name = at.phase.value
                current.phases = {**current.phases, name: current.phases.get(name, 0.0) + now - at.phase_since}
            if to is SessionStatus.COMMITTED:
                current.seconds = _seconds_of(current, at, now)
            if to is not SessionStatus.FINISHED:
                current.status = to.value
        row.phase = to.value
        if to.ended:
            row.finished_at = datetime.now(UTC)
            await tx.record("session.ended", at.organisation, row.id, status=to.value, reason=row.reason)
        else:
            await tx.record("session.phase", at.organisation, row.id, phase=to.value, round=row.round)
        if to is SessionStatus.COMMITTED:
            view = await ledger.one_round(tx.session, row.id, row.round)
            data = dataclasses.asdict(view)
            del data["clients"]
            await tx.record("round.committed", at.organisation, row.id, **data)
            return view
        return None


def _new_round(row: SessionRow) -> RoundRow:
    # The package is the session's in this very transaction: it stays that of the round, whatever comes after.
    return RoundRow(
        session_id=row.id,
        number=row.round,
        package_digest=row.package_digest,
        started_at=datetime.now(UTC),
        phases={},
        metrics={},
        train_metrics={},
    )


def _seconds_of(current: RoundRow, at: Position, now: float) -> float:
    """Return how long the present round took; ``now`` in monotonic seconds.

    The wall clock, which may be set meanwhile, is asked only about a round that another process began.
    """
    if at.round_since is not None:
        return now - at.round_since
    known: float = sum(current.phases.values())
    return max((datetime.now(UTC) - current.started_at).total_seconds(), known)
