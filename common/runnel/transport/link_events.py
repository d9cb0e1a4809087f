"""What a node learns of its link to the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runnel.common.errors import RunnelError
from runnel.common.protocol import Downward, Welcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """The node is attached; ``via`` is the name of the node above, ``address`` where that was called."""

    welcome: Welcome
    via: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A message from above, in order; never a welcome or a drain."""

    message: Downward


@dataclass(frozen=True, slots=True, kw_only=True)
class Detached:
    """The attachment is over, and another is looked for. ``error`` None: it ended in good order."""

    reason: str
    error: RunnelError | None = None


LinkEvent = Attached | Received | Detached


class Patience:
    """Says when to speak of an outage that lasts: at once, then after growing times."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._next_s = 0.0

    @property
    def waited_s(self) -> float:
        """Seconds since the outage began."""
        return round(self._clock() - self._began, 1)

    def speak(self) -> bool:
        """Whether it is time."""
        waited = self._clock() - self._began
        if waited < self._next_s:
            return False
        self._next_s = min(max(2.0, 2 * waited), waited + 300.0)
        return True
