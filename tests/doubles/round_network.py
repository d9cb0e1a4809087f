"""A whole network that plays one phase of one round over the real domain objects, with wires that a test controls.

Nothing here waits: :attr:`RoundNetwork.steps` are all that may happen next, and whoever drives it picks one. The faults
of real networks are methods.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial

from runnel.common.protocol import (
    Hello,
    Welcome,
)
from runnel.reducer.domain.collection import SlotState
from tests.doubles.round_nodes import Attached, Gone, ModelClient, ModelCombiner, Step, Wire, short
from tests.doubles.round_reducer import REDUCER, ModelReducer
from tests.doubles.round_truth import RoundTruth


class RoundNetwork:
    """The nodes, their wires, and what is true whatever they believe.

    Args:
        clients: their names; all are asked.
        combiners: their names, uppermost first: each may attach to those before it.
        wanted: close when so many are counted.
        failing: clients whose work fails.
        corrupting: clients whose update the first combiner refuses.
        awaiting: clients whose site has to approve the work first.
        refusing: clients whose site refuses the work until its policy changes.
    """

    def __init__(
        self,
        clients: Iterable[str],
        combiners: Iterable[str],
        *,
        wanted: int | None = None,
        failing: Iterable[str] = (),
        corrupting: Iterable[str] = (),
        awaiting: Iterable[str] = (),
        refusing: Iterable[str] = (),
    ) -> None:
        names = tuple(clients)
        self.truth = RoundTruth(
            names,
            failing=failing,
            corrupting=corrupting,
            awaiting=awaiting,
            refusing=refusing,
            closed_early=wanted is not None,
        )
        self.wires: list[Wire] = []
        self.clients = {name: ModelClient(self.truth, name) for name in names}
        self.combiners = {name: ModelCombiner(self.truth, name) for name in combiners}
        self.reducer = ModelReducer(self.truth, wanted)
        self.trace: list[str] = []

    def node(self, name: str) -> ModelClient | ModelCombiner:
        return self.clients[name] if name in self.clients else self.combiners[name]

    def parent(self, name: str) -> ModelReducer | ModelCombiner:
        return self.reducer if name == REDUCER else self.combiners[name]

    def places_for(self, name: str) -> list[str]:
        """Return where a node may attach."""
        names = list(self.combiners)
        return [REDUCER, *(names[: names.index(name)] if name in self.combiners else names)]

    # ---- what may happen next

    def steps(self) -> list[Step]:
        found = self.reducer.steps()
        for node in [*self.combiners.values(), *self.clients.values()]:
            found += node.steps()
        for wire in self.wires:
            if wire.up and self._may_go_up(wire):
                found.append((f"{wire.child} ↑ {wire.parent}: {short(wire.up[0][0])}", partial(self._up, wire)))
            if wire.down and wire.known_below:
                found.append((f"{wire.child} ↓ {wire.parent}: {short(wire.down[0])}", partial(self._down, wire)))
        return found

    def step(self, choice: int) -> bool:
        """Do one of the steps; False when there is none."""
        found = self.steps()
        if not found:
            return False
        name, act = found[choice % len(found)]
        self.trace.append(name)
        act()
        self._let_leave()
        return True

    def _let_leave(self) -> None:
        for client in self.clients.values():
            if client.leaves and client.wire is not None:
                self.cut(client.wire, len(client.wire.up), 0)
            client.leaves = False

    def approve(self, name: str) -> None:
        """Somebody at a client's site approves the work."""
        self.trace.append(f"{name}'s site approves")
        self.clients[name].approve()
        self._let_leave()

    def _may_go_up(self, wire: Wire) -> bool:
        parent = self.parent(wire.parent)
        if parent.busy_with(wire.child):
            return False
        # A node that comes again is taken in when its earlier stay is over.
        return parent.children.get(wire.child, wire) is wire

    def _up(self, wire: Wire) -> None:
        parent = self.parent(wire.parent)
        message, payload = wire.up.popleft()
        match message:
            case Hello():
                wire.known_above = True
                wire.down.append(Welcome(name=wire.parent, heartbeat_s=1.0))
                parent.attached(wire, message)
            case Gone():
                self._forget_above(wire)
                parent.detached(wire.child)
            case _:
                parent.received(wire.child, message, payload)

    def _down(self, wire: Wire) -> None:
        node = self.node(wire.child)
        message = wire.down.popleft()
        match message:
            case Welcome():
                wire.open = True
                node.inbox.append(Attached())
            case Gone():
                self._forget_below(wire)
                if wire.open:
                    node.inbox.append(message)
                node.wire, wire.open = None, False
            case _:
                node.inbox.append(message)

    def _forget_above(self, wire: Wire) -> None:
        wire.known_above = False
        wire.up.clear()
        self._sweep(wire)

    def _forget_below(self, wire: Wire) -> None:
        wire.known_below = False
        wire.down.clear()
        self._sweep(wire)

    def _sweep(self, wire: Wire) -> None:
        if not wire.known_below and not wire.up:
            self.wires.remove(wire)

    # ---- faults and moves

    def attach(self, name: str, place: str) -> None:
        """Begin a stay; the node must have none."""
        node = self.node(name)
        assert node.wire is None
        self.trace.append(f"{name} dials {place}")
        node.wire = Wire(child=name, parent=place)
        node.wire.up.append((node.hello(), Counter()))
        self.wires.append(node.wire)

    def cut(self, wire: Wire, keep_up: int, keep_down: int) -> None:
        """Break a connection; of what is under way the first messages still arrive, and each side finds out later."""
        if wire.dead:
            return
        self.trace.append(f"cut {wire.child} from {wire.parent}")
        wire.dead = True
        while len(wire.up) > keep_up:
            wire.up.pop()
        while len(wire.down) > keep_down:
            wire.down.pop()
        if wire.known_above or wire.up:
            wire.up.append((Gone(), Counter()))
        wire.down.append(Gone())

    def hang_up(self, wire: Wire) -> None:
        """Let the child know of the end of its (dead) wire at once, whatever still comes over it."""
        while wire.known_below and wire.down:
            self._down(wire)

    def kill(self, name: str, keep: int) -> None:
        """End a process at once and start it anew: what it had in memory is lost."""
        self.trace.append(f"kill {name}")
        for wire in list(self.wires):
            if name not in (wire.child, wire.parent):
                continue
            self.cut(wire, keep, keep)
            if wire.parent == name:
                self._forget_above(wire)
            else:
                self._forget_below(wire)
        if name == REDUCER:
            self.reducer = ModelReducer(self.truth, self.reducer.wanted)
        elif name in self.combiners:
            self.combiners[name] = ModelCombiner(self.truth, name)
        else:
            self.clients[name] = ModelClient(self.truth, name, self.clients[name].outbox)

    def time_is_over(self) -> None:
        """The round's time-out."""
        self.trace.append("time-out")
        self.truth.closed_early = self.reducer.late_deadline = self.reducer.changed = True

    def invariants(self) -> None:
        counted = {name for name, state in self.truth.ledger.items() if state is SlotState.COUNTED}
        per_client = Counter(name.split("#")[0] for name in self.truth.accepted_trainings.elements())
        assert per_client == Counter(counted)
        asked: Counter[str] = Counter()
        collection = self.reducer.collection
        for order in collection.orders.values():
            asked.update(c for c in order.clients if collection.slots[c].order_id == order.order_id)
        assert all(count == 1 for count in asked.values())
        for name, slot in collection.slots.items():
            assert (slot.state is SlotState.COUNTED) == (name in counted), (name, slot)
        self._tallies_are_right()

    def _tallies_are_right(self) -> None:
        """What is counted on the way, with each change of a slot, is what looking through all slots would find."""
        collection = self.reducer.collection
        states = Counter(slot.state for slot in collection.slots.values())
        counts = collection.counts
        told = [counts.counted, counts.noted, counts.failed, counts.awaiting, counts.late]
        kinds = (SlotState.COUNTED, SlotState.NOTED, SlotState.FAILED, SlotState.AWAITING, SlotState.LATE)
        found = [states[each] for each in kinds]
        found[2] += states[SlotState.REFUSED]
        assert (told, counts.asked, counts.refused) == (found, len(collection.slots), states[SlotState.REFUSED])
        assert counts.open == states[SlotState.OPEN] + states[SlotState.ASKED]
        waited_for = states[SlotState.AWAITING] and states[SlotState.COUNTED] < collection.needed
        assert collection.answered == (not collection.orders and not states[SlotState.OPEN] and not waited_for)
