"""Slots and orders: who is asked, what counts, what is refused."""

from __future__ import annotations

import itertools

import pytest

from runnel.common.errors import IllegalState
from runnel.common.protocol import AssignmentKey, Stage, Work
from runnel.reducer.domain.collection import Collection, Order, SlotState

pytestmark = pytest.mark.unit

KEY = AssignmentKey(session_id="ses-1", round=1, work=Work.TRAIN)
AT_M1 = {"a": "m1", "b": "m1", "c": "c"}


def collection(*clients: str, wanted: int | None = None) -> Collection:
    numbers = itertools.count(1)
    made = Collection(key=KEY, wanted=wanted, new_order_id=lambda: f"ord-{next(numbers)}")
    made.invite(clients)
    return made


def placed(*clients: str, wanted: int | None = None) -> tuple[Collection, Order, Order]:
    """Ask a and b through m1, and c, which is attached directly."""
    made = collection(*(clients or ("a", "b", "c")), wanted=wanted)
    by_child = {order.child: order for order in made.place(AT_M1.get)}
    return made, by_child["m1"], by_child["c"]


def states(of: Collection) -> dict[str, str]:
    return {name: slot.state.value for name, slot in of.slots.items()}


# ---- placing


def test_each_directly_attached_node_gets_one_order_for_all_its_clients() -> None:
    made, m1, c = placed()
    assert [set(order.clients) for order in (m1, c)] == [{"a", "b"}, {"c"}]
    assert states(made) == {"a": "asked", "b": "asked", "c": "asked"}


def test_who_is_attached_nowhere_is_asked_as_soon_as_it_is() -> None:
    made = collection("a", "b")
    made.place({"a": "m1"}.get)
    assert made.clients_in(SlotState.OPEN) == ["b"]
    (later,) = made.place(lambda _: "m2")
    assert (later.child, sorted(later.clients)) == ("m2", ["b"])


def test_nobody_is_asked_twice_at_a_time() -> None:
    made, _, _ = placed()
    assert made.place(AT_M1.get) == []
    made.invite(["a", "b", "c"])
    assert made.place(AT_M1.get) == []


# ---- reports


def test_a_report_counts_fails_and_leaves_late() -> None:
    made, m1, _ = placed()
    assert made.reported(m1.order_id, "m1", ["a"], []) == ["b"]
    assert states(made) == {"a": "counted", "b": "late", "c": "asked"}
    assert made.place(lambda _: "m1") == []


def test_what_was_counted_is_never_asked_again() -> None:
    made, m1, c = placed()
    made.reported(m1.order_id, "m1", ["a"], ["b"])
    made.child_gone("m1")
    made.released(m1.order_id, ["a"])
    made.progressed(m1.order_id, "a", Stage.FAILED)
    assert states(made) == {"a": "counted", "b": "failed", "c": "asked"}
    made.reported(c.order_id, "c", ["c"], [])
    assert made.reopen() == ["b"]
    assert [order.clients for order in made.place(lambda _: "m1")] == [{"b"}]


def test_a_report_of_an_order_that_was_answered_is_refused() -> None:
    made, m1, _ = placed()
    made.reported(m1.order_id, "m1", ["a", "b"], [])
    with pytest.raises(IllegalState, match="not open at m1"):
        made.reported(m1.order_id, "m1", ["a", "b"], [])


def test_a_report_of_a_node_that_was_away_is_refused_and_its_clients_are_asked_again() -> None:
    made, m1, _ = placed()
    assert made.child_gone("m1") == [m1]
    with pytest.raises(IllegalState, match="given up while m1 was away"):
        made.reported(m1.order_id, "m1", ["a", "b"], [])
    assert states(made) == {"a": "open", "b": "open", "c": "asked"}


def test_an_order_of_another_node_is_refused() -> None:
    made, m1, _ = placed()
    with pytest.raises(IllegalState) as caught:
        made.require_order(m1.order_id, "m2")
    assert caught.value.fields == {"order_id": m1.order_id, "child": "m2"}


@pytest.mark.parametrize(
    ("counted", "failed", "text"),
    [(["a", "c"], [], r"'c'.*not asked"), (["a"], ["a"], "a client twice"), (["a", "a"], [], "a client twice")],
)
def test_a_report_of_strangers_or_doubles_changes_nothing(counted: list[str], failed: list[str], text: str) -> None:
    made, m1, _ = placed()
    before = states(made)
    with pytest.raises(IllegalState, match=text):
        made.reported(m1.order_id, "m1", counted, failed)
    assert states(made) == before
    assert made.require_order(m1.order_id, "m1") is m1


def test_a_node_can_not_report_whom_it_has_released() -> None:
    made, m1, _ = placed()
    made.released(m1.order_id, ["a"])
    made.place(lambda _: "m2")
    with pytest.raises(IllegalState, match=r"'a'.*not asked"):
        made.reported(m1.order_id, "m1", ["a", "b"], [])
    made.reported(m1.order_id, "m1", ["b"], [])
    assert states(made) == {"a": "asked", "b": "counted", "c": "asked"}


