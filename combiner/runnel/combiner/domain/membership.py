"""Who is attached below a combiner, at any depth, and through which directly attached node."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from runnel.common.protocol import Member, NodeKind, Roster


class Membership:
    """Tracks the nodes below and says what the node above has to know of it.

    News about a node that moved come by its old and its new way in any order; the last arrival counts.
    """

    def __init__(self, own_name: str) -> None:
        self._own_name = own_name
        self._below: dict[str, dict[str, Member]] = {}
        self._child_of: dict[str, str] = {}

    def attach(self, member: Member, below: Iterable[Member]) -> Roster:
        """Add a directly attached node and all below it."""
        self._below[member.name] = {}
        return self.join(member.name, [member, *below])

    def detach(self, child: str) -> Roster:
        """Remove a directly attached node and all below it."""
        return self.leave(child, list(self._below.pop(child, {})))

    def join(self, child: str, joined: Iterable[Member]) -> Roster:
        """Add nodes below ``child``."""
        arrived = []
        for member in joined:
            parent = self._own_name if member.name == child else member.parent or child
            known = dataclasses.replace(member, parent=parent)
            before = self._child_of.get(member.name)
            if before is not None and before != child and before in self._below:
                self._below[before].pop(member.name, None)
            self._below[child][member.name] = known
            self._child_of[member.name] = child
            arrived.append(known)
        return Roster(joined=tuple(arrived))

    def leave(self, child: str, names: Iterable[str]) -> Roster:
        """Remove nodes below ``child``; those that arrived by another way meanwhile stay."""
        gone = [name for name in names if self._child_of.get(name) == child]
        for name in gone:
            del self._child_of[name]
            self._below.get(child, {}).pop(name, None)
        return Roster(left=tuple(gone))

    def members(self) -> tuple[Member, ...]:
        """Return everybody below, as the node above is to see them in a hello; what they hold is theirs to tell."""
        return tuple(member for below in self._below.values() for member in below.values())

    def let_go(self, client: str) -> None:
        """Forget what a client said it holds, so that a later hello does not repeat what is settled."""
        child = self._child_of.get(client)
        if child is not None and (member := self._below[child].get(client)) is not None:
            self._below[child][client] = dataclasses.replace(member, holding=())

    def route(self, name: str) -> str | None:
        """Return the directly attached node that leads to ``name``."""
        return self._child_of.get(name)

    def kind_of(self, child: str) -> NodeKind | None:
        """Return the kind of a directly attached node."""
        member = self._below.get(child, {}).get(child)
        return None if member is None else member.kind

    def directly_attached(self) -> int:
        """Return the number of nodes that are attached here."""
        return len(self._below)
