"""The states of a session and the legal ways between them."""

from __future__ import annotations

from collections.abc import Mapping

from runnel.common.errors import IllegalState
from runnel.reducer.domain.values import SessionStatus as S

_ENDS = frozenset({S.STOPPED, S.FAILED})

TRANSITIONS: Mapping[S, frozenset[S]] = {
    S.SEEDED: _ENDS | {S.SELECTING},
    S.SELECTING: _ENDS | {S.TRAINING},
    S.TRAINING: _ENDS | {S.REDUCING},
    S.REDUCING: _ENDS | {S.VALIDATING, S.COMMITTED},
    S.VALIDATING: _ENDS | {S.COMMITTED},
    S.COMMITTED: _ENDS | {S.SELECTING, S.FINISHED},
    # An ended session goes on when a person resumes or extends it: where it was, or with a new round.
    S.FINISHED: frozenset({S.SELECTING}),
    S.STOPPED: frozenset({S.SELECTING, S.VALIDATING}),
    S.FAILED: frozenset({S.SELECTING, S.VALIDATING}),
}


def require_transition(session: str, history: tuple[S, ...], to: S) -> None:
    """Raise :class:`IllegalState` unless ``to`` may follow the last state of ``history``."""
    now = history[-1]
    if to not in TRANSITIONS[now]:
        raise IllegalState(
            f"Session {session} can't go from {now.value} to {to.value}"
            f" (its last states: {' → '.join(s.value for s in history[-6:])}).",
            hint=f"From {now.value} it goes to {', '.join(sorted(s.value for s in TRANSITIONS[now]))}.",
            session=session,
        )
