"""A client's pieces of work: each is done once, whatever way it is asked for, and kept until it is settled."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from runnel.client.domain.jobs import Abort, Decision, Forget, JobBook, JobState, Offer, Start
from runnel.common.protocol import Assignment, AssignmentKey, BlobRef, Work

pytestmark = pytest.mark.unit

BLOB = BlobRef(sha256="0" * 64, size_bytes=1)


def key(number: int = 1) -> AssignmentKey:
    return AssignmentKey(session_id=f"ses-{number}", round=1, work=Work.TRAIN)


K1, K2, K3 = key(1), key(2), key(3)


def order(number: int, of: AssignmentKey = K1) -> Assignment:
    return Assignment(order_id=f"ord-{number}", key=of, clients=("a",), package=BLOB, model=BLOB)


def states(book: JobBook) -> dict[AssignmentKey, JobState]:
    return {each: job.state for each, job in book.jobs.items()}


def test_work_is_started_finished_offered_and_forgotten() -> None:
    book = JobBook()
    assert book.assigned(order(1)) == [Start(order(1))]
    assert book.holding() == (K1,)
    assert book.finished(K1) == [Offer(K1, "ord-1")]
    assert book.wanted(K1, "ord-1")
    assert book.dropped(K1) == [Forget(K1)]
    assert book.holding() == ()
    assert not book.wanted(K1, "ord-1")


def test_asked_again_while_it_works_it_answers_the_newest_order() -> None:
    book = JobBook()
    book.assigned(order(1))
    assert book.assigned(order(2)) == []
    assert book.finished(K1) == [Offer(K1, "ord-2")]
    assert not book.wanted(K1, "ord-1")


def test_asked_again_it_offers_what_it_holds() -> None:
    book = JobBook()
    book.assigned(order(1))
    book.finished(K1)
    assert book.assigned(order(2)) == [Offer(K1, "ord-2")]
    assert states(book) == {K1: JobState.HELD}


def test_asked_again_after_a_failure_it_tries_again() -> None:
    book = JobBook()
    book.assigned(order(1))
    assert book.finished(K1, failed=True) == [Offer(K1, "ord-1")]
    assert book.assigned(order(2)) == [Forget(K1), Start(order(2))]
    assert book.finished(K1) == [Offer(K1, "ord-2")]
    assert book.assigned(order(3)) == [Offer(K1, "ord-3")]


def test_what_finishes_while_detached_waits_for_an_order() -> None:
    book = JobBook()
    book.assigned(order(1))
    book.detached()
    assert not book.wanted(K1, "ord-1")
    assert book.finished(K1) == []
    assert book.holding() == (K1,)
    assert book.assigned(order(2)) == [Offer(K1, "ord-2")]


def test_what_an_earlier_process_held_is_offered_and_not_done_again() -> None:
    book = JobBook(held=[K1])
    assert book.holding() == (K1,)
    assert book.assigned(order(1)) == [Offer(K1, "ord-1")]


def test_work_waits_for_its_turn() -> None:
    book = JobBook(parallel=2)
    assert book.assigned(order(1, K1)) == [Start(order(1, K1))]
    assert book.assigned(order(2, K2)) == [Start(order(2, K2))]
    assert book.assigned(order(3, K3)) == []
    assert book.holding() == (K1, K2, K3)
    assert book.finished(K2) == [Offer(K2, "ord-2"), Start(order(3, K3))]


def test_what_waits_is_started_as_it_was_asked_last() -> None:
    book = JobBook()
    book.assigned(order(1, K1))
    book.assigned(order(2, K2))
    book.assigned(order(3, K2))
    assert book.finished(K1) == [Offer(K1, "ord-1"), Start(order(3, K2))]


def test_a_held_report_takes_no_turn() -> None:
    book = JobBook(held=[K1, K2])
    assert book.assigned(order(3, K3)) == [Start(order(3, K3))]


def test_what_is_called_off_makes_room() -> None:
    book = JobBook()
    book.assigned(order(1, K1))
    book.assigned(order(2, K2))
    book.assigned(order(3, K3))
    assert book.dropped(K2) == []
    assert book.dropped(K1) == [Abort(K1), Start(order(3, K3))]
    assert book.finished(K1) == [], "it had ended before it heard"
    assert states(book) == {K3: JobState.RUNNING}


def test_while_it_drains_nothing_begins_and_what_is_finished_is_offered() -> None:
    book = JobBook(held=[K3])
    book.assigned(order(1, K1))
    book.assigned(order(2, K2))
    book.drain()
    assert book.assigned(order(3, key(4))) == []
    assert book.assigned(order(4, K3)) == [Offer(K3, "ord-4")]
    assert book.finished(K1) == [Offer(K1, "ord-1")], "the one that waited for its turn does not begin"
    assert states(book) == {K1: JobState.HELD, K2: JobState.QUEUED, K3: JobState.HELD}


def test_while_it_drains_a_failure_is_not_tried_again() -> None:
    book = JobBook()
    book.assigned(order(1))
    book.finished(K1, failed=True)
    book.drain()
    assert book.assigned(order(2)) == []
    assert states(book) == {K1: JobState.HELD}


def test_what_is_unknown_is_no_error() -> None:
    book = JobBook()
    assert book.dropped(K1) == []
    assert book.finished(K1) == []
    assert not book.wanted(K1, "ord-1")
    book.detached()


class JobMachine(RuleBasedStateMachine):
    """Against what the network and the runs may do in any order: never too much at once, never idle, nothing lost."""

    def __init__(self) -> None:
        super().__init__()
        self.book = JobBook(parallel=2, held=[key(5)])
        self.running: set[AssignmentKey] = set()
        self.kept: set[AssignmentKey] = {key(5)}
        self.failed: set[AssignmentKey] = set()
        self.orders = 0

    def apply(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Start(assignment):
                    assert assignment.key not in self.running | self.kept
                    self.running.add(assignment.key)
                case Abort(each):
                    self.running.remove(each)
                case Forget(each):
                    self.kept.remove(each)
                    self.failed.discard(each)
                case Offer(each, order_id):
                    assert each in self.kept
                    assert self.book.wanted(each, order_id)

    @rule(number=st.integers(1, 5))
    def ask(self, number: int) -> None:
        self.orders += 1
        wanted = key(number)
        good = wanted in self.kept - self.failed
        decisions = self.book.assigned(order(self.orders, wanted))
        self.apply(decisions)
        assert good == (Offer(wanted, f"ord-{self.orders}") in decisions), "what is held is offered at once"
        assert wanted in self.book.holding()

    @rule(failed=st.booleans(), pick=st.integers(0, 5))
    def finish(self, failed: bool, pick: int) -> None:
        if self.running:
            each = sorted(self.running, key=str)[pick % len(self.running)]
            self.running.remove(each)
            self.kept.add(each)
            if failed:
                self.failed.add(each)
            self.apply(self.book.finished(each, failed=failed))

    @rule(number=st.integers(1, 5))
    def drop(self, number: int) -> None:
        self.apply(self.book.dropped(key(number)))
        assert key(number) not in self.book.holding()

    @rule()
    def detach(self) -> None:
        self.book.detached()
        assert not any(self.book.wanted(each, f"ord-{n}") for each in self.book.jobs for n in range(self.orders + 1))

    @invariant()
    def what_the_book_says_is_so(self) -> None:
        by_state = {state: {k for k, s in states(self.book).items() if s is state} for state in JobState}
        assert by_state[JobState.RUNNING] == self.running
        assert by_state[JobState.HELD] == self.kept
        assert len(self.running) <= 2
        assert not by_state[JobState.QUEUED] or len(self.running) == 2, "nothing waits while there is room"
        assert set(self.book.holding()) == set().union(*by_state.values())


test_a_book_of_jobs = JobMachine.TestCase