def test_what_could_not_be_made_durable_is_open_again() -> None:
    made, m1, _ = placed()
    made.reported(m1.order_id, "m1", ["a"], [])
    made.unreported(m1.order_id)
    assert states(made) == {"a": "open", "b": "open", "c": "asked"}
    assert [order.clients for order in made.place(AT_M1.get)] == [{"a", "b"}]


def test_what_there_was_no_room_for_is_asked_for_only_when_its_order_is_taken_out() -> None:
    made, m1, _ = placed()
    made.reported(m1.order_id, "m1", ["a"], [])
    made.retained(m1)
    assert states(made) == {"a": "asked", "b": "asked", "c": "asked"}
    assert made.place(AT_M1.get) == []
    assert made.counts.counted == 0
    made.unreported(m1.order_id)
    assert [order.clients for order in made.place(AT_M1.get)] == [{"a", "b"}]


def test_a_report_that_can_not_be_used_fails_its_clients_until_the_next_attempt() -> None:
    made, m1, _ = placed()
    del made.orders[m1.order_id]
    made.refused(m1)
    assert states(made) == {"a": "failed", "b": "failed", "c": "asked"}
    assert made.reopen() == ["a", "b"]


# ---- releases and progress


def test_a_release_opens_only_slots_of_its_own_living_order() -> None:
    made, m1, c = placed()
    made.released(m1.order_id, ["a", "c", "nobody"])
    assert states(made) == {"a": "open", "b": "asked", "c": "asked"}
    (again,) = made.place(lambda _: "m2")
    made.released(m1.order_id, ["a"])
    assert made.slots["a"].order_id == again.order_id
    made.child_gone("c")
    made.released(c.order_id, ["c"])
    assert states(made)["c"] == "open"


def test_progress_tells_what_is_to_come() -> None:
    made, m1, _ = placed()
    made.progressed(m1.order_id, "a", Stage.RUNNING)
    assert states(made)["a"] == "asked"
    made.progressed(m1.order_id, "a", Stage.COUNTED)
    made.progressed(m1.order_id, "b", Stage.FAILED)
    assert states(made) == {"a": "noted", "b": "failed", "c": "asked"}
    counts = made.counts
    assert (counts.asked, counts.counted, counts.noted, counts.failed, counts.late, counts.open) == (3, 0, 1, 1, 0, 1)


def test_progress_of_a_dead_order_means_nothing() -> None:
    made, m1, _ = placed()
    made.child_gone("m1")
    made.place(AT_M1.get)
    made.progressed(m1.order_id, "a", Stage.COUNTED)
    assert states(made)["a"] == "asked"


def test_what_was_only_announced_is_lost_with_its_node() -> None:
    made, m1, _ = placed(wanted=1)
    made.progressed(m1.order_id, "a", Stage.COUNTED)
    assert made.enough
    made.child_gone("m1")
    assert not made.enough
    assert states(made)["a"] == "open"


# ---- the end of a phase


def test_a_phase_is_answered_when_all_reports_are_in() -> None:
    made, m1, c = placed()
    made.reported(m1.order_id, "m1", ["a", "b"], [])
    assert not made.answered
    made.reported(c.order_id, "c", [], ["c"])
    assert made.answered
    assert not made.only_missing_left


def test_a_phase_is_not_answered_while_somebody_who_is_away_was_not_asked() -> None:
    made, m1, _ = placed()
    made.child_gone("c")
    made.reported(m1.order_id, "m1", ["a", "b"], [])
    assert not made.answered
    assert made.only_missing_left


def test_enough_are_in_when_so_many_are_counted_or_announced() -> None:
    made, m1, c = placed(wanted=2)
    made.progressed(m1.order_id, "a", Stage.COUNTED)
    assert not made.enough
    made.reported(c.order_id, "c", ["c"], [])
    assert made.enough
    assert not placed()[0].enough


def test_each_order_is_told_once_to_close() -> None:
    made, m1, c = placed()
    assert made.close() == [m1, c]
    assert made.close() == []


def test_who_is_not_waited_for_is_late() -> None:
    made, _, c = placed()
    made.late(c)
    assert states(made) == {"a": "asked", "b": "asked", "c": "late"}
    with pytest.raises(IllegalState):
        made.reported(c.order_id, "c", ["c"], [])
    assert made.reopen() == []
    assert states(made)["c"] == "open"


def test_behind_the_fence_nothing_is_taken() -> None:
    made, m1, c = placed()
    assert made.fence() == [m1, c]
    for order in (m1, c):
        with pytest.raises(IllegalState):
            made.reported(order.order_id, order.child, sorted(order.clients), [])
    assert made.fence() == []


def test_another_attempt_opens_what_failed_or_is_late_and_nothing_else() -> None:
    made, m1, c = placed()
    made.reported(m1.order_id, "m1", ["a"], [])
    made.reported(c.order_id, "c", [], ["c"])
    assert made.reopen() == ["c"]
    assert states(made) == {"a": "counted", "b": "open", "c": "open"}


