"""Where everybody is, whatever the order in which the news comes; and the best place for a newcomer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.common.errors import CapacityExceeded, InvalidInput, Unreachable
from runnel.common.protocol import Member, NodeKind
from runnel.reducer.domain.roster import Roster

pytestmark = pytest.mark.unit


def client(name: str, parent: str = "") -> Member:
    return Member(name=name, node_id=f"id-{name}", kind=NodeKind.CLIENT, parent=parent)


def combiner(name: str, parent: str = "", capacity: int = 10, address: str = "127.0.0.1:7500") -> Member:
    return Member(
        name=name, node_id=f"id-{name}", kind=NodeKind.COMBINER, parent=parent, capacity=capacity, address=address
    )


def names(members: Iterable[Member]) -> list[str]:
    return [member.name for member in members]


def two_tiers() -> Roster:
    """m1 with a, and m2 below it with b; d directly."""
    roster = Roster()
    roster.attach(combiner("m1"), [client("a", "m1"), combiner("m2", "m1"), client("b", "m2")])
    roster.attach(client("d"), [])
    return roster


def test_a_node_is_reached_through_what_is_directly_attached() -> None:
    roster = two_tiers()
    assert {name: roster.route(name) for name in ("a", "b", "m2", "m1", "d", "x")} == {
        "a": "m1",
        "b": "m1",
        "m2": "m1",
        "m1": "m1",
        "d": "d",
        "x": None,
    }
    assert {name: roster.attached_to(name, "top") for name in ("a", "b", "m1", "d", "x")} == {
        "a": "m1",
        "b": "m2",
        "m1": "top",
        "d": "top",
        "x": None,
    }
    assert roster.clients() == ["a", "b", "d"]
    assert names(roster.combiners()) == ["m1", "m2"]
    assert roster.direct_clients() == ["d"]
    assert (roster.load("m1"), roster.load("m2"), roster.load("x")) == (2, 1, 0)
    assert roster.find("b") == client("b", "m2")
    assert roster.find("x") is None


def test_with_a_combiner_goes_all_below_it() -> None:
    roster = two_tiers()
    assert sorted(names(roster.detach("m1"))) == ["a", "b", "m1", "m2"]
    assert roster.clients() == ["d"]
    assert roster.detach("m1") == []


def test_who_comes_again_unannounced_brings_only_those_that_it_names() -> None:
    roster = two_tiers()
    roster.attach(combiner("m1"), [client("c", "m1")])
    assert roster.clients() == ["c", "d"]
    assert roster.route("a") is None


def test_who_arrived_elsewhere_stays_when_its_old_place_loses_it() -> None:
    roster = two_tiers()
    roster.attach(combiner("m3"), [client("a", "m3")])
    assert roster.leave("m1", ["a"]) == []
    assert roster.attached_to("a", "top") == "m3"


def test_old_news_that_comes_late_does_not_hide_a_node() -> None:
    # a was at m3 for a moment and is back at m1; m3's news of its coming and going is slow.
    roster = two_tiers()
    roster.attach(combiner("m3"), [])
    roster.leave("m1", ["a"])
    roster.join("m1", [client("a", "m1")])
    roster.join("m3", [client("a", "m3")])
    assert roster.ways("a") == ("m1", "m3")
    assert roster.leave("m3", ["a"]) == []
    assert roster.route("a") == "m1"
    assert roster.ways("a") == ("m1",)


def test_a_combiner_that_moved_below_another_is_found_there() -> None:
    roster = two_tiers()
    roster.attach(combiner("m3"), [])
    roster.join("m3", [combiner("m1", "m3"), client("a", "m1")])
    assert roster.attached_to("a", "top") == "m1"
    assert sorted(names(roster.detach("m1"))) == ["b", "m2"]
    assert roster.route("a") == "m3"
    assert roster.attached_to("m1", "top") == "m3"


# ---- against a model

NODES = ("m1", "m2", "a", "b", "c")


@st.composite
def interleavings(draw: st.DrawFn) -> tuple[list[tuple[str, str, str]], dict[str, str | None]]:
    """Stays of clients at combiners, told by each combiner in its order, the combiners' news in any order."""
    news: dict[str, list[tuple[str, str, str]]] = {"m1": [], "m2": []}
    at: dict[str, str | None] = dict.fromkeys(("a", "b", "c"))
    for name in draw(st.lists(st.sampled_from(("a", "b", "c")), max_size=12)):
        place = draw(st.sampled_from(("m1", "m2", None)))
        if (before := at[name]) is not None:
            news[before].append(("leave", before, name))
        if place is not None:
            news[place].append(("join", place, name))
        at[name] = place
    told = []
    while any(news.values()):
        source = draw(st.sampled_from([name for name, waiting in news.items() if waiting]))
        told.append(news[source].pop(0))
    return told, at


