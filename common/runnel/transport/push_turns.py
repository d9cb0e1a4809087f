"""Who may push what at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from runnel.common.errors import Conflict, RunnelError, Unreachable


class Turn:
    """A push under way."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.written = asyncio.Event()
        self.why: RunnelError | None = None
        self._scope = asyncio.timeout(None)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Have the turn in this block; raises ``why`` if it is ended."""
        try:
            async with self._scope:
                yield
        except TimeoutError:
            if self.why is None or not self._scope.expired():
                raise
            raise self.why from None
        finally:
            self.written.set()
            self.ended.set()

    def give_way(self, why: RunnelError) -> None:
        """End it with ``why``; what must not be torn, such as handing over the file, is finished first."""
        if self.why is None:
            self.why = why
            self._scope.reschedule(0.0)


class PushTurns:
    """One push at a time for an order and a node, and none that writes for a node that is gone.

    A connection may be dead for long before that is known here. What such a push has written must not be taken up by
    another while it still holds the file.
    """

    def __init__(self) -> None:
        self._under_way: dict[tuple[str, str], Turn] = {}

    @asynccontextmanager
    async def turn(self, name: str, order_id: str) -> AsyncIterator[Turn]:
        """Push for an order in this block; an earlier push of the same node for it is ended.

        Whoever has it sets ``written`` when nothing is written any more.

        Raises:
            Conflict: a later one ended this.
            Unreachable: :meth:`end` did.
        """
        key = (name, order_id)
        while (earlier := self._under_way.get(key)) is not None:
            earlier.give_way(Conflict(f"{name} pushes the payload of {order_id} by another call."))
            await earlier.ended.wait()
        turn = self._under_way[key] = Turn()
        try:
            async with turn.run():
                yield turn
        finally:
            del self._under_way[key]

    async def end(self, name: str) -> None:
        """End all pushes of a node that still write; returns when there are none. What is written is handed over."""
        why = Unreachable(f"{name} is not attached any more.", hint="Offer it again when attached.")
        while writing := [
            turn for (who, _), turn in self._under_way.items() if who == name and not turn.written.is_set()
        ]:
            for turn in writing:
                turn.give_way(why)
            for turn in writing:
                await turn.written.wait()
