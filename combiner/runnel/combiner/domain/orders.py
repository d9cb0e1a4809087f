"""The combiner's orders: fan out, count each answer once, answer with one report.

Everything here takes an event and returns decisions; nothing waits, stores or sends. The state is disposable on
purpose: clients keep their reports until the reducer has settled them, so a combiner that was killed, or was away from
its parent, simply forgets its orders; the parent fences them and asks the same clients again under new ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from runnel.common.protocol import (
    Assignment,
    Cancel,
    Close,
    Downward,
    Failure,
    NodeKind,
    Outcome,
    Progress,
    Released,
    Report,
    Stage,
    Upward,
    Work,
)


class SlotState(Enum):
    """Where one client's answer is."""

    WAITING = "waiting"
    FOLDING = "folding"
    COUNTED = "counted"
    FAILED = "failed"
    RELEASED = "released"


_UNDER_WAY = frozenset({SlotState.WAITING, SlotState.FOLDING})


@dataclass(frozen=True, slots=True)
class SendUp:
    """Say something to the node above."""

    message: Upward


@dataclass(frozen=True, slots=True)
class SendDown:
    """Say something to a directly attached node."""

    child: str
    message: Downward


@dataclass(frozen=True, slots=True)
class Fold:
    """Check the payload of ``report`` and fold it; then tell :meth:`OrderBook.folded`."""

    order_id: str
    child: str
    report: Report


@dataclass(frozen=True, slots=True)
class Finish:
    """Push what was folded and send the report of this order."""

    order_id: str


Decision = SendUp | SendDown | Fold | Finish


@dataclass(slots=True, kw_only=True)
class Order:
    """An order from above.

    ``child_of``: through whom each client was asked; ``clients_of``: the other way round; ``under_way``: whose answer
    is waited for or being folded. The last two only spare looking through all slots with each answer.
    """

    assignment: Assignment
    slots: dict[str, SlotState] = field(default_factory=dict)
    child_of: dict[str, str] = field(default_factory=dict)
    clients_of: dict[str, list[str]] = field(default_factory=dict)
    under_way: dict[str, None] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    closing: bool = False
    finished: bool = False

    def under(self, child: str, *states: SlotState) -> list[str]:
        """Return the clients asked through ``child`` whose slot is in one of ``states``."""
        return [client for client in self.clients_of.get(child, ()) if self.slots[client] in states]

    def turn(self, client: str, state: SlotState) -> None:
        """Put the slot of a client into another state."""
        self.slots[client] = state
        if state in _UNDER_WAY:
            self.under_way[client] = None
        else:
            self.under_way.pop(client, None)

    @property
    def weight(self) -> float:
        """Sum of the weights of all counted updates."""
        return sum(o.weight for o in self.outcomes.values() if o.failure is None)


