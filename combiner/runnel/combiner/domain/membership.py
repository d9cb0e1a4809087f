"""Who is attached below a combiner, at any depth, and through which directly attached node."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from runnel.common.protocol import AssignmentKey, Member, NodeKind, Roster

_Holding = tuple[AssignmentKey, ...]
_Runs = tuple[str, ...]


class Membership:
    """Tracks the nodes below and says what the node above has to know of it.

    News about a node that moved come by its old and its new way in any order. So a node may be known by several ways
    for a while: the last arrival counts, and when that way loses it, it is where it arrived before.
    """

    def __init__(self, own_name: str) -> None:
        self._own_name = own_name
        self._below: dict[str, dict[str, Member]] = {}
        self._known_by: dict[str, list[str]] = {}  # directly attached nodes by name, the last arrival last
        self._announced: dict[str, Member] = {}

    def attach(self, member: Member, below: Iterable[Member]) -> Roster:
        """Add a directly attached node and all below it."""
        before = self.detach(member.name)
        self._below[member.name] = {}
        now = self.join(member.name, [member, *below])
        arrived = {each.name for each in now.joined}
        return Roster(
            joined=(*(each for each in before.joined if each.name not in arrived), *now.joined),
            left=tuple(name for name in before.left if name not in arrived),
        )

    def detach(self, child: str) -> Roster:
        """Remove a directly attached node and all below it."""
        return self._lost(child, self._below.pop(child, {}))

    def join(self, child: str, joined: Iterable[Member]) -> Roster:
        """Add nodes below ``child``."""
        arrived = []
        for member in joined:
            parent = self._own_name if member.name == child else member.parent or child
            known = dataclasses.replace(member, parent=parent)
            known_by = self._known_by.setdefault(member.name, [])
            if child in known_by:
                known_by.remove(child)
            known_by.append(child)
            self._below[child][member.name] = known
            arrived.append(known)
        return Roster(joined=tuple(arrived))

    def leave(self, child: str, names: Iterable[str]) -> Roster:
        """Remove nodes below ``child``; those that are known by another way are told as being there."""
        below = self._below.get(child, {})
        return self._lost(child, [name for name in names if below.pop(name, None) is not None])

    def _lost(self, child: str, names: Iterable[str]) -> Roster:
        left, elsewhere = [], []
        for name in names:
            known_by = self._known_by[name]
            moved = known_by[-1] == child
            known_by.remove(child)
            if not known_by:
                del self._known_by[name]
                left.append(name)
            elif moved:
                elsewhere.append(self._below[known_by[-1]][name])
        return Roster(joined=tuple(elsewhere), left=tuple(left))

    def members(self) -> tuple[Member, ...]:
        """Return everybody below."""
        return tuple(self._below[known_by[-1]][name] for name, known_by in self._known_by.items())

    def announce(self) -> tuple[Member, ...]:
        """Return everybody below for a hello, and remember what it says for :meth:`unannounced`."""
        members = self.members()
        self._announced = {member.name: member for member in members}
        return members

    def unannounced(self) -> Roster:
        """Return what has changed since the last :meth:`announce`.

        Between a hello and its welcome nothing can be said to the node above; this makes up for it.
        """
        now = {member.name: member for member in self.members()}
        joined = tuple(member for name, member in now.items() if self._announced.get(name) != member)
        return Roster(joined=joined, left=tuple(name for name in self._announced if name not in now))

    def takes_on(self, client: str, key: AssignmentKey) -> None:
        """Note that a client is given this work, so that a later hello tells what it may hold."""
        self._hold(client, lambda holding: holding if key in holding else (*holding, key))

    def let_go(self, client: str, key: AssignmentKey) -> None:
        """Note that a client is told to forget this work, so that a later hello does not repeat what is settled."""
        self._hold(client, lambda holding: tuple(held for held in holding if held != key))

    def _hold(self, client: str, change: Callable[[_Holding], _Holding]) -> None:
        for child in self._known_by.get(client, ()):
            member = self._below[child][client]
            self._below[child][client] = dataclasses.replace(member, holding=change(member.holding))

    def takes_run(self, client: str, run_id: str) -> None:
        """Note that a client is given this run of a task, so that a later hello tells what it may hold."""
        self._hold_runs(client, lambda runs: runs if run_id in runs else (*runs, run_id))

    def lets_run_go(self, client: str, run_id: str) -> None:
        """Note that a client is told to forget this run."""
        self._hold_runs(client, lambda runs: tuple(held for held in runs if held != run_id))

    def holds_run(self, child: str, run_id: str) -> bool:
        """Whether a directly attached node, or a client below it, may hold this run."""
        return any(run_id in member.runs for member in self._below.get(child, {}).values())

    def _hold_runs(self, client: str, change: Callable[[_Runs], _Runs]) -> None:
        for child in self._known_by.get(client, ()):
            member = self._below[child][client]
            self._below[child][client] = dataclasses.replace(member, runs=change(member.runs))

    def route(self, name: str) -> str | None:
        """Return the directly attached node that leads to ``name``."""
        known_by = self._known_by.get(name)
        return known_by[-1] if known_by else None

    def ways(self, name: str) -> tuple[str, ...]:
        """Return all directly attached nodes that may lead to ``name``, for what must reach it wherever it is."""
        return tuple(self._known_by.get(name, ()))

    def kind_of(self, child: str) -> NodeKind | None:
        """Return the kind of a directly attached node."""
        member = self._below.get(child, {}).get(child)
        return None if member is None else member.kind

    def directly_attached(self) -> int:
        """Return the number of nodes that are attached here."""
        return len(self._below)
