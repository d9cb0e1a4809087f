"""Until when each piece of work may take, counted from the newest order for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from runnel.common.protocol import Assignment, AssignmentKey


class Deadlines:
    """The deadlines of all work that is asked for; one that runs gets the newer one when it is asked for again."""

    def __init__(self) -> None:
        self._deadlines: dict[AssignmentKey, float | None] = {}
        self._scopes: dict[AssignmentKey, asyncio.Timeout] = {}

    def renew(self, assignment: Assignment, wanted: Collection[AssignmentKey]) -> None:
        """Count from when the order came: for work that waits, and for work under way since an earlier order.

        Args:
            assignment: the order.
            wanted: what is still asked for; the deadlines of other work are forgotten.
        """
        deadline = None
        if assignment.remaining_s is not None:
            # Twice: the network calls the work off when its time is over, or asks again and the same run goes on; only
            # who hears nothing for so long ends by himself.
            deadline = asyncio.get_running_loop().time() + 2 * assignment.remaining_s
        for key in self._deadlines.keys() - set(wanted):
            del self._deadlines[key]
        self._deadlines[assignment.key] = deadline
        scope = self._scopes.get(assignment.key)
        if scope is not None and not scope.expired():
            scope.reschedule(deadline)

    def known(self) -> set[AssignmentKey]:
        """Return the work whose deadline is remembered."""
        return set(self._deadlines)

    @asynccontextmanager
    async def over(self, key: AssignmentKey) -> AsyncIterator[None]:
        """Give the block that does this work its time.

        Raises:
            TimeoutError: it is over.
        """
        try:
            async with asyncio.timeout_at(self._deadlines.get(key)) as self._scopes[key]:
                yield
        finally:
            del self._scopes[key]
