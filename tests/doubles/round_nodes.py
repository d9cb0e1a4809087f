"""Clients and combiners of one round: the real domain objects, and in few lines what their shells do around them.

Nothing here waits: what takes time are steps of its own, and whoever drives them picks the next.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from runnel.client.domain.jobs import Abort, Forget, JobBook, Offer, Start
from runnel.client.domain.jobs import Decision as ClientDecision
from runnel.combiner.domain import Decision, Finish, Fold, Membership, OrderBook, SendDown, SendUp
from runnel.common.protocol import (
    REFUSING,
    WAITING,
    Assignment,
    AssignmentKey,
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
    Stage,
    Upward,
)
from runnel.common.protocol import Roster as RosterNews
from tests.doubles.round_truth import Payload, RoundTruth

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


class Node(ABC):
    """What client and combiner have in common: a way up, and news of it in the order in which they came."""

    kind: NodeKind

    def __init__(self, truth: RoundTruth, name: str) -> None:
        self.truth = truth
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
        return [(f"{self.name} takes {short(self.inbox[0])}", lambda: self.take(self.inbox.popleft()))]

    @abstractmethod
    def take(self, event: Downward | Attached | Gone) -> None:
        """Do with what came down what a node of this kind does."""


class ModelClient(Node):
    """A client: its memory dies with it, its outbox does not."""

    kind = NodeKind.CLIENT

    def __init__(self, truth: RoundTruth, name: str, outbox: dict[AssignmentKey, Outcome] | None = None) -> None:
        super().__init__(truth, name)
        kept = {} if outbox is None else outbox
        mine = {**WAITING, **REFUSING}
        self.outbox = {key: each for key, each in kept.items() if not (each.failure and each.failure.code in mine)}
        self.book = JobBook(held=self.outbox)
        self.running: list[AssignmentKey] = []
        self.offers: list[Offer] = []
        self.leaves = False
        self.sent_away = False

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
                self.truth.settled(self.name, event.settlement)
                self.apply(self.book.dropped(key))
            case Cancel(key=key) if key is not None:
                self.truth.called_off(self.name)
                self.apply(self.book.dropped(key))
            case Attached():
                self.leaves = self.book.untold
            case Gone():
                self.book.detached()

    def apply(self, decisions: Iterable[ClientDecision]) -> None:
        for decision in decisions:
            match decision:
                case Start(assignment):
                    self.truth.starts(self.name, self.outbox)
                    self.running.append(assignment.key)
                case Offer():
                    self.offers.append(decision)
                case Abort(key):
                    self.running.remove(key)
                case Forget(key):
                    del self.outbox[key]

    def finish(self, key: AssignmentKey) -> None:
        self.running.remove(key)
        if self.name in self.truth.awaiting | self.truth.refusing:
            self.sent_away = True
            waits = self.name in self.truth.awaiting
            failure = Failure(code="awaiting_approval" if waits else "policy_refused", message="not approved")
            self.outbox[key] = Outcome(client=self.name, failure=failure)
            self.apply(self.book.finished(key, failed=True))
            return
        failed = self.name in self.truth.failing
        self.truth.trainings[self.name] += 1
        self.outbox[key] = Outcome(
            client=self.name,
            failure=Failure(code="exit_status", message="3") if failed else None,
            extra_json=f"{self.name}#{self.truth.trainings[self.name]}",
        )
        self.apply(self.book.finished(key))

    def approve(self) -> None:
        """The site approves the work, or its policy changes; the client attaches anew if it had sent it away."""
        self.truth.awaiting.discard(self.name)
        self.truth.refusing.discard(self.name)
        self.leaves, self.sent_away = self.sent_away, False

    def offer(self, offer: Offer) -> None:
        held = self.outbox.get(offer.key)
        if held is None or not self.book.wanted(offer.key, offer.order_id):
            return
        payload = Counter() if held.failure else Counter([held.extra_json])
        self.send(Report(key=offer.key, order_id=offer.order_id, outcomes=(held,), weight=held.weight), payload)


class ModelCombiner(Node):
    """A combiner: everything that it knows dies with it."""

    kind = NodeKind.COMBINER

    def __init__(self, truth: RoundTruth, name: str) -> None:
        super().__init__(truth, name)
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
                for child, clients in routes(event.clients, self.membership.ways).items():
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
        bad = any(name.split("#")[0] in self.truth.corrupting for name in payload) and len(payload) == 1
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


def routes(clients: Iterable[str], ways: Callable[[str], tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for client in clients:
        for child in ways(client):
            found[child] = (*found.get(child, ()), client)
    return found


def short(message: object) -> str:
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