@given(interleavings())
def test_once_all_news_is_there_everybody_is_where_it_is(
    case: tuple[list[tuple[str, str, str]], dict[str, str | None]],
) -> None:
    told, truth = case
    roster = Roster()
    for name in ("m1", "m2"):
        roster.attach(combiner(name), [])
    known: set[str] = set()
    for what, place, name in told:
        if what == "join":
            assert names(roster.join(place, [client(name, place)])) == [name]
            assert roster.route(name) == place, "the last arrival decides"
            known.add(name)
        elif roster.leave(place, [name]):
            known.discard(name)
        assert set(roster.clients()) == known
        assert len(roster.members()) == len(known) + 2
        assert roster.load("m1") + roster.load("m2") == len(known), "nobody takes two places"
    assert {name: roster.route(name) for name in truth} == truth
    assert all(len(roster.ways(name)) == (truth[name] is not None) for name in truth)


@given(
    st.lists(st.tuples(st.sampled_from(("attach", "detach", "join", "leave")), st.integers(0, 7), st.integers(0, 7)))
)
def test_whatever_is_told_all_answers_agree(events: list[tuple[str, int, int]]) -> None:
    roster = Roster()
    everybody = [combiner("m1"), combiner("m2"), combiner("m3"), *(client(f"c{n}") for n in range(5))]
    attached: set[str] = set()
    for what, who, other in events:
        member, second = everybody[who], everybody[other]
        if what == "attach":
            roster.attach(member, [] if member == second else [second])
            attached.add(member.name)
        elif what == "detach":
            roster.detach(member.name)
            attached.discard(member.name)
        elif member.name in attached and member != second:
            if what == "join":
                roster.join(member.name, [second])
            else:
                roster.leave(member.name, [second.name])
        for each in everybody:
            way = roster.route(each.name)
            assert way is None or way in attached
            assert (way is None) == (roster.find(each.name) is None) == (not roster.ways(each.name))
            assert (way is None) == (roster.attached_to(each.name, "top") is None)
            assert roster.load(each.name) >= 0
        listed = names(roster.members())
        assert len(listed) == len(set(listed))
        assert set(listed) == {each.name for each in everybody if roster.route(each.name)}


# ---- places


def place(roster: Roster, **given_: object) -> str | None:
    asked: dict[str, object] = {
        "prefer": "",
        "stay": "",
        "avoid": frozenset(),
        "own_name": "top",
        "direct_capacity": 1,
        "underway": {},
    }
    member = roster.place(**(asked | given_)).member  # type: ignore[arg-type]
    return None if member is None else member.name


def crowded() -> Roster:
    """m1 is half full (2 of 4), m2 a quarter (1 of 4)."""
    roster = Roster()
    roster.attach(combiner("m1", capacity=4), [client("a", "m1"), client("b", "m1")])
    roster.attach(combiner("m2", capacity=4), [client("c", "m2")])
    return roster


def test_a_newcomer_goes_where_the_least_share_is_taken() -> None:
    assert place(crowded()) == "m2"
    assert place(crowded(), underway={"m2": 2}) == "m1"


def test_who_stands_well_stays_and_else_goes_where_it_prefers() -> None:
    assert place(crowded(), stay="m1") == "m1"
    assert place(crowded(), stay="gone", prefer="m1") == "m1"
    assert place(crowded(), prefer="m1", avoid=frozenset({"m1"})) == "m2"


