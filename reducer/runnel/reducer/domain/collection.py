"""One phase of one round: asking clients for a piece of work and counting each answer exactly once.

A *slot* is one client's piece of work. An *order* is what one directly attached node (a combiner, or a client) was
asked: some slots, answered by one report. The rules that make every answer count once:

* a slot belongs to at most one living order at any time;
* an order dies when its node detaches before it reported, and its slots become open again; a report of a dead order is
  refused;
* a node releases a slot of a living order only while nothing of that client was folded under it;
* a slot that a report has counted is never asked again.

Clients keep their finished work until it is settled, so that asking again under another order costs a transfer, never a
second training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from runnel.common.errors import IllegalState
from runnel.common.protocol import AssignmentKey, Stage


class SlotState(Enum):
    """Where one client's work is, as the reducer knows it."""

    OPEN = "open"  # to be asked as soon as the client is attached somewhere
    ASKED = "asked"  # under a living order
    NOTED = "noted"  # the node below says it is counted, but its report is not here yet
    COUNTED = "counted"  # part of a durable report
    FAILED = "failed"  # the client answered with a failure
    AWAITING = "awaiting"  # the client's site does not take the work yet; the client attaches anew when it does
    REFUSED = "refused"  # the client's site refuses the work: a failure, but trying again would change nothing
    LATE = "late"  # the order was reported without it


@dataclass(slots=True, kw_only=True)
class Slot:
    """One client's work; ``order_id`` of the living order it is under, ``told`` what was heard of it last.

    ``returned``: it attached anew under that order, so that what it has answered before may not hold any more.
    """

    client: str
    state: SlotState = SlotState.OPEN
    order_id: str | None = None
    told: str = ""
    returned: bool = False


