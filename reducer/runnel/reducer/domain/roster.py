"""Who is attached where: the routes to every client and the best place for a newcomer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from runnel.common.errors import CapacityExceeded, InvalidInput, Unreachable
from runnel.common.protocol import Member, NodeKind


@dataclass(slots=True, kw_only=True)
class Branch:
    """A directly attached node and everybody below it, itself included, by name."""

    member: Member
    members: dict[str, Member] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """Where a newcomer is to attach: the combiner ``member``, or the reducer itself when None."""

    member: Member | None


class Roster:
    """The attached nodes.

    When a node moves, the news of its arrival and of its departure come by different branches, in any order. So a node
    may be known by several branches for a while: the last arrival decides where it is, and when that branch loses it,
    it is where it arrived before. Once all news is there, each node is known by the one branch that it is in.
    """

    def __init__(self) -> None:
        self._branches: dict[str, Branch] = {}
        self._known_by: dict[str, list[str]] = {}  # branches by name of a node, the last arrival last
        # Kept with each change, as each of thousands of newcomers asks for them: who counts as below whom in which
        # branch, how many there are of each, and the combiners.
        self._below: dict[str, tuple[str, str]] = {}
        self._loads: Counter[tuple[str, str]] = Counter()
        self._combiners: dict[str, None] = {}

    def attach(self, member: Member, below: Iterable[Member]) -> list[Member]:
        """Add a directly attached node with all below it; return those that arrived."""
        self.detach(member.name)
        self._branches[member.name] = Branch(member=member)
        return self.join(member.name, [member, *below])

    def detach(self, child: str) -> list[Member]:
        """Remove a directly attached node with all below it; return those that are attached nowhere now."""
        branch = self._branches.pop(child, None)
        return [] if branch is None else [m for name, m in branch.members.items() if self._lost(name, child)]

    def join(self, child: str, joined: Iterable[Member]) -> list[Member]:
        """Add nodes below ``child``."""
        branch = self._branches[child]
        arrived = list(joined)
        for member in arrived:
            self._lost(member.name, child)
            branch.members[member.name] = member
            self._known_by.setdefault(member.name, []).append(child)
            self._recount(member.name)
        return arrived

    def leave(self, child: str, left: Iterable[str]) -> list[Member]:
        """Remove nodes below ``child``; return those that are attached nowhere now."""
        members = self._branches[child].members
        gone = [member for name in left if (member := members.pop(name, None)) is not None]
        return [member for member in gone if self._lost(member.name, child)]

    def _lost(self, name: str, child: str) -> bool:
        """Forget that ``child`` knows ``name``; return whether nobody does any more."""
        known_by = self._known_by.get(name, [])
        if child in known_by:
            known_by.remove(child)
        if not known_by:
            self._known_by.pop(name, None)
        self._recount(name)
        return not known_by

    def _recount(self, name: str) -> None:
        """Bring up to date what is kept about a node whose place may have changed."""
        if (before := self._below.pop(name, None)) is not None:
            self._loads[before] -= 1
            if not self._loads[before]:
                del self._loads[before]
        child = self.route(name)
        member = None if child is None else self._branches[child].members[name]
        if child is not None and member is not None and name != child:
            now = self._below[name] = (child, member.parent or child)
            self._loads[now] += 1
        if member is not None and member.kind is NodeKind.COMBINER:
            self._combiners[name] = None
        else:
            self._combiners.pop(name, None)

    # ---- what can be asked

    def route(self, name: str) -> str | None:
        """Return the directly attached node that leads to ``name``, None when it is attached nowhere."""
        known_by = self._known_by.get(name)
        return known_by[-1] if known_by else None

    def ways(self, name: str) -> tuple[str, ...]:
        """Return all directly attached nodes that may lead to ``name``, for what must reach it wherever it is."""
        return tuple(self._known_by.get(name, ()))

    def find(self, name: str) -> Member | None:
        """Return the attached node of this name."""
        child = self.route(name)
        return None if child is None else self._branches[child].members[name]

    def attached_to(self, name: str, own_name: str) -> str | None:
        """Return the name of the node that ``name`` is attached to."""
        child = self.route(name)
        if child is None:
            return None
        if child == name:
            return own_name
        return self._branches[child].members[name].parent or child

    def members(self) -> list[Member]:
        """Return all attached nodes."""
        return [self._branches[known_by[-1]].members[name] for name, known_by in self._known_by.items()]

    def clients(self) -> list[str]:
        """Return the names of all attached clients, sorted."""
        return sorted(m.name for m in self.members() if m.kind is NodeKind.CLIENT)

    def direct_clients(self) -> list[str]:
        """Return the clients that are attached to the reducer itself."""
        return sorted(
            name
            for name, branch in self._branches.items()
            if branch.member.kind is NodeKind.CLIENT and self.route(name) == name
        )

    def combiners(self) -> list[Member]:
        """Return all attached combiners."""
        return [member for name in self._combiners if (member := self.find(name)) is not None]

    def load(self, combiner: str) -> int:
        """Return how many nodes are attached directly to ``combiner``."""
        child = self.route(combiner)
        return 0 if child is None else self._loads[(child, combiner)]

    def parent_for(self, name: str, wanted: str) -> Member:
        """Return the combiner ``wanted``, to which the combiner ``name`` is to attach.

        Raises:
            Unreachable: it is not attached (yet).
            InvalidInput: it is ``name`` itself, or attached below it.
        """
        above: str | None = wanted
        seen: set[str] = set()  # while nodes move, what is known of them may go round in a circle
        while above is not None and above not in seen and (member := self.find(above)) is not None:
            seen.add(above)
            if above == name:
                raise InvalidInput(
                    f"{name} can't attach to {wanted}, which is below {name} itself.", hint="Choose another --parent."
                )
            above = member.parent or None
        parent = self.find(wanted)
        if parent is None or parent.kind is not NodeKind.COMBINER or wanted == name:
            raise Unreachable(f"The combiner {wanted}, to which {name} is to attach, is not attached itself.")
        return parent

    def place(
        self,
        *,
        prefer: str,
        stay: str,
        avoid: frozenset[str],
        own_name: str,
        direct_capacity: int,
        underway: Mapping[str, int],
    ) -> Spot:
        """Return where a client is to attach.

        It stays where it is when that still stands, else goes where it prefers if there is room, else to the combiner
        with the least share of its capacity taken; to the reducer itself only when no combiner has room. Places in
        ``avoid`` come last.
        ``underway``: by combiner, how many were sent there and have not arrived yet.

        Raises:
            CapacityExceeded: there is no room anywhere.
        """
        combiners = {m.name: m for m in self.combiners() if m.address}
        if stay == own_name and not combiners:
            return Spot(member=None)
        if stay in combiners and stay not in avoid:
            return Spot(member=combiners[stay])
        load = {name: self.load(name) + underway.get(name, 0) for name in combiners}
        free = [m for m in combiners.values() if m.capacity == 0 or load[m.name] < m.capacity]
        if prefer not in avoid and (preferred := [m for m in free if m.name == prefer]):
            return Spot(member=preferred[0])
        if free:
            best = min(free, key=lambda m: (m.name in avoid, load[m.name] / (m.capacity or 1024), m.name))
            if best.name not in avoid:
                return Spot(member=best)
        if len(self.direct_clients()) < direct_capacity:
            return Spot(member=None)
        if free:
            return Spot(member=best)
        raise CapacityExceeded(
            f"All {len(combiners)} combiners are full, and the reducer itself takes at most {direct_capacity} clients.",
            hint="Start another combiner or raise a combiner's --capacity; the client tries again by itself.",
        )
