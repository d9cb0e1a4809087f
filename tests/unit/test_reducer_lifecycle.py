"""The states of a session: each way between two of them is either in the table or refused with its history."""

from __future__ import annotations

import itertools

import pytest

from runnel.common.errors import IllegalState
from runnel.reducer.domain.lifecycle import TRANSITIONS, require_transition
from runnel.reducer.domain.values import SessionStatus as S

pytestmark = pytest.mark.unit

LEGAL = {
    S.SEEDED: {S.SELECTING, S.STOPPED, S.FAILED},
    S.SELECTING: {S.TRAINING, S.STOPPED, S.FAILED},
    S.TRAINING: {S.REDUCING, S.STOPPED, S.FAILED},
    S.REDUCING: {S.VALIDATING, S.COMMITTED, S.STOPPED, S.FAILED},
    S.VALIDATING: {S.COMMITTED, S.STOPPED, S.FAILED},
    S.COMMITTED: {S.SELECTING, S.FINISHED, S.STOPPED, S.FAILED},
    S.FINISHED: {S.SELECTING},
    S.STOPPED: {S.SELECTING, S.VALIDATING},
    S.FAILED: {S.SELECTING, S.VALIDATING},
}


def test_every_state_has_its_row() -> None:
    assert set(TRANSITIONS) == set(S) == set(LEGAL)


@pytest.mark.parametrize(("now", "to"), list(itertools.product(S, S)), ids=lambda s: s.value)
def test_a_transition_is_legal_or_refused(now: S, to: S) -> None:
    if to in LEGAL[now]:
        require_transition("ses-1", (now,), to)
        return
    with pytest.raises(IllegalState) as caught:
        require_transition("ses-1", (S.SELECTING, now), to)
    error = caught.value
    assert f"from {now.value} to {to.value}" in error.message
    assert f"selecting → {now.value}" in error.message
    assert all(allowed.value in error.hint for allowed in LEGAL[now])
    assert error.fields == {"session": "ses-1"}


def test_the_history_that_is_told_is_short() -> None:
    history = (S.SEEDED, *itertools.chain(*itertools.repeat((S.SELECTING, S.TRAINING, S.REDUCING, S.COMMITTED), 9)))
    with pytest.raises(IllegalState) as caught:
        require_transition("ses-1", history, S.TRAINING)
    assert caught.value.message.count("→") == 5
    assert "seeded" not in caught.value.message


def test_every_state_can_be_reached_and_left() -> None:
    reached, rim = {S.SEEDED}, [S.SEEDED]
    while rim:
        for to in TRANSITIONS[rim.pop()] - reached:
            reached.add(to)
            rim.append(to)
    assert reached == set(S)
    assert all(TRANSITIONS.values())
    assert {s for s in S if s.ended} == {S.FINISHED, S.STOPPED, S.FAILED}
