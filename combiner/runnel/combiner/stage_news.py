"""How far clients are, as a combiner tells it: of many clients at once.

Each client says each stage, and each message costs this node and the one above more than what it says is worth. Nothing
depends on when it comes, so it comes a moment later, and only the newest stage of each client does. A round may be
closed once enough are folded: that comes sooner, and not at all where the report has come before.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Protocol

from runnel.common.protocol import Progress, Stage, Upward

PAUSE_S = 0.05
COUNTED_PAUSE_S = 0.02
_MOST_CLIENTS = 1_000  # of whom one message tells


class Way(Protocol):
    """The way up."""

    def send(self, message: Upward) -> bool:
        """Send up."""
        ...

    def offer(self, message: Upward) -> bool:
        """Send up what may be lost."""
        ...


class StageNews:
    """Gathers what clients say and tells it together.

    Args:
        way: the way up.
        pause_s: how long it is gathered.
        counted_pause_s: how long it is gathered whose updates are folded.
    """

    def __init__(self, way: Way, *, pause_s: float = PAUSE_S, counted_pause_s: float = COUNTED_PAUSE_S) -> None:
        self._way = way
        self._pause_s = pause_s
        self._counted_pause_s = counted_pause_s
        self._newest: dict[tuple[str, str], Progress] = {}  # by order and client
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, progress: Progress) -> None:
        """Tell how far one client is, with what it says beside at once."""
        self.outdated(progress)
        if progress.detail:
            self._send(progress)
            return
        self._newest[progress.order_id, progress.client] = progress
        loop = asyncio.get_running_loop()
        at = loop.time() + (self._counted_pause_s if progress.stage is Stage.COUNTED else self._pause_s)
        if self._timer is None or at < self._timer.when():
            self._stop_timer()
            self._timer = loop.call_at(at, self._send_all)

    def outdated(self, progress: Progress) -> None:
        """Forget what was to be told of the client: ``progress`` says more."""
        self._newest.pop((progress.order_id, progress.client), None)

    def reported(self, order_id: str) -> None:
        """Forget what was to be told of an order: its report has said more."""
        self._newest = {place: progress for place, progress in self._newest.items() if place[0] != order_id}

    def close(self) -> None:
        """Tell nothing more."""
        self._newest.clear()
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send(self, progress: Progress) -> None:
        if progress.stage is Stage.COUNTED:
            self._way.send(progress)
        else:
            self._way.offer(progress)

    def _send_all(self) -> None:
        self._timer = None
        together: dict[tuple[str, object], list[Progress]] = {}
        for progress in self._newest.values():
            together.setdefault((progress.order_id, progress.stage), []).append(progress)
        self._newest.clear()
        for same in together.values():
            for first in range(0, len(same), _MOST_CLIENTS):
                one, *others = same[first : first + _MOST_CLIENTS]
                self._send(dataclasses.replace(one, others=tuple(each.client for each in others)))
