"""How much may be on its way down before somebody says that it arrived."""

from __future__ import annotations


class Pace:
    """Bytes of orders that were sent and not yet heard of, by the directly attached node that they went to.

    What waits for a node has a limit, beyond which it is sent away: so orders of runs, which may be large, go out only
    as fast as their clients say that they have them.

    Args:
        limit_bytes: when so much is on its way to a node, it is sent no more; a single order may be larger.

    >>> pace = Pace(10)
    >>> pace.sent("run-1", "c1", 12)
    >>> pace.full("c1"), pace.full("c2")
    (True, False)
    >>> pace.arrived("run-1")
    >>> pace.full("c1")
    False
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._sent: dict[str, tuple[str, int]] = {}
        self._under_way: dict[str, int] = {}

    def full(self, node: str) -> bool:
        """Whether a node is to be sent no more for now."""
        return self._under_way.get(node, 0) >= self._limit_bytes

    def sent(self, run_id: str, node: str, size_bytes: int) -> None:
        """An order went to a node; one that went elsewhere before counts there no more."""
        self.arrived(run_id)
        self._sent[run_id] = (node, size_bytes)
        self._under_way[node] = self._under_way.get(node, 0) + size_bytes

    def arrived(self, run_id: str) -> None:
        """The client of a run was heard of it, or the run is over."""
        node, size_bytes = self._sent.pop(run_id, ("", 0))
        if left := self._under_way.pop(node, 0) - size_bytes:
            self._under_way[node] = left

    def gone(self, node: str) -> None:
        """A node is gone, and what was on its way to it is lost."""
        for run_id in [run_id for run_id, (to, _) in self._sent.items() if to == node]:
            self.arrived(run_id)
