"""One phase of one round over the whole network, against every order of events and every loss that networks have."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runnel.reducer.domain.collection import SlotState
from tests.doubles.round_network import RoundNetwork
from tests.doubles.round_reducer import REDUCER

pytestmark = pytest.mark.unit

CLIENTS = ("a", "b", "c", "d")
COMBINERS = ("m1", "m2", "m3")
MOST_STEPS_TO_CALM = 20_000

small = st.integers(0, 4)
choice = st.integers(0, 1 << 16)


class RoundMachine(RuleBasedStateMachine):
    """Whatever happens on the way, once it is calm everybody has answered and was counted once."""

    @initialize(
        failing=st.sets(st.sampled_from(CLIENTS), max_size=1),
        corrupting=st.sets(st.sampled_from(CLIENTS), max_size=1),
        awaiting=st.sets(st.sampled_from(CLIENTS), max_size=2),
        refusing=st.sets(st.sampled_from(CLIENTS), max_size=1),
        wanted=st.one_of(st.none(), st.none(), st.integers(1, len(CLIENTS))),
        places=st.lists(choice, min_size=7, max_size=7),
    )
    def begin(
        self,
        failing: set[str],
        corrupting: set[str],
        awaiting: set[str],
        refusing: set[str],
        wanted: int | None,
        places: list[int],
    ) -> None:
        self.net = RoundNetwork(
            CLIENTS,
            COMBINERS,
            wanted=wanted,
            failing=failing,
            corrupting=corrupting,
            awaiting=awaiting,
            refusing=refusing,
        )
        self.closed = wanted is not None
        for name, place in zip((*COMBINERS, *CLIENTS), places, strict=True):
            self.attach(name, place)

    @rule(choices=st.lists(choice, min_size=1, max_size=40))
    def go_on(self, choices: list[int]) -> None:
        for each in choices:
            self.net.step(each)
            self.net.invariants()

    @rule(name=st.sampled_from((*COMBINERS, *CLIENTS)), place=choice)
    def attach(self, name: str, place: int) -> None:
        if self.net.node(name).wire is None:
            places = self.net.places_for(name)
            self.net.attach(name, places[place % len(places)])

    @rule(name=st.sampled_from((*COMBINERS, *CLIENTS)), keep_up=small, keep_down=small)
    def cut(self, name: str, keep_up: int, keep_down: int) -> None:
        if (wire := self.net.node(name).wire) is not None:
            self.net.cut(wire, keep_up, keep_down)

    @rule(name=st.sampled_from(CLIENTS), place=choice, keep=small)
    def move(self, name: str, place: int, keep: int) -> None:
        """A client leaves and is elsewhere before anybody has heard of its leaving."""
        node = self.net.node(name)
        if node.wire is not None:
            self.net.cut(node.wire, keep, 0)
            self.net.hang_up(node.wire)
        self.attach(name, place)

    @rule(name=st.sampled_from((*COMBINERS, *CLIENTS)), keep=small)
    def kill(self, name: str, keep: int) -> None:
        self.net.kill(name, keep)

    @rule(name=st.sampled_from(CLIENTS))
    def approve(self, name: str) -> None:
        self.net.approve(name)

    @rule(keep=small)
    def kill_reducer(self, keep: int) -> None:
        self.net.kill(REDUCER, keep)

    @precondition(lambda self: not self.closed)
    @rule(really=st.integers(0, 3))
    def time_out(self, really: int) -> None:
        if not really:
            self.closed = True
            self.net.time_is_over()

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "net"):
            self.net.invariants()

    def teardown(self) -> None:
        if hasattr(self, "net"):
            calm(self.net, Random(0))
            check_the_end(self.net)


def calm(net: RoundNetwork, random: Random) -> None:
    """Let all sites approve, everybody who is attached nowhere attach, and all happen that may, until nothing does."""
    approving = [name for name in CLIENTS if name in net.truth.awaiting]
    for _ in range(MOST_STEPS_TO_CALM):
        for name in (*COMBINERS, *CLIENTS):
            if net.node(name).wire is None:
                net.attach(name, random.choice(net.places_for(name)))
        if not net.step(random.randrange(1 << 16)):
            if not approving:
                return
            net.approve(approving.pop())
        net.invariants()
    raise AssertionError("it never calms down: " + "; ".join(net.trace[-60:]))


def check_the_end(net: RoundNetwork) -> None:
    trace = "\n".join(net.trace)
    reducer = net.reducer
    assert net.truth.over, trace
    states = {name: net.truth.ledger[name] for name in CLIENTS}
    bad = net.truth.failing | net.truth.corrupting
    if not net.truth.closed_early:
        for name, state in states.items():
            wanted = {SlotState.COUNTED} | ({SlotState.FAILED} if name in bad else set())
            if name in net.truth.refusing_first:
                wanted = {SlotState.REFUSED} | (wanted if name not in net.truth.refusing else set())
            assert state in wanted, f"{name} is {state}\n{trace}"
            # Only work that died with its process was done again.
            if name not in bad:
                times = {1} if state is SlotState.COUNTED else {0, 1}
                assert net.truth.trainings[name] in times, f"{name} trained {net.truth.trainings[name]} times\n{trace}"
    for name, client in net.clients.items():
        assert not client.outbox, f"{name} still holds {client.outbox}\n{trace}"
        assert not client.book.jobs, f"{name} still has {client.book.jobs}\n{trace}"
    for combiner in net.combiners.values():
        assert not combiner.book.orders, f"{combiner.name} still has {combiner.book.orders}\n{trace}"
        assert not combiner.sums
    attached = {name: net.node(name).wire for name in CLIENTS}
    assert reducer.roster.clients() == sorted(attached), trace
    for name, wire in attached.items():
        assert wire is not None
        assert reducer.roster.attached_to(name, REDUCER) == wire.parent, f"{name}\n{trace}"
    assert Counter(name.split("#")[0] for name in net.truth.accepted_trainings.elements()) == Counter(
        name for name, state in states.items() if state is SlotState.COUNTED
    )


RoundMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
test_a_round_ends_with_everybody_counted_once = RoundMachine.TestCase


@pytest.mark.parametrize("volume", range(5))
def test_a_round_survives_long_stories(volume: int) -> None:
    """Longer runs than the machine above can shrink: each seed is one story, and tells it when it goes wrong."""
    for seed in range(60 * volume, 60 * (volume + 1)):
        net, random = tell(seed)
        try:
            calm(net, random)
            check_the_end(net)
        except AssertionError as error:
            raise AssertionError(f"story {seed}: {error}") from error


def tell(seed: int) -> tuple[RoundNetwork, Random]:
    """Play as many faults as the seed wants, with anything between nothing and a lot happening after each."""
    random = Random(seed)
    numbers = ((0, 0, 1), (0, 0, 1), (0, 1, 2), (0, 0, 1))
    failing, corrupting, awaiting, refusing = (set(random.sample(CLIENTS, random.choice(each))) for each in numbers)
    wanted = random.choice((None, None, None, 2, 3))
    net = RoundNetwork(
        CLIENTS,
        COMBINERS,
        wanted=wanted,
        failing=failing,
        corrupting=corrupting,
        awaiting=awaiting,
        refusing=refusing,
    )
    for name in (*COMBINERS, *CLIENTS):
        net.attach(name, random.choice(net.places_for(name)))
    faults = [
        "attach",
        "attach",
        "cut",
        "cut",
        "move",
        "move",
        "move",
        "kill",
        "kill the reducer",
        "time is over",
        "approve",
    ]
    for _ in range(random.choice((3, 10, 40))):
        for _ in range(random.choice((0, 1, 5, 20, 60))):
            net.step(random.randrange(1 << 16))
            net.invariants()
        name = random.choice((*COMBINERS, *CLIENTS))
        wire = net.node(name).wire
        fault = random.choice(faults)
        if fault in ("cut", "move") and wire is not None:
            net.cut(wire, random.randrange(5), random.randrange(5))
            if fault == "move":
                net.hang_up(wire)
        if fault in ("attach", "move") and net.node(name).wire is None:
            net.attach(name, random.choice(net.places_for(name)))
        if fault == "approve":
            net.approve(random.choice(sorted(net.truth.awaiting | net.truth.refusing) or CLIENTS))
        if fault == "kill":
            net.kill(name, random.randrange(5))
        if fault == "kill the reducer" and random.random() < 0.3:
            net.kill(REDUCER, random.randrange(5))
        if fault == "time is over" and random.random() < 0.1:
            net.time_is_over()
    return net, random
