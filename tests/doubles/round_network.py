"""A whole network that plays one phase of one round over the real domain objects, with wires that a test controls.

Nothing here waits: :attr:`RoundNetwork.steps` are all that may happen next, and whoever drives it picks one. What
the shells do around the domain (the reducer's engine and exchange, the combiner, the client's agent) is mirrored
in few lines, each part of it that takes time as steps of its own. The faults of real networks are methods.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from runnel.client.domain.jobs import Abort, Forget, JobBook, Offer, Start
from runnel.client.domain.jobs import Decision as ClientDecision
from runnel.combiner.domain import Decision, Finish, Fold, Membership, OrderBook, SendDown, SendUp
from runnel.common.errors import IllegalState
from runnel.common.protocol import (
    Assignment,
    AssignmentKey,
    BlobRef,
    Cancel,
    Close,
    Downward,
    Failure,
    Hello,
    Member,
    NodeKind,
    Outcome,
    Progress,
    Released,
    Report,
    Settled,
    Settlement,
    Stage,
    Upward,
    Welcome,
    Work,
)
from runnel.common.protocol import Roster as RosterNews
from runnel.reducer.domain.collection import Collection, SlotState
from runnel.reducer.domain.roster import Roster

KEY = AssignmentKey(session_id="ses-1", round=1, work=Work.TRAIN)
REDUCER = "reducer"
BLOB = BlobRef(sha256="0" * 64, size_bytes=1)

SETTLEMENTS = {SlotState.COUNTED: Settlement.COUNTED, SlotState.FAILED: Settlement.DISCARDED}

Payload = Counter[str]
"""Which trainings are in a payload: ``{"site-1#1": 1}`` is the first training of site-1, once."""

Step = tuple[str, Callable[[], None]]


@dataclass(frozen=True, slots=True)
class Gone:
    """The end of a wire, behind what still arrives over it."""


@dataclass(frozen=True, slots=True)
class Attached:
    """What the link tells its node when the welcome is there."""


@dataclass(eq=False, slots=True, kw_only=True)
class Wire:
    """One stay of ``child`` at ``parent``. ``open``: the child has its welcome; ``dead``: what is sent is lost."""

    child: str
    parent: str
    up: deque[tuple[Upward | Gone, Payload]] = field(default_factory=deque)
    down: deque[Downward | Gone] = field(default_factory=deque)
    open: bool = False
    dead: bool = False
    known_above: bool = False
    known_below: bool = True


class Node:
    """What client and combiner have in common: a way up, and news of it in the order in which they came."""

    kind: NodeKind

    def __init__(self, net: RoundNetwork, name: str) -> None:
        self.net = net
        self.name = name
        self.wire: Wire | None = None
        self.inbox: deque[Downward | Attached | Gone] = deque()

    def member(self) -> Member:
        return Member(name=self.name, node_id=f"id-{self.name}", kind=self.kind)

    def hello(self) -> Hello:
        return Hello(member=self.member())

    def send(self, message: Upward, payload: Payload | None = None) -> bool:
        wire = self.wire
        if wire is None or not wire.open:
            return False
        if not wire.dead:
            wire.up.append((message, payload or Counter()))
        return True

    def steps(self) -> list[Step]:
        if not self.inbox:
            return []
        return [(f"{self.name} takes {_short(self.inbox[0])}", lambda: self.take(self.inbox.popleft()))]

    def take(self, event: Downward | Attached | Gone) -> None:
        raise NotImplementedError


class ModelClient(Node):
    """A client: its memory dies with it, its outbox does not."""

    kind = NodeKind.CLIENT

    def __init__(self, net: RoundNetwork, name: str, outbox: dict[AssignmentKey, Outcome] | None = None) -> None:
        super().__init__(net, name)
        self.outbox = {} if outbox is None else outbox
        self.book = JobBook(held=self.outbox)
        self.running: list[AssignmentKey] = []
        self.offers: list[Offer] = []

    def hello(self) -> Hello:
        return Hello(member=dataclasses.replace(self.member(), holding=self.book.holding()))

    def steps(self) -> list[Step]:
        found = super().steps()
        found += [(f"{self.name} finishes", partial(self.finish, key)) for key in self.running]
        if self.offers:
            found.append((f"{self.name} offers", lambda: self.offer(self.offers.pop(0))))
        return found

    def take(self, event: Downward | Attached | Gone) -> None:
        match event:
            case Assignment():
                self.apply(self.book.assigned(event))
            case Settled(key=key):
                self.net.settled(self.name, event.settlement)
                self.apply(self.book.dropped(key))
            case Cancel(key=key) if key is not None:
                self.net.called_off(self.name)
                self.apply(self.book.dropped(key))
            case Gone():
                self.book.detached()

    def apply(self, decisions: Iterable[ClientDecision]) -> None:
        for decision in decisions:
            match decision:
                case Start(assignment):
                    self.net.starts(self.name, self.outbox)
                    self.running.append(assignment.key)
                case Offer():
                    self.offers.append(decision)
                case Abort(key):
                    self.running.remove(key)
                case Forget(key):
                    del self.outbox[key]

    def finish(self, key: AssignmentKey) -> None:
        self.running.remove(key)
        failed = self.name in self.net.failing
        self.net.trainings[self.name] += 1
        self.outbox[key] = Outcome(
            client=self.name,
            failure=Failure(code="exit_status", message="3") if failed else None,
            extra_json=f"{self.name}#{self.net.trainings[self.name]}",
        )
        self.apply(self.book.finished(key))

    def offer(self, offer: Offer) -> None:
        held = self.outbox.get(offer.key)
        if held is None or not self.book.wanted(offer.key, offer.order_id):
            return
        payload = Counter() if held.failure else Counter([held.extra_json])
        self.send(Report(key=offer.key, order_id=offer.order_id, outcomes=(held,), weight=held.weight), payload)


class ModelCombiner(Node):
    """A combiner: everything that it knows dies with it."""

    kind = NodeKind.COMBINER

    def __init__(self, net: RoundNetwork, name: str) -> None:
        super().__init__(net, name)
        self.membership = Membership(name)
        self.book = OrderBook(self.membership.route, self.membership.kind_of)
        self.children: dict[str, Wire] = {}
        self.sums: dict[str, Payload] = {}
        self.folding: list[tuple[Fold, Payload]] = []
        self.finishing: list[str] = []

    def hello(self) -> Hello:
        return Hello(member=self.member(), below=self.membership.announce())

    def steps(self) -> list[Step]:
        found = super().steps()
        found += [(f"{self.name} folds", partial(self.fold, each)) for each in self.folding]
        found += [(f"{self.name} reports", partial(self.finish, order_id)) for order_id in self.finishing]
        return found

    def take(self, event: Downward | Attached | Gone) -> None:
        match event:
            case Attached():
                self.tell(self.membership.unannounced())
            case Assignment():
                self.apply(self.book.assigned(event))
                for client in event.clients:
                    self.membership.takes_on(client, event.key)
            case Close():
                self.apply(self.book.close(event.order_id))
            case Cancel(order_id=order_id) if order_id:
                self.apply(self.book.cancelled(order_id, event.reason))
                self.sums.pop(order_id, None)
            case Cancel() | Settled():
                assert event.key is not None
                for child, clients in _routes(event.clients, self.membership.ways).items():
                    self.send_down(child, dataclasses.replace(event, clients=clients))
                for client in event.clients:
                    self.membership.let_go(client, event.key)
            case Gone():
                self.apply(self.book.parent_gone())
                self.sums.clear()

    def apply(self, decisions: Iterable[Decision], payload: Payload | None = None) -> None:
        for decision in decisions:
            match decision:
                case SendUp(message):
                    self.send(message)
                case SendDown(child, message):
                    self.send_down(child, message)
                case Fold():
                    self.folding.append((decision, payload or Counter()))
                case Finish(order_id):
                    self.finishing.append(order_id)

    def tell(self, news: RosterNews) -> None:
        if news.joined or news.left:
            self.send(news)

    def send_down(self, child: str, message: Downward) -> None:
        if (wire := self.children.get(child)) is not None and not wire.dead:
            wire.down.append(message)

    def fold(self, waiting: tuple[Fold, Payload]) -> None:
        self.folding.remove(waiting)
        decision, payload = waiting
        if decision.order_id not in self.book.orders:
            return
        bad = any(name.split("#")[0] in self.net.corrupting for name in payload) and len(payload) == 1
        if not bad:
            self.sums.setdefault(decision.order_id, Counter()).update(payload)
        failure = Failure(code="bad_model", message="not finite") if bad else None
        self.apply(self.book.folded(decision.order_id, decision.report, failure))

    def finish(self, order_id: str) -> None:
        self.finishing.remove(order_id)
        order = self.book.orders.get(order_id)
        if order is None:
            return
        outcomes = tuple(order.outcomes.values())
        self.send(
            Report(key=order.assignment.key, order_id=order_id, outcomes=outcomes, weight=order.weight),
            self.sums.pop(order_id, Counter()),
        )
        self.book.finished(order_id)

    # ---- as the parent of others

    def attached(self, wire: Wire, hello: Hello) -> None:
        self.children[wire.child] = wire
        self.tell(self.membership.attach(hello.member, hello.below))

    def detached(self, child: str) -> None:
        del self.children[child]
        self.tell(self.membership.detach(child))
        self.apply(self.book.child_gone(child))

    def received(self, child: str, message: Upward, payload: Payload) -> None:
        match message:
            case Progress():
                self.apply(self.book.progressed(child, message))
            case Report():
                self.apply(self.book.reported(child, message), payload)
            case Released():
                self.apply(self.book.released(child, message))
            case RosterNews():
                self.tell(self.membership.leave(child, message.left))
                self.tell(self.membership.join(child, message.joined))

    def busy_with(self, child: str) -> bool:
        return False


class ModelReducer:
    """The reducer: its ledger lives, the rest dies with it. A report is durable some steps after it came."""

    def __init__(
        self,
        net: RoundNetwork,
        asked: Iterable[str],
        wanted: int | None,
        ledger: dict[str, SlotState] | None = None,
        *,
        over: bool = False,
    ) -> None:
        self.net = net
        self.wanted = wanted
        self.roster = Roster()
        self.children: dict[str, Wire] = {}
        self.collection = Collection(key=KEY, wanted=wanted, new_order_id=net.new_order_id)
        self.ledger = dict.fromkeys(asked, SlotState.OPEN) if ledger is None else ledger
        self.collection.restore(self.ledger)
        self.entering: dict[str, tuple[Report, Payload]] = {}
        self.late_deadline = False
        self.ending = self.over = over
        self.changed = True

    def steps(self) -> list[Step]:
        found: list[Step] = [
            (f"{REDUCER} makes the report of {child} durable", partial(self.enter, child)) for child in self.entering
        ]
        if self.changed and not self.ending:
            found.append((f"{REDUCER} collects", self.collect))
        if self.ending and not self.over:
            found.append((f"{REDUCER} ends the round", self.end))
        return found

    def collect(self) -> None:
        """What the loop of the exchange does each time it is woken."""
        self.changed = False
        collection = self.collection
        closed = collection.enough or self.late_deadline
        if closed:
            self.net.closed = True
            for order in collection.close():
                member = self.roster.find(order.child)
                if member is not None and member.kind is NodeKind.CLIENT:
                    collection.late(order)
                else:
                    self.send(order.child, Close(order_id=order.order_id))
        else:
            for order in collection.place(self.roster.route):
                self.send(
                    order.child,
                    Assignment(
                        order_id=order.order_id,
                        key=KEY,
                        clients=tuple(sorted(order.clients)),
                        package=BLOB,
                        model=BLOB,
                    ),
                )
        if collection.answered or (closed and not collection.orders):
            collection.fence()
            self.ending = self.net.closed = True

    def end(self) -> None:
        """The transition is durable; now those below are told."""
        self.over = True
        left = self.collection.clients_in(*(set(SlotState) - {SlotState.COUNTED}))
        for child, clients in _routes(left, self.roster.ways).items():
            self.send(child, Cancel(key=KEY, clients=clients))

    def send(self, child: str, message: Downward) -> None:
        if (wire := self.children.get(child)) is not None and not wire.dead:
            wire.down.append(message)

    def attached(self, wire: Wire, hello: Hello) -> None:
        self.children[wire.child] = wire
        self.arrived(self.roster.attach(hello.member, hello.below))

    def detached(self, child: str) -> None:
        del self.children[child]
        self.roster.detach(child)
        self.collection.child_gone(child)
        self.changed = True

    def received(self, child: str, message: Upward, payload: Payload) -> None:
        self.changed = True
        match message:
            case RosterNews():
                self.roster.leave(child, message.left)
                self.arrived(self.roster.join(child, message.joined))
            case Progress():
                self.collection.progressed(message.order_id, message.client, message.stage)
            case Released():
                order = self.collection.orders.get(message.order_id)
                if order is not None and order.child == child:
                    self.collection.released(message.order_id, message.clients)
            case Report():
                try:
                    self.collection.require_order(message.order_id, child)
                except IllegalState:
                    return
                self.entering[child] = (message, payload)

    def busy_with(self, child: str) -> bool:
        return child in self.entering

    def enter(self, child: str) -> None:
        report, payload = self.entering.pop(child)
        self.changed = True
        counted = [o.client for o in report.outcomes if o.failure is None]
        failed = [o.client for o in report.outcomes if o.failure is not None]
        try:
            self.collection.reported(report.order_id, child, counted, failed)
        except IllegalState:
            return
        self.net.accepted(report, payload, self.ledger)
        for client in counted:
            self.ledger[client] = SlotState.COUNTED
        for client in failed:
            self.ledger[client] = SlotState.FAILED
        self.settle(counted, Settlement.COUNTED)
        self.settle(failed, Settlement.DISCARDED)

    def settle(self, clients: Iterable[str], settlement: Settlement) -> None:
        for child, names in _routes(clients, self.roster.ways).items():
            self.send(child, Settled(key=KEY, clients=names, settlement=settlement))

    def arrived(self, members: list[Member]) -> None:
        self.changed = True
        for member in members:
            for _ in member.holding:
                verdict = self.ledger[member.name] if self.over else self.collection.verdict(member.name)
                if verdict is not None:
                    self.settle([member.name], SETTLEMENTS.get(verdict, Settlement.LATE))


class RoundNetwork:
    """The nodes, their wires, and what is true whatever they believe.

    Args:
        clients: their names; all are asked.
        combiners: their names, uppermost first: each may attach to those before it.
        wanted: close when so many are counted.
        failing: clients whose work fails.
        corrupting: clients whose update the first combiner refuses.
    """

    def __init__(
        self,
        clients: Iterable[str],
        combiners: Iterable[str],
        *,
        wanted: int | None = None,
        failing: Iterable[str] = (),
        corrupting: Iterable[str] = (),
    ) -> None:
        self._orders = 0
        self.failing = frozenset(failing)
        self.corrupting = frozenset(corrupting)
        self.trainings: Counter[str] = Counter()
        self.accepted_trainings: Payload = Counter()
        self.closed = False
        self.closed_early = wanted is not None
        self.wires: list[Wire] = []
        self.clients = {name: ModelClient(self, name) for name in clients}
        self.combiners = {name: ModelCombiner(self, name) for name in combiners}
        self.reducer = ModelReducer(self, self.clients, wanted)
        self.trace: list[str] = []

    def new_order_id(self) -> str:
        self._orders += 1
        return f"ord-{self._orders}"

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
                found.append((f"{wire.child} ↑ {wire.parent}: {_short(wire.up[0][0])}", partial(self._up, wire)))
            if wire.down and wire.known_below:
                found.append((f"{wire.child} ↓ {wire.parent}: {_short(wire.down[0])}", partial(self._down, wire)))
        return found

    def step(self, choice: int) -> bool:
        """Do one of the steps; False when there is none."""
        found = self.steps()
        if not found:
            return False
        name, act = found[choice % len(found)]
        self.trace.append(name)
        act()
        return True

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
            before = self.reducer
            self.reducer = ModelReducer(self, (), before.wanted, before.ledger, over=before.over)
        elif name in self.combiners:
            self.combiners[name] = ModelCombiner(self, name)
        else:
            self.clients[name] = ModelClient(self, name, self.clients[name].outbox)

    def time_is_over(self) -> None:
        """The round's time-out."""
        self.trace.append("time-out")
        self.closed_early = self.reducer.late_deadline = self.reducer.changed = True

    # ---- what must hold

    def accepted(self, report: Report, payload: Payload, ledger: dict[str, SlotState]) -> None:
        """A report became durable: nobody in it was counted before, and its payload is what it says."""
        assert not self.reducer.over, f"a report is taken after the round: {report}"
        counted = [o for o in report.outcomes if o.failure is None]
        for outcome in report.outcomes:
            assert ledger[outcome.client] is not SlotState.COUNTED, f"{outcome.client} counts twice"
        assert payload == Counter(o.extra_json for o in counted), (payload, report)
        self.accepted_trainings.update(payload)

    def settled(self, client: str, settlement: Settlement) -> None:
        """A client is told what became of its report: that it was counted is true."""
        state = self.reducer.ledger[client]
        if settlement is Settlement.COUNTED:
            assert state is SlotState.COUNTED, f"{client} is told that it was counted, and is {state}"
        elif settlement is Settlement.DISCARDED:
            assert state is SlotState.FAILED
        else:
            assert self.closed, f"{client} is told that it is late, and the round is open"

    def called_off(self, client: str) -> None:
        """Work is called off only when the round is over; what was counted is settled instead."""
        assert self.reducer.over
        assert self.reducer.ledger[client] is not SlotState.COUNTED

    def starts(self, client: str, outbox: dict[AssignmentKey, Outcome]) -> None:
        """A client begins to train: not while it has what it trained before, nor after that was counted."""
        assert not outbox, f"{client} trains again what it holds"

    def invariants(self) -> None:
        counted = {name for name, state in self.reducer.ledger.items() if state is SlotState.COUNTED}
        per_client = Counter(name.split("#")[0] for name in self.accepted_trainings.elements())
        assert per_client == Counter(counted)
        asked: Counter[str] = Counter()
        collection = self.reducer.collection
        for order in collection.orders.values():
            asked.update(c for c in order.clients if collection.slots[c].order_id == order.order_id)
        assert all(count == 1 for count in asked.values())
        for name, slot in collection.slots.items():
            assert (slot.state is SlotState.COUNTED) == (name in counted), (name, slot)


def _routes(clients: Iterable[str], ways: Callable[[str], tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for client in clients:
        for child in ways(client):
            found[child] = (*found.get(child, ()), client)
    return found


def _short(message: object) -> str:
    name = type(message).__name__
    match message:
        case Assignment() | Report() | Released() | Close():
            return f"{name}({message.order_id})"
        case Progress(stage=Stage() as stage):
            return f"{name}({message.client} {stage.value})"
        case RosterNews():
            return f"{name}(+{[m.name for m in message.joined]} -{list(message.left)})"
        case _:
            return name
