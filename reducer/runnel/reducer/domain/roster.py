"""Who is attached where: the routes to every client and the best place for a newcomer."""

from __future__ import annotations

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

    When a node moves, the news of its arrival and of its departure come by different branches, in any order; the last
    arrival decides where it is.
    """

    def __init__(self) -> None:
        self._branches: dict[str, Branch] = {}
        self._branch_of: dict[str, str] = {}

    def attach(self, member: Member, below: Iterable[Member]) -> list[Member]:
        """Add a directly attached node with all below it; return those that arrived."""
        branch = Branch(member=member)
        self._branches[member.name] = branch
        return self.join(member.name, [member, *below])

    def detach(self, child: str) -> list[Member]:
        """Remove a directly attached node with all below it; return those that are attached nowhere now."""
        branch = self._branches.pop(child, None)
        if branch is None:
            return []
        gone = [m for name, m in branch.members.items() if self._branch_of.get(name) == child]
        for member in gone:
            del self._branch_of[member.name]
        return gone

    def join(self, child: str, joined: Iterable[Member]) -> list[Member]:
        """Add nodes below ``child``."""
        branch = self._branches[child]
        arrived = list(joined)
        for member in arrived:
            before = self._branch_of.get(member.name)
            if before is not None and before != child:
                self._branches[before].members.pop(member.name, None)
            branch.members[member.name] = member
            self._branch_of[member.name] = child
        return arrived

    def leave(self, child: str, left: Iterable[str]) -> list[Member]:
        """Remove nodes below ``child``; those that already arrived elsewhere stay there."""
        branch = self._branches[child]
        return [branch.members.pop(name) for name in left if self._branch_of.get(name) == child and self._forget(name)]

    def _forget(self, name: str) -> bool:
        return self._branch_of.pop(name, None) is not None

    # ---- what can be asked

    def route(self, name: str) -> str | None:
        """Return the directly attached node that leads to ``name``, None when it is attached nowhere."""
        return self._branch_of.get(name)

    def find(self, name: str) -> Member | None:
        """Return the attached node of this name."""
        child = self._branch_of.get(name)
        return None if child is None else self._branches[child].members.get(name)

    def attached_to(self, name: str, own_name: str) -> str | None:
        """Return the name of the node that ``name`` is attached to."""
        child = self._branch_of.get(name)
        if child is None:
            return None
        if child == name:
            return own_name
        return self._branches[child].members[name].parent or child

    def members(self) -> list[Member]:
        """Return all attached nodes."""
        return [member for branch in self._branches.values() for member in branch.members.values()]

    def clients(self) -> list[str]:
        """Return the names of all attached clients, sorted."""
        return sorted(m.name for m in self.members() if m.kind is NodeKind.CLIENT)

    def direct_clients(self) -> list[str]:
        """Return the clients that are attached to the reducer itself."""
        return sorted(b.member.name for b in self._branches.values() if b.member.kind is NodeKind.CLIENT)

    def combiners(self) -> list[Member]:
        """Return all attached combiners."""
        return [m for m in self.members() if m.kind is NodeKind.COMBINER]

    def load(self, combiner: str) -> int:
        """Return how many nodes are attached directly to ``combiner``."""
        child = self._branch_of.get(combiner)
        if child is None:
            return 0
        return sum(
            1
            for m in self._branches[child].members.values()
            if m.name != combiner and (m.parent or child) == combiner and m.name != child
        )

    def parent_for(self, name: str, wanted: str) -> Member:
        """Return the combiner ``wanted``, to which the combiner ``name`` is to attach.

        Raises:
            Unreachable: it is not attached (yet).
            InvalidInput: it is ``name`` itself, or attached below it.
        """
        above: str | None = wanted
        while above is not None and (member := self.find(above)) is not None:
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

        It stays where it is when that still stands, else goes where it prefers, else to the combiner with the least
        share of its capacity taken; to the reducer itself only when no combiner has room. Places in ``avoid`` come
        last.
        ``underway``: by combiner, how many were sent there and have not arrived yet.

        Raises:
            CapacityExceeded: there is no room anywhere.
        """
        combiners = {m.name: m for m in self.combiners() if m.address}
        if stay == own_name and not combiners:
            return Spot(member=None)
        for name in (stay, prefer):
            if name in combiners and name not in avoid:
                return Spot(member=combiners[name])
        load = {name: self.load(name) + underway.get(name, 0) for name in combiners}
        free = [m for m in combiners.values() if m.capacity == 0 or load[m.name] < m.capacity]
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