@dataclass(slots=True, kw_only=True)
class Order:
    """What ``child`` was asked."""

    order_id: str
    child: str
    clients: frozenset[str]
    closing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many slots are in which state; those ``refused`` are among the ``failed``."""

    asked: int
    counted: int
    noted: int
    failed: int
    late: int
    open: int
    awaiting: int = 0
    refused: int = 0


@dataclass(slots=True, kw_only=True)
class Collection:
    """The slots and orders of one phase.

    Args:
        key: names the work.
        wanted: close when this many answers are in; None: when all have answered.
        new_order_id: makes identities of orders.
        singly: make an order for each client, so that none waits for another's answer.
        needed: while fewer are counted, those whose site does not take the work yet are waited for.
    """

    key: AssignmentKey
    wanted: int | None
    new_order_id: Callable[[], str]
    singly: bool = False
    needed: int = 0
    slots: dict[str, Slot] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    # How many slots are in each state: asked with each answer, and there are as many answers as slots.
    _tally: dict[SlotState, int] = field(init=False, default_factory=lambda: dict.fromkeys(SlotState, 0))

    # ---- events

    def invite(self, clients: Iterable[str]) -> None:
        """Open slots for clients that have none yet."""
        for client in clients:
            if client not in self.slots:
                self._add(Slot(client=client))

    def restore(self, states: Mapping[str, SlotState]) -> None:
        """Take over slots as they were stored; whatever was under an order is open again."""
        lasting = {SlotState.COUNTED, SlotState.FAILED}
        for client, state in states.items():
            self._add(Slot(client=client, state=state if state in lasting else SlotState.OPEN))

    def place(self, route: Callable[[str], str | None]) -> list[Order]:
        """Make orders for all open slots whose client is attached, one for each directly attached node."""
        if not self._tally[SlotState.OPEN]:
            return []
        together: dict[tuple[str, str], list[Slot]] = {}
        for slot in self.slots.values():
            if slot.state is SlotState.OPEN and (child := route(slot.client)) is not None:
                together.setdefault((child, slot.client if self.singly else ""), []).append(slot)
        made = []
        for (child, _), slots in together.items():
            order = Order(order_id=self.new_order_id(), child=child, clients=frozenset(s.client for s in slots))
            self.orders[order.order_id] = order
            for slot in slots:
                self._turn(slot, SlotState.ASKED, order.order_id)
                slot.returned = False
            made.append(order)
        return made

    def progressed(self, order_id: str, client: str, stage: Stage) -> None:
        """Take note of what a node says about a slot of its order; of no effect for a dead order."""
        slot = self.slots.get(client)
        if slot is not None and slot.order_id == order_id and slot.state is SlotState.ASKED:
            if stage is Stage.COUNTED:
                self._turn(slot, SlotState.NOTED, order_id)
            elif stage is Stage.FAILED:
                self._turn(slot, SlotState.FAILED, order_id)

    def heard(self, client: str, detail: str) -> None:
        """Remember what was said about a client's work, for people who ask why its answer does not come."""
        if detail and (slot := self.slots.get(client)) is not None:
            slot.told = detail

    def unanswered(self) -> dict[str, str]:
        """Return what was heard last of those whose answer is missing; nothing of those of whom nothing was."""
        answered = {SlotState.COUNTED, SlotState.FAILED, SlotState.AWAITING, SlotState.REFUSED}
        return {slot.client: slot.told for slot in self.slots.values() if slot.told and slot.state not in answered}

    def released(self, order_id: str, clients: Iterable[str]) -> None:
        """Open the slots that a node gives up."""
        for client in clients:
            slot = self.slots.get(client)
            if slot is not None and slot.order_id == order_id and order_id in self.orders:
                self._turn(slot, SlotState.OPEN, None)

    def arrived(self, client: str) -> None:
        """A client attached anew: if its site did not take the work, it does now, or answers otherwise."""
        slot = self.slots.get(client)
        if slot is None:
            return
        if slot.order_id in self.orders:
            slot.returned = True  # the answer that it gave before may be in a report to come
        elif slot.state in {SlotState.AWAITING, SlotState.REFUSED}:
            self._turn(slot, SlotState.OPEN, None)

    def child_gone(self, child: str) -> list[Order]:
        """Kill the orders of a node that detached; what it had not reported is open again."""
        dead = [order for order in self.orders.values() if order.child == child]
        for order in dead:
            del self.orders[order.order_id]
            for slot in self._slots_of(order):
                self._turn(slot, SlotState.OPEN, None)
        return dead

    def require_order(self, order_id: str, child: str) -> Order:
        """Return the living order, or raise :class:`IllegalState` because it is dead, answered or another's."""
        order = self.orders.get(order_id)
        if order is None or order.child != child:
            raise IllegalState(
                f"Order {order_id} of {self.key} is not open at {child}: it was answered, or given up while {child} was"
                " away.",
                order_id=order_id,
                child=child,
            )
        return order

    def reported(
        self,
        order_id: str,
        child: str,
        counted: Sequence[str],
        failed: Sequence[str],
        awaiting: Sequence[str] = (),
        refused: Sequence[str] = (),
    ) -> list[str]:
        """Take a report that is durable now; return its clients that had not answered (they are late).

        ``failed``, ``awaiting`` and ``refused`` exclude each other.

        Raises:
            IllegalState: the order is dead, or the report names a client that is not of this order (any more).
        """
        order = self.require_order(order_id, child)
        named = [*counted, *failed, *awaiting, *refused]
        strangers = set(named) - {slot.client for slot in self._slots_of(order)}
        doubled = len(set(named)) < len(named)
        if strangers or doubled:
            raise IllegalState(
                f"The report of {child} for order {order_id} names "
                + (f"{sorted(strangers)[:5]}, who were not asked under it." if strangers else "a client twice."),
                order_id=order_id,
                child=child,
            )
        del self.orders[order_id]
        told = dict.fromkeys(failed, SlotState.FAILED) | dict.fromkeys(counted, SlotState.COUNTED)
        aside = dict.fromkeys(awaiting, SlotState.AWAITING) | dict.fromkeys(refused, SlotState.REFUSED)
        told |= {client: SlotState.OPEN if self.slots[client].returned else state for client, state in aside.items()}
        late = []
        for slot in self._slots_of(order):
            if slot.client in told:
                self._turn(slot, told[slot.client], order_id)
            else:
                self._turn(slot, SlotState.LATE, order_id)
                late.append(slot.client)
        return late

    def refused(self, order: Order) -> None:
        """Count the clients of an order that was taken out as failed, because its report can't be used."""
        for slot in self._slots_of(order):
            self._turn(slot, SlotState.FAILED, None)

    def late(self, order: Order) -> None:
        """Take a living order out, because nobody waits for its answer any more."""
        del self.orders[order.order_id]
        for slot in self._slots_of(order):
            self._turn(slot, SlotState.LATE, order.order_id)

    def unreported(self, order_id: str) -> None:
        """Take back what :meth:`reported` did, because it could not be made durable; the slots are open again."""
        self.orders.pop(order_id, None)
        for slot in self.slots.values():
            if slot.order_id == order_id:
                self._turn(slot, SlotState.OPEN, None)

    def retained(self, order: Order) -> None:
        """Take back what :meth:`reported` did, and leave the clients under their order: they are not asked yet."""
        self.orders[order.order_id] = order
        for slot in self._slots_of(order):
            self._turn(slot, SlotState.ASKED, order.order_id)

    def fence(self) -> list[Order]:
        """Kill all orders, so that nothing that still comes up is taken; return them."""
        dead = list(self.orders.values())
        self.orders.clear()
        return dead

    def close(self) -> list[Order]:
        """Ask for what there is: return the orders that are to be told, each only once."""
        to_close = [order for order in self.orders.values() if not order.closing]
        for order in to_close:
            order.closing = True
        return to_close

    def reopen(self) -> list[str]:
        """Open failed, late and awaiting slots for another attempt; return the clients whose failure is forgotten.

        Who refuses is not asked again: nothing has changed at its site as long as it does not attach anew.
        """
        forgotten = [slot.client for slot in self.slots.values() if slot.state is SlotState.FAILED]
        for slot in self.slots.values():
            if slot.state in {SlotState.FAILED, SlotState.LATE, SlotState.AWAITING}:
                self._turn(slot, SlotState.OPEN, None)
        return forgotten

    # ---- what can be asked

    def verdict(self, client: str) -> SlotState | None:
        """Return what a client that still holds its work may be told.

        ``COUNTED`` and ``FAILED``: that is durable. ``LATE``: it was not asked. None: it is not decided before the
        phase has ended, and the client is to keep what it has; whoever was not counted is told then.
        """
        slot = self.slots.get(client)
        if slot is None:
            return SlotState.LATE
        if slot.order_id in self.orders or slot.state not in {SlotState.COUNTED, SlotState.FAILED}:
            return None
        return slot.state

    @property
    def counts(self) -> Counts:
        """How far the phase is."""
        by_state = self._tally
        return Counts(
            asked=len(self.slots),
            counted=by_state[SlotState.COUNTED],
            noted=by_state[SlotState.NOTED],
            failed=by_state[SlotState.FAILED] + by_state[SlotState.REFUSED],
            late=by_state[SlotState.LATE],
            open=by_state[SlotState.OPEN] + by_state[SlotState.ASKED],
            awaiting=by_state[SlotState.AWAITING],
            refused=by_state[SlotState.REFUSED],
        )

    @property
    def enough(self) -> bool:
        """Whether the wanted number of answers is in, here or in reports to come."""
        in_or_to_come = self._tally[SlotState.COUNTED] + self._tally[SlotState.NOTED]
        return self.wanted is not None and in_or_to_come >= self.wanted

    @property
    def answered(self) -> bool:
        """Whether nobody is left who could still answer, or has to be waited for, and all reports are in."""
        waits = self._tally[SlotState.AWAITING] > 0 and self._tally[SlotState.COUNTED] < self.needed
        return not self.orders and not self._tally[SlotState.OPEN] and not waits

    @property
    def only_missing_left(self) -> bool:
        """Whether all that is left to wait for are clients that are attached nowhere."""
        return not self.orders and self._tally[SlotState.OPEN] > 0

    def clients_in(self, *states: SlotState) -> list[str]:
        """Return the clients whose slot is in one of ``states``, by name."""
        return sorted(slot.client for slot in self.slots.values() if slot.state in states)

    def _add(self, slot: Slot) -> None:
        if (earlier := self.slots.get(slot.client)) is not None:
            self._tally[earlier.state] -= 1
        self.slots[slot.client] = slot
        self._tally[slot.state] += 1

    def _turn(self, slot: Slot, state: SlotState, order_id: str | None) -> None:
        self._tally[slot.state] -= 1
        self._tally[state] += 1
        slot.state, slot.order_id = state, order_id

    def _slots_of(self, order: Order) -> list[Slot]:
        return [self.slots[c] for c in sorted(order.clients) if self.slots[c].order_id == order.order_id]