def test_what_was_under_an_order_is_open_after_a_restart() -> None:
    made = collection()
    made.restore({state.value: state for state in SlotState})
    assert states(made) == {
        "open": "open",
        "asked": "open",
        "noted": "open",
        "counted": "counted",
        "failed": "failed",
        "awaiting": "open",
        "refused": "open",
        "late": "open",
    }


# ---- what somebody is told who holds work


def test_only_what_is_durable_is_told_before_the_phase_has_ended() -> None:
    made, m1, _ = placed()
    assert made.verdict("stranger") is SlotState.LATE
    assert made.verdict("a") is None
    made.progressed(m1.order_id, "a", Stage.FAILED)
    assert made.verdict("a") is None, "the order may still die, and then it is asked again"
    made.progressed(m1.order_id, "b", Stage.COUNTED)
    assert made.verdict("b") is None
    made.reported(m1.order_id, "m1", ["b"], ["a"])
    assert (made.verdict("a"), made.verdict("b")) == (SlotState.FAILED, SlotState.COUNTED)


def test_who_is_late_keeps_its_work_for_another_attempt() -> None:
    made, m1, _ = placed()
    made.reported(m1.order_id, "m1", ["a"], [])
    assert made.verdict("b") is None


# ---- what people are told who ask why somebody does not answer


def test_what_was_heard_last_is_told_of_those_whose_answer_is_missing() -> None:
    made, m1, _ = placed()
    made.heard("a", "No room in /a.")
    made.heard("b", "No room in /b.")
    made.heard("a", "")  # says nothing new
    made.heard("stranger", "No room in /x.")
    assert made.unanswered() == {"a": "No room in /a.", "b": "No room in /b."}
    made.heard("b", "No room in /b either.")
    made.reported(m1.order_id, "m1", ["a"], [])
    assert made.unanswered() == {"b": "No room in /b either."}


def test_of_who_has_failed_the_failure_is_told_and_not_what_was_heard_before() -> None:
    made, m1, _ = placed()
    made.heard("a", "No room in /a.")
    made.reported(m1.order_id, "m1", [], ["a"])
    assert made.unanswered() == {}


# ---- clients whose site does not take the work yet


def test_who_waits_for_its_site_is_not_asked_again_before_it_comes_back() -> None:
    made, m1, c = placed()
    made.progressed(m1.order_id, "a", Stage.FAILED)
    assert made.reported(m1.order_id, "m1", ["b"], [], ["a"]) == []
    assert states(made)["a"] == "awaiting"
    assert made.place(AT_M1.get) == []
    made.reported(c.order_id, "c", ["c"], [])
    assert made.answered, "enough have answered without it"
    made.arrived("a")
    assert states(made)["a"] == "open"
    (again,) = made.place(AT_M1.get)
    assert sorted(again.clients) == ["a"]


def test_nobody_waits_for_who_refuses_or_asks_it_again_before_it_comes_back() -> None:
    made, m1, c = placed()
    made.needed = 3
    made.reported(m1.order_id, "m1", ["b"], [], [], ["a"])
    made.reported(c.order_id, "c", ["c"], [])
    assert made.answered
    assert (made.counts.failed, made.counts.refused, made.counts.awaiting) == (1, 1, 0)
    assert made.reopen() == []
    assert states(made)["a"] == "refused", "another attempt would change nothing"
    assert made.place(AT_M1.get) == []
    made.arrived("a")
    (again,) = made.place(AT_M1.get)
    assert sorted(again.clients) == ["a"]


def test_who_waits_for_its_site_is_waited_for_while_too_few_are_counted() -> None:
    made, m1, c = placed()
    made.needed = 3
    made.reported(m1.order_id, "m1", ["b"], [], ["a"])
    made.reported(c.order_id, "c", ["c"], [])
    assert not made.answered
    assert made.counts.awaiting == 1
    made.arrived("b")
    made.arrived("stranger")
    assert states(made) == {"a": "awaiting", "b": "counted", "c": "counted"}
    assert made.reopen() == []
    assert states(made)["a"] == "open"


def test_an_answer_that_was_on_its_way_when_the_client_came_back_is_asked_for_again() -> None:
    made, m1, _ = placed()
    made.progressed(m1.order_id, "a", Stage.FAILED)
    made.arrived("a")
    made.reported(m1.order_id, "m1", ["b"], [], ["a"])
    assert states(made)["a"] == "open"
    (again,) = made.place(AT_M1.get)
    made.reported(again.order_id, "m1", [], [], ["a"])
    assert states(made)["a"] == "awaiting", "it answered this after it had come back"


def test_a_report_names_each_client_once() -> None:
    made, m1, _ = placed()
    with pytest.raises(IllegalState, match="twice"):
        made.reported(m1.order_id, "m1", ["a"], [], ["a"])
    with pytest.raises(IllegalState, match="not asked"):
        made.reported(m1.order_id, "m1", [], [], ["c"])
