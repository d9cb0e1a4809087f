"""What is found out about a peer, whichever it is."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRounds:
    """``seconds``: of each measured round; ``peaks``: most resident bytes by server process; of which ``version``."""

    version: str
    seconds: Sequence[float]
    peaks: dict[str, int] = field(default_factory=dict)


def seconds_between(marks: Sequence[float], rounds: int) -> list[float]:
    """Return the seconds of each round but the first, in which the clients start.

    ``marks``: when each round began, and when the last one ended.

    Raises:
        ValueError: there are not as many as ``rounds`` and the first one need.

    >>> seconds_between([0.0, 9.0, 10.5, 12.5], 2)
    [1.5, 2.0]
    """
    if len(marks) != rounds + 2:
        raise ValueError(f"{rounds} rounds and the first one have {rounds + 2} marks, not {len(marks)}")
    return [later - earlier for earlier, later in itertools.pairwise(marks)][1:]


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback that nobody uses now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
