"""Which runs a client is given, whatever happens in whatever order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runnel.common.errors import IllegalState
from runnel.common.protocol import ENDED, RunState
from runnel.reducer.domain.tasks import OpenRun, RunBook, moves

pytestmark = pytest.mark.unit

CLIENTS = ("a", "b")
ON_THE_WAY = (
    RunState.ASSIGNED,
    RunState.PREPARING,
    RunState.RUNNING,
    RunState.AWAITING_RELEASE,
    RunState.PUSHING,
)


def run(number: int, client: str = "a", submitter: str = "x", *, sub: bool = False, at: float | None = None) -> OpenRun:
    return OpenRun(
        run_id=f"run-{number:04d}",
        task_id=f"tsk-{number:04d}",
        client=client,
        submitter=submitter,
        sub=sub,
        expires_at=at,
    )


def ids(*numbers: int) -> list[str]:
    return [f"run-{number:04d}" for number in numbers]


def book_of(*runs: OpenRun, slots: int = 1) -> RunBook:
    book = RunBook()
    for each in runs:
        book.add(each)
    book.attached("a", held=(), slots=slots)
    return book


def test_news_move_a_run_forward_only_and_no_end_is_left() -> None:
    for before in RunState:
        for after in RunState:
            assert not (moves(before, after) and moves(after, before))
            assert not (before in ENDED and moves(before, after))
            assert before in ENDED or after not in ENDED or moves(before, after)


def test_a_client_is_given_its_slots_and_one_more_and_the_next_when_one_ends() -> None:
    book = book_of(*(run(number) for number in range(5)))
    assert book.give("a") == ids(0, 1)
    assert book.give("a") == []
    book.moved("run-0000", RunState.DONE)
    assert book.give("a") == ids(2)


def test_submitters_take_turns_and_of_one_the_oldest_is_first() -> None:
    many = [run(number, submitter="many") for number in range(4)]
    book = book_of(*many, run(7, submitter="one"), run(8, submitter="other"), slots=4)
    assert book.give("a") == ids(0, 7, 8, 1, 2)


def test_what_awaits_release_takes_no_room() -> None:
    book = book_of(run(0), run(1), run(2))
    assert book.give("a") == ids(0, 1)
    book.moved("run-0000", RunState.AWAITING_RELEASE)
    assert book.give("a") == ids(2)


def test_sub_tasks_have_room_of_their_own_so_that_who_waits_for_them_does_not_wait_for_ever() -> None:
    book = book_of(run(0), run(1), run(2, sub=True), run(3, sub=True), run(4, sub=True))
    assert sorted(book.give("a")) == ids(0, 1, 2, 3)


def test_what_a_client_lost_comes_back_to_it_and_what_it_holds_for_nothing_is_told() -> None:
    book = book_of(run(0), run(1))
    book.give("a")
    book.moved("run-0000", RunState.RUNNING)
    book.left("a")
    assert book.attached("a", held=["run-0001", "run-9999"], slots=1) == ["run-9999"]
    assert book.give("a") == ids(0)
    assert book.given("a") == set(ids(0, 1))


def test_a_client_that_takes_no_tasks_is_given_none() -> None:
    book = book_of(run(0), slots=0)
    assert book.give("a") == []
    assert book.attached("stranger", held=(), slots=0) == []


def test_only_what_has_not_begun_expires() -> None:
    book = book_of(run(0, at=10), run(1, at=5), run(2, at=7), run(3))
    book.moved("run-0002", RunState.PREPARING)
    assert book.next_due() == 5
    assert [each.run_id for each in book.due(9)] == ids(1)
    assert book.next_due() == 10
    book.moved("run-0000", RunState.CANCELLED)
    assert book.next_due() is None
    assert book.due(99) == []


def test_what_could_not_be_stored_is_due_again_and_what_could_not_be_sent_is_given_again() -> None:
    book = book_of(run(0, at=5), run(1))
    due = book.due(6)
    book.again(due)
    assert book.due(6) == due
    assert book.give("a") == ids(0, 1)
    book.take_back(ids(0, 1))
    assert book.give("a") == ids(0, 1)


def test_a_run_that_has_ended_is_not_taken_in() -> None:
    book = RunBook()
    ended = run(0)
    ended.state = RunState.DONE
    with pytest.raises(IllegalState, match="run-0000 is done"):
        book.add(ended)


class Giving(RuleBasedStateMachine):
    """Clients come, go, forget and finish; runs are added, given and cancelled. None is lost, doubled or starved."""

    def __init__(self) -> None:
        super().__init__()
        self.book = RunBook()
        self.numbers: Iterator[int] = iter(range(10_000))
        self.open: dict[str, OpenRun] = {}
        self.slots: dict[str, int] = {}  # of attached clients
        self.holding: dict[str, set[str]] = {client: set() for client in CLIENTS}

    @rule(client=st.sampled_from(CLIENTS), submitter=st.sampled_from("xyz"), sub=st.booleans())
    def ask(self, client: str, submitter: str, sub: bool) -> None:
        made = run(next(self.numbers), client, submitter, sub=sub)
        self.open[made.run_id] = made
        self.book.add(made)
        self.book.add(made)  # again changes nothing

    @rule(client=st.sampled_from(CLIENTS), slots=st.integers(0, 3), forgets=st.booleans())
    def attach(self, client: str, slots: int, forgets: bool) -> None:
        if forgets:
            self.holding[client].clear()
        held = sorted(self.holding[client])
        over = self.book.attached(client, held=held, slots=slots)
        assert over == [run_id for run_id in held if run_id not in self.open]
        self.holding[client] -= set(over)
        self.slots[client] = slots

    @rule(client=st.sampled_from(CLIENTS))
    def leave(self, client: str) -> None:
        self.book.left(client)
        self.slots.pop(client, None)
        assert self.book.give(client) == []

    @rule(client=st.sampled_from(CLIENTS), arrives=st.booleans())
    def give(self, client: str, arrives: bool) -> None:
        given = self.book.give(client)
        assert len(set(given)) == len(given)
        for run_id in given:
            assert self.open[run_id].client == client
        for sub in (False, True):
            fresh = [r for r in given if self.open[r].sub is sub and self.open[r].state is RunState.QUEUED]
            taking = [
                r
                for r in self.book.given(client)
                if self.open[r].sub is sub and self.open[r].state is not RunState.AWAITING_RELEASE
            ]
            assert not fresh or len(taking) <= self.slots[client] + 1
        if arrives:
            self.holding[client] |= set(given)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), state=st.sampled_from([*ON_THE_WAY, *ENDED]))
    def move(self, data: st.DataObject, state: RunState) -> None:
        run_id = data.draw(st.sampled_from(sorted(self.open)))
        found = self.book.find(run_id)
        assert found is not None
        before = found.state
        self.book.moved(run_id, state)
        if state in ENDED:
            del self.open[run_id]
            assert run_id not in self.book
        else:
            assert found.state is (state if moves(before, state) else before)

    @invariant()
    def what_is_open_is_known(self) -> None:
        assert len(self.book) == len(self.open)
        assert all(self.book.given(client) <= set(self.open) for client in CLIENTS)

    def teardown(self) -> None:
        """Whatever happened, clients that stay and finish what they are given drain all there is."""
        for client in CLIENTS:
            self.book.attached(client, held=sorted(self.holding[client] & set(self.open)), slots=1)
        for _ in range(2 * len(self.open) + 2):
            for client in CLIENTS:
                self.book.give(client)
                for run_id in self.book.given(client):
                    self.book.moved(run_id, RunState.DONE)
        assert len(self.book) == 0


TestGiving = Giving.TestCase
TestGiving.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
