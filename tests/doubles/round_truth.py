"""What is true of one round, whatever its nodes believe; who says or does what is not, fails the test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from runnel.common.protocol import (
    AssignmentKey,
    BlobRef,
    Outcome,
    Report,
    Settlement,
    Work,
)
from runnel.reducer.domain.collection import SlotState

KEY = AssignmentKey(session_id="ses-1", round=1, work=Work.TRAIN)
BLOB = BlobRef(sha256="0" * 64, size_bytes=1)

Payload = Counter[str]
"""Which trainings are in a payload: ``{"site-1#1": 1}`` is the first training of site-1, once."""


class RoundTruth:
    """What is durable at the reducer, what happened, and what is wrong with some clients.

    Args:
        clients: their names; all are asked.
        failing: clients whose work fails.
        corrupting: clients whose update the first combiner refuses.
        awaiting: clients whose site does not let the work in before somebody approves it.
        refusing: clients whose site refuses the work, for which nobody waits, until its policy changes.
        closed_early: the round may close before all have answered.
    """

    def __init__(
        self,
        clients: Iterable[str],
        *,
        failing: Iterable[str],
        corrupting: Iterable[str],
        awaiting: Iterable[str],
        refusing: Iterable[str],
        closed_early: bool,
    ) -> None:
        self._orders = 0
        self.failing = frozenset(failing)
        self.corrupting = frozenset(corrupting)
        self.awaiting = set(awaiting)
        self.refusing = set(refusing)
        self.refusing_first = frozenset(self.refusing)
        self.trainings: Counter[str] = Counter()
        self.accepted_trainings: Payload = Counter()
        self.ledger = dict.fromkeys(clients, SlotState.OPEN)
        self.over = False
        self.closed = False
        self.closed_early = closed_early

    def new_order_id(self) -> str:
        self._orders += 1
        return f"ord-{self._orders}"

    def accepted(self, report: Report, payload: Payload) -> None:
        """A report became durable: nobody in it was counted before, and its payload is what it says."""
        assert not self.over, f"a report is taken after the round: {report}"
        counted = [o for o in report.outcomes if o.failure is None]
        for outcome in report.outcomes:
            assert self.ledger[outcome.client] is not SlotState.COUNTED, f"{outcome.client} counts twice"
        assert payload == Counter(o.extra_json for o in counted), (payload, report)
        self.accepted_trainings.update(payload)

    def settled(self, client: str, settlement: Settlement) -> None:
        """A client is told what became of its report: that it was counted is true."""
        state = self.ledger[client]
        if settlement is Settlement.COUNTED:
            assert state is SlotState.COUNTED, f"{client} is told that it was counted, and is {state}"
        elif settlement is Settlement.DISCARDED:
            assert state in {SlotState.FAILED, SlotState.AWAITING, SlotState.REFUSED}
        else:
            assert self.closed, f"{client} is told that it is late, and the round is open"

    def called_off(self, client: str) -> None:
        """Work is called off only when the round is over; what was counted is settled instead."""
        assert self.over
        assert self.ledger[client] is not SlotState.COUNTED

    def starts(self, client: str, outbox: dict[AssignmentKey, Outcome]) -> None:
        """A client begins to train: not while it has what it trained before, nor after that was counted."""
        assert not outbox, f"{client} trains again what it holds"
