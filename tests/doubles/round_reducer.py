"""The reducer of one round: its real roster and collection, and in few lines what engine and exchange do."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from runnel.common.errors import IllegalState
from runnel.common.protocol import (
    REFUSING,
    WAITING,
    Assignment,
    Cancel,
    Close,
    Downward,
    Hello,
    Member,
    NodeKind,
    Progress,
    Released,
    Report,
    Settled,
    Settlement,
    Upward,
)
from runnel.common.protocol import Roster as RosterNews
from runnel.reducer.domain.collection import Collection, SlotState
from runnel.reducer.domain.roster import Roster
from tests.doubles.round_nodes import Step, Wire, routes
from tests.doubles.round_truth import BLOB, KEY, Payload, RoundTruth

REDUCER = "reducer"

SETTLEMENTS = {
    SlotState.COUNTED: Settlement.COUNTED,
    SlotState.FAILED: Settlement.DISCARDED,
    SlotState.AWAITING: Settlement.DISCARDED,
    SlotState.REFUSED: Settlement.DISCARDED,
}


class ModelReducer:
    """The reducer: its ledger lives, the rest dies with it. A report is durable some steps after it came."""

    def __init__(self, truth: RoundTruth, wanted: int | None) -> None:
        self.truth = truth
        self.wanted = wanted
        self.roster = Roster()
        self.children: dict[str, Wire] = {}
        # As many are needed as there are, so that who waits for its site is waited for.
        needed = len(truth.ledger) if wanted is None else wanted
        self.collection = Collection(key=KEY, wanted=wanted, new_order_id=truth.new_order_id, needed=needed)
        self.collection.restore(truth.ledger)
        self.entering: dict[str, tuple[Report, Payload]] = {}
        self.late_deadline = False
        self.ending = truth.over
        self.changed = True

    def steps(self) -> list[Step]:
        found: list[Step] = [
            (f"{REDUCER} makes the report of {child} durable", partial(self.enter, child)) for child in self.entering
        ]
        if self.changed and not self.ending:
            found.append((f"{REDUCER} collects", self.collect))
        if self.ending and not self.truth.over:
            found.append((f"{REDUCER} ends the round", self.end))
        return found

    def collect(self) -> None:
        """What the loop of the exchange does each time it is woken."""
        self.changed = False
        collection = self.collection
        closed = collection.enough or self.late_deadline
        if closed:
            self.truth.closed = True
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
            self.ending = self.truth.closed = True

    def end(self) -> None:
        """The transition is durable; now those below are told."""
        self.truth.over = True
        left = self.collection.clients_in(*(set(SlotState) - {SlotState.COUNTED}))
        for child, clients in routes(left, self.roster.ways).items():
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
        unable = {o.client: o.failure for o in report.outcomes if o.failure is not None}
        awaiting = [client for client, failure in unable.items() if failure.code in WAITING]
        refused = [client for client, failure in unable.items() if failure.code in REFUSING]
        failed = [client for client in unable if client not in awaiting and client not in refused]
        try:
            self.collection.reported(report.order_id, child, counted, failed, awaiting, refused)
        except IllegalState:
            return
        self.truth.accepted(report, payload)
        for client in counted:
            self.truth.ledger[client] = SlotState.COUNTED
        for client in failed:
            self.truth.ledger[client] = SlotState.FAILED
        for client in awaiting:
            self.truth.ledger[client] = SlotState.AWAITING
        for client in refused:
            self.truth.ledger[client] = SlotState.REFUSED
        self.settle(counted, Settlement.COUNTED)
        self.settle(unable, Settlement.DISCARDED)

    def settle(self, clients: Iterable[str], settlement: Settlement) -> None:
        for child, names in routes(clients, self.roster.ways).items():
            self.send(child, Settled(key=KEY, clients=names, settlement=settlement))

    def arrived(self, members: list[Member]) -> None:
        self.changed = True
        for member in members:
            for _ in member.holding:
                verdict = self.truth.ledger[member.name] if self.truth.over else self.collection.verdict(member.name)
                if verdict is not None:
                    self.settle([member.name], SETTLEMENTS.get(verdict, Settlement.LATE))
        for member in members:
            self.collection.arrived(member.name)