def test_a_full_combiner_is_nobodys_choice_except_of_those_that_are_there() -> None:
    assert place(crowded(), prefer="m1", underway={"m1": 2}) == "m2"
    assert place(crowded(), stay="m1", underway={"m1": 2}) == "m1"


def test_the_reducer_itself_comes_after_all_combiners() -> None:
    assert place(crowded(), stay="top") == "m2"
    assert place(crowded(), avoid=frozenset({"m1", "m2"})) is None
    assert place(crowded(), avoid=frozenset({"m1", "m2"}), direct_capacity=0) == "m2"
    assert place(crowded(), underway={"m1": 2, "m2": 3}) is None
    assert place(Roster()) is None
    assert place(Roster(), stay="top", direct_capacity=0) is None


def test_a_full_network_says_so() -> None:
    with pytest.raises(CapacityExceeded, match="All 2 combiners are full"):
        place(crowded(), underway={"m1": 2, "m2": 3}, direct_capacity=0)


def test_a_combiner_without_address_takes_nobody() -> None:
    roster = Roster()
    roster.attach(combiner("m1", address=""), [])
    assert place(roster) is None


def test_a_client_that_moved_to_a_combiner_takes_no_direct_place() -> None:
    roster = Roster()
    roster.attach(client("a"), [])
    assert roster.direct_clients() == ["a"]
    roster.attach(combiner("m1", capacity=1), [client("a", "m1")])
    assert roster.direct_clients() == []
    assert place(roster) is None


# ---- combiners below combiners


def test_a_combiner_is_told_the_parent_that_it_wants() -> None:
    assert two_tiers().parent_for("m9", "m2").name == "m2"


@pytest.mark.parametrize("wanted", ["nobody", "a"])
def test_only_an_attached_combiner_can_be_a_parent(wanted: str) -> None:
    with pytest.raises(Unreachable, match=wanted):
        two_tiers().parent_for("m9", wanted)


def test_a_combiner_can_not_go_below_itself() -> None:
    with pytest.raises(InvalidInput, match="below m1 itself"):
        two_tiers().parent_for("m1", "m2")


def test_a_circle_in_what_is_known_ends() -> None:
    roster = Roster()
    for name, other in itertools.permutations(("m1", "m2")):
        roster.attach(combiner(name), [])
        roster.join(name, [combiner(other, name)])
    roster.join("m1", [combiner("m2", "m1")])
    assert roster.parent_for("m9", "m1").name == "m1"


NAMES = ["m1", "m2", "m3", "a", "b"]
nodes_of = st.builds(
    lambda name, parent: (combiner if name.startswith("m") else client)(name, "" if parent == name else parent),
    st.sampled_from(NAMES),
    st.sampled_from(["", "m1", "m2", "m3"]),
)


@given(
    st.lists(
        st.tuples(st.sampled_from(["attach", "detach", "join", "leave"]), st.sampled_from(NAMES[:3]), nodes_of),
        max_size=40,
    )
)
def test_what_is_kept_about_places_is_what_looking_at_everybody_finds(news: list[tuple[str, str, Member]]) -> None:
    roster = Roster()
    attached: set[str] = set()
    for what, child, member in news:
        if what == "attach":
            attached.add(child)
            roster.attach(combiner(child), [] if member.name == child else [member])
        elif child in attached and what == "detach":
            attached.discard(child)
            roster.detach(child)
        elif child in attached and member.name != child:
            if what == "join":
                roster.join(child, [member])
            else:
                roster.leave(child, [member.name])
        assert {m.name for m in roster.combiners()} == {m.name for m in roster.members() if m.kind is NodeKind.COMBINER}
        for name in NAMES[:3]:
            way = roster.route(name)
            below = [
                each
                for each in roster.members()
                if way is not None and each.name not in (name, way) and roster.route(each.name) == way
            ]
            assert roster.load(name) == sum((each.parent or way) == name for each in below)