class OrderBook:
    """All living orders of a combiner.

    Args:
        route: returns the directly attached node that leads to a client, or None.
        kind_of: returns the kind of a directly attached node.
    """

    def __init__(self, route: Callable[[str], str | None], kind_of: Callable[[str], NodeKind | None]) -> None:
        self._route = route
        self._kind_of = kind_of
        self.orders: dict[str, Order] = {}

    # ---- from above

    def assigned(self, assignment: Assignment) -> list[Decision]:
        """Fan an order out; clients that are not attached (any more) are released at once."""
        order = Order(assignment=assignment)
        missing = []
        for client in assignment.clients:
            child = self._route(client)
            if child is None:
                missing.append(client)
                order.turn(client, SlotState.RELEASED)
            else:
                order.turn(client, SlotState.WAITING)
                order.child_of[client] = child
                order.clients_of.setdefault(child, []).append(client)
        self.orders[assignment.order_id] = order
        decisions: list[Decision] = [
            SendDown(child, dataclasses.replace(assignment, clients=tuple(clients)))
            for child, clients in order.clients_of.items()
        ]
        if missing:
            decisions.append(SendUp(Released(order_id=assignment.order_id, clients=tuple(missing))))
        return decisions + self._finish_if_done(order)

    def close(self, order_id: str) -> list[Decision]:
        """Take no further answers; combiners below are asked for what they have, clients are not waited for."""
        order = self.orders.get(order_id)
        if order is None or order.closing:
            return []
        order.closing = True
        combiners = {
            child
            for c, child in order.child_of.items()
            if order.slots[c] is SlotState.WAITING and self._is_combiner(child)
        }
        decisions: list[Decision] = [SendDown(child, Close(order_id=order_id)) for child in sorted(combiners)]
        return decisions + self._finish_if_done(order)

    def cancelled(self, order_id: str, reason: str) -> list[Decision]:
        """Drop an order without an answer."""
        order = self.orders.pop(order_id, None)
        if order is None:
            return []
        combiners = sorted({child for child in order.child_of.values() if self._is_combiner(child)})
        return [SendDown(child, Cancel(order_id=order_id, reason=reason)) for child in combiners]

    def parent_gone(self) -> list[Decision]:
        """Drop all orders: the node above has fenced them."""
        return [d for order_id in list(self.orders) for d in self.cancelled(order_id, "the node above was away")]

    # ---- from below

    def child_gone(self, child: str) -> list[Decision]:
        """Release what a directly attached node had not delivered."""
        decisions: list[Decision] = []
        for order in self.orders.values():
            decisions += self._release(order, order.under(child, SlotState.WAITING))
        return decisions

    def released(self, child: str, released: Released) -> list[Decision]:
        """A combiner below gives up clients."""
        order = self.orders.get(released.order_id)
        if order is None:
            return []
        waiting = set(order.under(child, SlotState.WAITING))
        return self._release(order, [c for c in released.clients if c in waiting])

    def progressed(self, child: str, progress: Progress) -> list[Decision]:
        """Pass on how far a client is; what counts is said by whoever folds it."""
        order = self.orders.get(progress.order_id)
        if order is None or order.child_of.get(progress.client) != child:
            return []
        if progress.stage in {Stage.COUNTED, Stage.FAILED} and not self._is_combiner(child):
            return []
        return [SendUp(progress)]

    def reported(self, child: str, report: Report) -> list[Decision]:
        """Take an answer, unless it is not wanted (any more): then its payload is to be dropped."""
        order = self.orders.get(report.order_id)
        if order is None or order.finished or report.key != order.assignment.key:
            return []
        waiting = set(order.under(child, SlotState.WAITING))
        if len({o.client for o in report.outcomes}) < len(report.outcomes):
            return []
        # A combiner that was told to close before anybody answered reports nobody.
        if not waiting or not {o.client for o in report.outcomes} <= waiting:
            return []
        if order.closing and not self._is_combiner(child):
            return []
        for outcome in report.outcomes:
            order.turn(outcome.client, SlotState.FOLDING)
        if self._is_combiner(child):
            # What a combiner below left out of its one report was late there.
            for client in waiting - {o.client for o in report.outcomes}:
                order.turn(client, SlotState.RELEASED)
        if report.key.work is Work.TRAIN and any(o.failure is None for o in report.outcomes):
            return [Fold(report.order_id, child, report)]
        return self.folded(report.order_id, report, None)

    def folded(self, order_id: str, report: Report, failure: Failure | None) -> list[Decision]:
        """Note the outcomes of a report whose payload was folded, or could not be because of ``failure``."""
        order = self.orders.get(order_id)
        if order is None:
            return []
        decisions: list[Decision] = []
        for outcome in report.outcomes:
            noted = outcome if failure is None or outcome.failure else dataclasses.replace(outcome, failure=failure)
            order.outcomes[outcome.client] = noted
            order.turn(outcome.client, SlotState.COUNTED if noted.failure is None else SlotState.FAILED)
            decisions.append(
                SendUp(
                    Progress(
                        key=report.key,
                        order_id=order_id,
                        client=outcome.client,
                        stage=Stage.COUNTED if noted.failure is None else Stage.FAILED,
                        detail="" if noted.failure is None else noted.failure.code,
                    )
                )
            )
        return decisions + self._finish_if_done(order)

    def not_folded(self, order_id: str, report: Report) -> list[Decision]:
        """Release those whose payload could not be folded here: it is as good as it was, and they still have it."""
        order = self.orders.get(order_id)
        if order is None:
            return []
        failed = tuple(outcome for outcome in report.outcomes if outcome.failure is not None)
        decisions = self.folded(order_id, dataclasses.replace(report, outcomes=failed), None)
        return decisions + self._release(order, [o.client for o in report.outcomes if o.failure is None])

    def unfolded(self, order_id: str, clients: Iterable[str]) -> list[Decision]:
        """Release clients whose updates were counted in a sum that is lost: they still have them."""
        order = self.orders.get(order_id)
        if order is None:
            return []
        lost = [client for client in clients if order.slots.get(client) is SlotState.COUNTED]
        for client in lost:
            del order.outcomes[client]
        return self._release(order, lost)

    def finished(self, order_id: str) -> Sequence[Outcome]:
        """Take the order out when its report is sent; return its outcomes."""
        order = self.orders.pop(order_id)
        return list(order.outcomes.values())

    # ---- inside

    def _release(self, order: Order, clients: Iterable[str]) -> list[Decision]:
        given_up = tuple(clients)
        if not given_up:
            return []
        for client in given_up:
            order.turn(client, SlotState.RELEASED)
        message = Released(order_id=order.assignment.order_id, clients=given_up)
        return [SendUp(message), *self._finish_if_done(order)]

    def _finish_if_done(self, order: Order) -> list[Decision]:
        for client in order.under_way:
            waiting = order.slots[client] is SlotState.WAITING
            if not (order.closing and waiting and not self._is_combiner(order.child_of[client])):
                return []
            # else it is too late
        if order.finished:
            return []
        order.finished = True
        return [Finish(order.assignment.order_id)]

    def _is_combiner(self, child: str) -> bool:
        return self._kind_of(child) is NodeKind.COMBINER
