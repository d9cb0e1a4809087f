"""A queue with limits on number and size of what waits in it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from runnel.common.errors import CapacityExceeded, IllegalState

T = TypeVar("T")


def _one_byte(_: object) -> int:
    return 1


class Mailbox(Generic[T]):
    """First in, first out, from any number of senders to one receiver on the same event loop.

    Args:
        items: most that may wait.
        size_bytes: most bytes that may wait; a single item that is larger still passes when nothing else waits.
        size_of: bytes of one item.
    """

    def __init__(
        self, *, items: int = 4096, size_bytes: int = 16 << 20, size_of: Callable[[T], int] = _one_byte
    ) -> None:
        self._limit_items = items
        self._limit_bytes = size_bytes
        self._size_of = size_of
        self._waiting: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._closed = False
        self._error: BaseException | None = None
        self._filled = asyncio.Event()
        self._room = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def crowded(self) -> bool:
        """Whether half of the room is taken: then what may be lost had better wait elsewhere."""
        return 2 * len(self._waiting) >= self._limit_items or 2 * self._bytes >= self._limit_bytes

    @property
    def last(self) -> T | None:
        """The item that waits last, if any waits."""
        return self._waiting[-1][0] if self._waiting else None

    @property
    def closed(self) -> bool:
        """Whether nothing more is taken."""
        return self._closed

    def send(self, item: T) -> None:
        """Put ``item`` at the end, at once.

        Raises:
            CapacityExceeded: there is no room.
            IllegalState: the mailbox is closed.
        """
        if not self._try(item):
            raise CapacityExceeded(
                f"{len(self._waiting):,} messages of {self._bytes:,} bytes wait already; at most "
                f"{self._limit_items:,} messages and {self._limit_bytes:,} bytes may.",
                waiting=len(self._waiting),
                waiting_bytes=self._bytes,
            )

    async def put(self, item: T) -> None:
        """Put ``item`` at the end as soon as there is room.

        Raises:
            IllegalState: the mailbox is closed, before or while waiting.
        """
        while not self._try(item):
            self._room.clear()
            await self._room.wait()

    async def get(self) -> T:
        """Take the first item, waiting for one.

        Raises:
            StopAsyncIteration: the mailbox is closed and empty.
            BaseException: the error with which it was closed, once it is empty.
        """
        while not self._waiting:
            if self._closed:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._filled.clear()
            await self._filled.wait()
        item, size = self._waiting.popleft()
        self._bytes -= size
        self._room.set()
        return item

    def close(self, error: BaseException | None = None, *, discard: bool = False) -> None:
        """Take nothing more. What waits is still delivered, unless ``discard``; then ``error``, if any, is raised."""
        if self._closed and not discard:
            return
        if not self._closed:
            self._error = error
        self._closed = True
        if discard:
            self._waiting.clear()
            self._bytes = 0
        self._filled.set()
        self._room.set()

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        return await self.get()

    def _try(self, item: T) -> bool:
        if self._closed:
            raise IllegalState("The mailbox is closed.")
        size = self._size_of(item)
        full = len(self._waiting) >= self._limit_items or self._bytes + size > self._limit_bytes
        if full and self._waiting:
            return False
        self._waiting.append((item, size))
        self._bytes += size
        self._filled.set()
        return True
