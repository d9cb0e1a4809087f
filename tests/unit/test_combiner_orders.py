"""The combiner's orders: fan out, take each answer once, answer with one report."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from runnel.combiner.domain import Decision, Finish, Fold, OrderBook, SendDown, SendUp, SlotState
from runnel.common.protocol import (
    Assignment,
    AssignmentKey,
    BlobRef,
    Cancel,
    Close,
    Failure,
    NodeKind,
    Outcome,
    Progress,
    Released,
    Report,
    Stage,
    Work,
)

pytestmark = pytest.mark.unit

TRAIN = AssignmentKey(session_id="ses-1", round=1, work=Work.TRAIN)
VALIDATE = AssignmentKey(session_id="ses-1", round=1, work=Work.VALIDATE)
BLOB = BlobRef(sha256="0" * 64, size_bytes=1)
BAD = Failure(code="bad_model", message="not finite")


class Book:
    """An order book over a network of a and b directly, and c and d below the combiner m2."""

    def __init__(self) -> None:
        self.routes = {"a": "a", "b": "b", "c": "m2", "d": "m2", "m2": "m2"}
        self.kinds = {"a": NodeKind.CLIENT, "b": NodeKind.CLIENT, "m2": NodeKind.COMBINER}
        self.book = OrderBook(self.routes.get, self.kinds.get)

    def order(self, *clients: str, key: AssignmentKey = TRAIN, order_id: str = "ord-1") -> list[Decision]:
        return self.book.assigned(
            Assignment(order_id=order_id, key=key, clients=clients or ("a", "b", "c", "d"), package=BLOB, model=BLOB)
        )

    def report(self, child: str, *clients: str, key: AssignmentKey = TRAIN, failure: Failure | None = None) -> Report:
        outcomes = tuple(Outcome(client=name, failure=failure, weight=2.0) for name in clients or (child,))
        return Report(key=key, order_id="ord-1", outcomes=outcomes)

    def answer(self, child: str, *clients: str, failure: Failure | None = None) -> list[Decision]:
        """Report, and fold what there is to fold."""
        report = self.report(child, *clients, failure=failure)
        decisions = self.book.reported(child, report)
        if decisions == [Fold("ord-1", child, report)]:
            return self.book.folded("ord-1", report, None)
        return decisions

    def states(self) -> dict[str, str]:
        return {name: state.value for name, state in self.book.orders["ord-1"].slots.items()}


def counted(client: str) -> SendUp:
    return SendUp(Progress(key=TRAIN, order_id="ord-1", client=client, stage=Stage.COUNTED))


def released(*clients: str) -> SendUp:
    return SendUp(Released(order_id="ord-1", clients=clients))


def kinds(decisions: Sequence[Decision]) -> list[str]:
    return [type(decision).__name__ for decision in decisions]


# ---- down


def test_an_order_goes_to_each_node_for_its_own_clients() -> None:
    sent = Book().order()
    assert {
        d.child: d.message.clients for d in sent if isinstance(d, SendDown) and isinstance(d.message, Assignment)
    } == {
        "a": ("a",),
        "b": ("b",),
        "m2": ("c", "d"),
    }
    assert len(sent) == 3


def test_who_is_not_here_is_released_at_once() -> None:
    book = Book()
    assert book.order("a", "x", "y")[1:] == [released("x", "y")]
    assert book.states() == {"a": "waiting", "x": "released", "y": "released"}


def test_an_order_for_nobody_here_is_answered_at_once() -> None:
    assert Book().order("x") == [released("x"), Finish("ord-1")]


# ---- up


def test_an_update_is_folded_and_then_said_to_count() -> None:
    book = Book()
    book.order("a", "b")
    report = book.report("a")
    assert book.book.reported("a", report) == [Fold("ord-1", "a", report)]
    assert book.states() == {"a": "folding", "b": "waiting"}
    assert book.book.folded("ord-1", report, None) == [counted("a")]
    assert book.answer("b") == [counted("b"), Finish("ord-1")]
    assert [o.client for o in book.book.finished("ord-1")] == ["a", "b"]
    assert book.book.orders == {}


def test_an_update_that_can_not_be_folded_is_its_clients_failure() -> None:
    book = Book()
    book.order("a")
    report = book.report("a")
    book.book.reported("a", report)
    said, end = book.book.folded("ord-1", report, BAD)
    assert said == SendUp(Progress(key=TRAIN, order_id="ord-1", client="a", stage=Stage.FAILED, detail="bad_model"))
    assert end == Finish("ord-1")
    (outcome,) = book.book.finished("ord-1")
    assert outcome.failure == BAD


def test_whose_update_there_was_no_room_for_is_asked_again_and_has_not_failed() -> None:
    book = Book()
    book.order("a", "c", "d")
    report = book.report("a")
    book.book.reported("a", report)
    assert book.book.not_folded("ord-1", report) == [released("a")]
    assert book.states() == {"a": "released", "c": "waiting", "d": "waiting"}
    own = Failure(code="exit_status", message="3")
    report = Report(
        key=TRAIN, order_id="ord-1", outcomes=(Outcome(client="c"), Outcome(client="d", failure=own)), weight=1.0
    )
    book.book.reported("m2", report)
    said, given_up, end = book.book.not_folded("ord-1", report)
    assert said == SendUp(Progress(key=TRAIN, order_id="ord-1", client="d", stage=Stage.FAILED, detail="exit_status"))
    assert (given_up, end) == (released("c"), Finish("ord-1"))
    assert {o.client: o.failure for o in book.book.finished("ord-1")} == {"d": own}
    assert book.book.not_folded("ord-1", report) == [], "the order is over"


def test_whose_update_was_in_a_sum_that_is_lost_is_asked_again() -> None:
    book = Book()
    book.order("a", "b", "c", "d")
    book.answer("a")
    book.answer("b", failure=BAD)
    report = book.report("m2", "c", "d")
    book.book.reported("m2", report)
    assert book.book.unfolded("ord-1", ["a", "b", "c"]) == [released("a")], "c is released with its report"
    assert book.states() == {"a": "released", "b": "failed", "c": "folding", "d": "folding"}
    assert book.book.not_folded("ord-1", report) == [released("c", "d"), Finish("ord-1")]
    assert [o.client for o in book.book.finished("ord-1")] == ["b"]
    assert book.book.unfolded("ord-1", ["a"]) == [], "the order is over"


def test_a_bad_sum_leaves_the_failures_in_it_as_they_were() -> None:
    book = Book()
    book.order("c", "d")
    own = Failure(code="exit_status", message="3")
    report = Report(
        key=TRAIN, order_id="ord-1", outcomes=(Outcome(client="c"), Outcome(client="d", failure=own)), weight=1.0
    )
    book.book.reported("m2", report)
    book.book.folded("ord-1", report, BAD)
    assert {o.client: o.failure for o in book.book.finished("ord-1")} == {"c": BAD, "d": own}


def test_a_failure_and_a_validation_have_nothing_to_fold() -> None:
    book = Book()
    book.order("a")
    assert kinds(book.answer("a", failure=BAD)) == ["SendUp", "Finish"]
    book = Book()
    book.order("a", key=VALIDATE)
    assert kinds(book.book.reported("a", book.report("a", key=VALIDATE))) == ["SendUp", "Finish"]


def test_the_weight_of_an_order_is_that_of_what_counts() -> None:
    book = Book()
    book.order()
    book.answer("a")
    book.answer("b", failure=BAD)
    book.answer("m2", "c", "d")
    assert book.book.orders["ord-1"].weight == 6.0


@pytest.mark.parametrize(
    ("child", "clients"),
    [("b", ("a",)), ("a", ("a", "b")), ("m2", ("c", "a")), ("a", ("x",)), ("nobody", ("a",)), ("a", ())],
)
def test_nobody_answers_for_others(child: str, clients: tuple[str, ...]) -> None:
    book = Book()
    book.order()
    before = book.states()
    report = Report(key=TRAIN, order_id="ord-1", outcomes=tuple(Outcome(client=c) for c in clients))
    assert book.book.reported(child, report) == []
    assert book.states() == before


def test_an_answer_is_taken_once() -> None:
    book = Book()
    book.order("a", "b")
    book.answer("a")
    assert book.book.reported("a", book.report("a")) == []
    assert book.book.orders["ord-1"].weight == 2.0


@pytest.mark.parametrize("what", ["unknown", "other key", "finished"])
def test_an_answer_to_nothing_is_dropped(what: str) -> None:
    book = Book()
    book.order("a")
    report = book.report("a", key=VALIDATE if what == "other key" else TRAIN)
    if what == "unknown":
        book.book.cancelled("ord-1", "")
    elif what == "finished":
        book.answer("a")
    assert book.book.reported("a", report) == []
    assert book.book.folded("ord-9", report, None) == []


def test_what_a_combiner_leaves_out_of_its_report_is_late() -> None:
    book = Book()
    book.order("c", "d")
    assert book.answer("m2", "c") == [counted("c"), Finish("ord-1")]
    assert [o.client for o in book.book.finished("ord-1")] == ["c"]


# ---- who goes


def test_who_goes_before_it_answered_is_released() -> None:
    book = Book()
    book.order()
    book.answer("m2", "c", "d")
    assert book.book.child_gone("a") == [released("a")]
    assert book.book.child_gone("m2") == []
    assert book.book.child_gone("b") == [released("b"), Finish("ord-1")]


def test_what_is_being_folded_is_not_released() -> None:
    book = Book()
    book.order("a", "b")
    report = book.report("a")
    book.book.reported("a", report)
    assert book.book.child_gone("a") == []
    assert book.book.child_gone("b") == [released("b")], "and the report waits for the fold"
    assert book.book.folded("ord-1", report, None) == [counted("a"), Finish("ord-1")]


def test_a_release_from_below_is_passed_on_for_those_that_had_not_answered() -> None:
    book = Book()
    book.order("b", "c", "d")
    down = Released(order_id="ord-1", clients=("c", "b", "x"))
    assert book.book.released("m2", down) == [released("c")]
    assert book.book.released("m2", down) == []
    assert book.book.released("m2", Released(order_id="ord-9", clients=("d",))) == []


def test_who_was_released_and_is_back_answers_under_another_order() -> None:
    book = Book()
    book.order("a", "b")
    book.book.child_gone("a")
    assert book.book.reported("a", book.report("a")) == []
    book.order("a", order_id="ord-2")
    again = Report(key=TRAIN, order_id="ord-2", outcomes=(Outcome(client="a"),))
    assert book.book.reported("a", again) == [Fold("ord-2", "a", again)]


# ---- progress


def test_only_who_folds_says_what_counts() -> None:
    book = Book()
    book.order()
    running = Progress(key=TRAIN, order_id="ord-1", client="a", stage=Stage.RUNNING)
    assert book.book.progressed("a", running) == [SendUp(running)]
    claims = Progress(key=TRAIN, order_id="ord-1", client="a", stage=Stage.COUNTED)
    assert book.book.progressed("a", claims) == []
    below = Progress(key=TRAIN, order_id="ord-1", client="c", stage=Stage.COUNTED)
    assert book.book.progressed("m2", below) == [SendUp(below)]
    assert book.book.progressed("b", running) == [], "it speaks for somebody else"
    assert book.book.progressed("a", Progress(key=TRAIN, order_id="ord-9", client="a", stage=Stage.RUNNING)) == []


# ---- closing


def test_closing_waits_for_combiners_and_folds_but_not_for_clients() -> None:
    book = Book()
    book.order()
    report = book.report("a")
    book.book.reported("a", report)
    assert book.book.close("ord-1") == [SendDown("m2", Close(order_id="ord-1"))]
    assert book.book.close("ord-1") == []
    assert book.book.reported("b", book.report("b")) == [], "too late"
    assert book.book.folded("ord-1", report, None) == [counted("a")]
    assert book.answer("m2", "c") == [counted("c"), Finish("ord-1")]
    assert [o.client for o in book.book.finished("ord-1")] == ["a", "c"]


def test_closing_before_anybody_answered_is_answered_with_nobody() -> None:
    book = Book()
    book.order("a", "b")
    assert book.book.close("ord-1") == [Finish("ord-1")]
    assert book.book.finished("ord-1") == []


def test_a_combiner_that_closes_with_nobody_does_not_keep_others_waiting() -> None:
    book = Book()
    book.order("a", "c", "d")
    book.answer("a")
    assert book.book.close("ord-1") == [SendDown("m2", Close(order_id="ord-1"))]
    assert book.book.reported("m2", Report(key=TRAIN, order_id="ord-1", outcomes=())) == [Finish("ord-1")]


def test_a_combiner_that_goes_while_closing_does_not_keep_others_waiting() -> None:
    book = Book()
    book.order("a", "c")
    book.book.close("ord-1")
    assert book.book.child_gone("m2") == [released("c"), Finish("ord-1")]


# ---- giving up


def test_a_cancelled_order_is_gone_here_and_at_combiners_below() -> None:
    book = Book()
    book.order()
    assert book.book.cancelled("ord-1", "stopped") == [SendDown("m2", Cancel(order_id="ord-1", reason="stopped"))]
    assert book.book.orders == {}
    assert book.book.cancelled("ord-1", "stopped") == []
    assert book.book.close("ord-1") == []
    assert book.book.child_gone("a") == []


def test_when_the_node_above_is_gone_all_its_orders_are() -> None:
    book = Book()
    book.order("a", "c")
    book.order("b", order_id="ord-2")
    told = book.book.parent_gone()
    assert told == [SendDown("m2", Cancel(order_id="ord-1", reason="the node above was away"))]
    assert book.book.orders == {}


def test_slots_of_two_orders_do_not_touch() -> None:
    book = Book()
    book.order("a")
    book.order("b", order_id="ord-2")
    book.answer("a")
    assert book.book.orders["ord-2"].slots == {"b": SlotState.WAITING}
