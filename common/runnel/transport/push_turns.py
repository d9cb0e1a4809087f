"""Who may push what at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from runnel.common.errors import Conflict, RunnelError, Unreachable


class _Turn:
    """A push under way."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.why: RunnelError | None = None
        self._scope = asyncio.timeout(None)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        try:
            async with self._scope:
                yield
        except TimeoutError:
            if self.why is None or not self._scope.expired():
                raise
            raise self.why from None
        finally:
            self.ended.set()

    async def give_way(self, why: RunnelError) -> None:
        """End it with ``why``, and wait: what must not be torn, such as handing over the file, is finished first."""
        if self.why is None:
            self.why = why
            self._scope.reschedule(0.0)
        await self.ended.wait()


class PushTurns:
    """One push at a time for an order and a node, and none of a node that is gone.

    A connection may be dead for long before that is known here. What such a push has written must not be taken up by
    another while it still holds the file.
    """

    def __init__(self) -> None:
        self._under_way: dict[tuple[str, str], _Turn] = {}

    @asynccontextmanager
    async def turn(self, name: str, order_id: str) -> AsyncIterator[None]:
        """Push for an order in this block; an earlier push of the same node for it is ended.

        Raises:
            Conflict: a later one ended this.
            Unreachable: :meth:`end` did.
        """
        key = (name, order_id)
        while (earlier := self._under_way.get(key)) is not None:
            await earlier.give_way(Conflict(f"{name} pushes the payload of {order_id} by another call."))
        turn = self._under_way[key] = _Turn()
        try:
            async with turn.run():
                yield
        finally:
            del self._under_way[key]

    async def end(self, name: str) -> None:
        """End all pushes of a node; returns when none of them holds a file any more."""
        why = Unreachable(f"{name} is not attached any more.", hint="Offer it again when attached.")
        for (who, _), turn in list(self._under_way.items()):
            if who == name:
                await turn.give_way(why)
