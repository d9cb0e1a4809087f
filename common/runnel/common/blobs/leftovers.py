"""What nodes had begun to push when the connection to them was lost."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from runnel.common.blobs.spool import Spool

KEPT_HEARTBEATS = 12
"""For so many intervals of heartbeats it pays to wait for a node: after three it is taken for gone."""

_MOST_OF_ONE = 4


class Leftovers:
    """Partial payloads that wait a while for their senders, who come back under another order.

    An order dies with the attachment of its node, and the answer to the next one is the same file: with this its push
    goes on at the byte where it broke. What is taken up again is verified as a whole, as every payload is.

    Nothing here takes longer than a few directory entries.

    Args:
        spool: where payloads are under way.
        keep_s: how long they wait.
        clock: monotonic seconds.
    """

    def __init__(self, spool: Spool, keep_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._spool = spool
        self._keep_s = keep_s
        self._clock = clock
        self._left: OrderedDict[str, tuple[str, float]] = OrderedDict()  # by key: the node, and until when it is kept

    def leave(self, key: str, name: str) -> None:
        """Set aside what the node ``name`` had begun under ``key``, if anything; only the newest few of a node stay."""
        digest = self._spool.begun(key)
        if digest is None:
            self._spool.forget(key)
            return
        place = _key(name, digest)
        self._forget(place)
        self._spool.move(key, place)
        self._left[place] = (name, self._clock() + self._keep_s)
        of_node = [each for each, (owner, _) in self._left.items() if owner == name]
        for each in of_node[:-_MOST_OF_ONE]:
            self._forget(each)

    def take_up(self, key: str, name: str, digest: str) -> None:
        """Let what was set aside of this payload of this node be that of ``key``, if nothing is there yet.

        Or what it had begun last without a digest: that is the same as a rule, and verified as a whole like all others.
        """
        for place in (_key(name, digest), _key(name, "")):
            if place in self._left and self._spool.begun(key) is None:
                del self._left[place]
                self._spool.move(place, key)

    def expire(self) -> None:
        """Remove what nobody came back for; to be called when the time of what was left is over."""
        now = self._clock()
        while self._left:
            key, (_, until) = next(iter(self._left.items()))
            if until > now:
                return
            self._forget(key)

    def _forget(self, key: str) -> None:
        if self._left.pop(key, None) is not None:
            self._spool.forget(key)


def _key(name: str, digest: str) -> str:
    return f"left/{name}/{digest}"
