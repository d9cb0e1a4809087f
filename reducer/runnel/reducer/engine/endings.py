"""Who waits for runs of a task to end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Endings:
    """Wakes those who watch a task when one of its runs has ended and that is durable."""

    def __init__(self) -> None:
        self._watching: dict[str, list[asyncio.Event]] = {}

    @contextmanager
    def watching(self, task_id: str) -> Iterator[asyncio.Event]:
        """Give what is set at each end of a run of this task from now on; who has seen it clears it."""
        event = asyncio.Event()
        self._watching.setdefault(task_id, []).append(event)
        try:
            yield event
        finally:
            watching = self._watching[task_id]
            watching.remove(event)
            if not watching:
                del self._watching[task_id]

    def told(self, task_ids: Iterable[str]) -> None:
        """Runs of these tasks have ended."""
        for task_id in task_ids:
            for event in self._watching.get(task_id, ()):
                event.set()
