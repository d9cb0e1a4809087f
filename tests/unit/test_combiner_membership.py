"""Who is below a combiner, and what the node above is told of it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runnel.combiner.domain import Membership
from runnel.common.protocol import AssignmentKey, Member, NodeKind, Roster, Work
from runnel.reducer.domain.roster import Roster as Above

pytestmark = pytest.mark.unit

KEY = AssignmentKey(session_id="ses-1", round=1, work=Work.TRAIN)
OTHER = AssignmentKey(session_id="ses-2", round=4, work=Work.TRAIN)


def client(name: str, parent: str = "", *holding: AssignmentKey) -> Member:
    return Member(name=name, node_id=f"id-{name}", kind=NodeKind.CLIENT, parent=parent, holding=holding)


def combiner(name: str, parent: str = "") -> Member:
    return Member(name=name, node_id=f"id-{name}", kind=NodeKind.COMBINER, parent=parent)


def names(members: Iterable[Member]) -> list[str]:
    return [member.name for member in members]


def two_tiers() -> Membership:
    """At m1: a, and m2 with b."""
    below = Membership("m1")
    below.attach(client("a"), [])
    below.attach(combiner("m2"), [client("b")])
    return below


def test_an_arrival_is_told_with_its_place() -> None:
    below = Membership("m1")
    assert below.attach(client("a"), []).joined == (client("a", "m1"),)
    assert below.attach(combiner("m2"), [client("b"), combiner("m3", "m2"), client("c", "m3")]).joined == (
        combiner("m2", "m1"),
        client("b", "m2"),
        combiner("m3", "m2"),
        client("c", "m3"),
    )
    assert {name: below.route(name) for name in ("a", "b", "c", "m3", "x")} == {
        "a": "a",
        "b": "m2",
        "c": "m2",
        "m3": "m2",
        "x": None,
    }
    assert (below.kind_of("a"), below.kind_of("m2"), below.kind_of("b")) == (
        NodeKind.CLIENT,
        NodeKind.COMBINER,
        None,
    )
    assert below.directly_attached() == 2


def test_a_departure_takes_all_below_along() -> None:
    below = two_tiers()
    assert set(below.detach("m2").left) == {"m2", "b"}
    assert names(below.members()) == ["a"]
    assert below.detach("m2") == Roster()


def test_only_what_the_node_above_must_know_is_told() -> None:
    below = two_tiers()
    assert below.leave("m2", ["a", "x"]) == Roster(), "m2 never had them"
    assert below.attach(client("b"), []).joined == (client("b", "m1"),)
    assert below.leave("m2", ["b"]) == Roster(), "it is here by another way"


def test_who_is_back_where_it_was_before_is_told_again() -> None:
    below = two_tiers()
    below.join("m2", [client("a", "m2")])
    assert below.route("a") == "m2"
    assert below.ways("a") == ("a", "m2")
    assert below.leave("m2", ["a"]) == Roster(joined=(client("a", "m1"),))
    assert below.route("a") == "a"


def test_who_comes_again_unannounced_brings_only_those_that_it_names() -> None:
    below = two_tiers()
    news = below.attach(combiner("m2"), [client("c")])
    assert names(news.joined) == ["m2", "c"]
    assert news.left == ("b",)
    assert below.route("b") is None


# ---- what they hold


def test_a_hello_tells_what_those_below_may_hold() -> None:
    below = two_tiers()
    below.takes_on("b", KEY)
    below.takes_on("b", KEY)
    below.takes_on("b", OTHER)
    below.takes_on("nobody", KEY)
    assert {m.name: m.holding for m in below.members()} == {"a": (), "m2": (), "b": (KEY, OTHER)}
    below.let_go("b", KEY)
    below.let_go("a", KEY)
    assert {m.name: m.holding for m in below.members()} == {"a": (), "m2": (), "b": (OTHER,)}


# ---- between a hello and its welcome


def test_what_changes_while_nothing_can_be_said_is_said_afterwards() -> None:
    below = two_tiers()
    assert names(below.announce()) == ["a", "m2", "b"]
    assert below.unannounced() == Roster()
    below.detach("a")
    below.attach(client("c"), [])
    below.join("m2", [client("b", "", KEY)])
    news = below.unannounced()
    assert news.left == ("a",)
    assert news.joined == (client("b", "m2", KEY), client("c", "m1"))


events = st.lists(
    st.tuples(
        st.sampled_from(("attach", "detach", "join", "leave", "hello", "welcome")),
        st.sampled_from(("a", "b", "m2", "m3")),
        st.sampled_from(("a", "b", "m2", "m3")),
    ),
    max_size=30,
)


@given(events)
@example([("attach", "b", "a"), ("hello", "a", "a"), ("attach", "a", "b"), ("welcome", "a", "a"), ("attach", "a", "a")])
def test_the_node_above_knows_in_the_end_what_is_known_here(told: list[tuple[str, str, str]]) -> None:
    """Changes while the way up is gone come with the hello, those until its welcome after it, others as they happen."""
    make = {"a": client, "b": client, "m2": combiner, "m3": combiner}
    below, above, up = Membership("m1"), Above(), "away"
    attached: set[str] = set()

    def say(news: Roster) -> None:
        if up == "attached":
            above.leave("m1", news.left)
            above.join("m1", news.joined)

    def hello() -> None:
        above.attach(combiner("m1"), below.announce())

    for what, name, other in told:
        if what == "hello":
            hello()
            up = "opening"
        elif what == "welcome" and up == "opening":
            up = "attached"
            say(below.unannounced())
        elif what == "attach":
            say(below.attach(make[name](name), [] if name == other else [make[other](other)]))
            attached.add(name)
        elif what == "detach":
            say(below.detach(name))
            attached.discard(name)
        elif what == "join" and name in attached and name != other:
            say(below.join(name, [make[other](other)]))
        elif what == "leave" and name in attached and name != other:
            say(below.leave(name, [other]))
        assert all(below.route(m.name) in attached for m in below.members())
        assert len(set(names(below.members()))) == len(below.members())
    if up != "attached":
        hello()
        up = "attached"
    say(below.unannounced())
    assert {m.name: m for m in above.members() if m.name != "m1"} == {m.name: m for m in below.members()}


def test_runs_that_a_client_is_given_are_known_by_every_way_to_it_until_they_are_over() -> None:
    below = two_tiers()
    below.takes_run("b", "run-1")
    below.takes_run("b", "run-1")
    assert [member.runs for member in below.members() if member.name == "b"] == [("run-1",)]
    assert [below.holds_run(child, "run-1") for child in ("a", "m2", "nobody")] == [False, True, False]
    below.attach(combiner("m4"), [client("b", "m4")])  # it moved, and is known by both ways for a while
    assert not below.holds_run("m4", "run-1")
    below.takes_run("b", "run-2")
    below.lets_run_go("b", "run-1")
    assert [below.holds_run(child, run) for child in ("m2", "m4") for run in ("run-1", "run-2")] == [
        False,
        True,
        False,
        True,
    ]
