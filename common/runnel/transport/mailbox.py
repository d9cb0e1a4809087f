"""A queue with a limit on what waits in it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from runnel.common.errors import CapacityExceeded, IllegalState

T = TypeVar("T")

WAITING_BYTES = 1 << 10
"""What a message of the wire that waits takes in memory beside what it says; of small ones that is nearly all."""

_TO_COME_BYTES = 512  # what one that is not made yet takes, by whatever it will be made of


class _Sized(Protocol):
    def ByteSize(self) -> int: ...  # noqa: N802 - the name is protobuf's


def held_bytes(message: _Sized) -> int:
    """Return how much memory a message of the wire takes while it waits."""
    return message.ByteSize() + WAITING_BYTES


@dataclass(slots=True)
class _Series(Generic[T]):
    """Items that are made when it is their turn, at most ``to_come`` of them."""

    items: Iterator[T]
    to_come: int

    @property
    def size_bytes(self) -> int:
        return self.to_come * _TO_COME_BYTES

    def drawn(self) -> int:
        """Count one as made; return how many bytes that frees."""
        if not self.to_come:
            return 0
        self.to_come -= 1
        return _TO_COME_BYTES


def _one_byte(_: object) -> int:
    return 1


class Mailbox(Generic[T]):
    """First in, first out, from any number of senders to one receiver on the same event loop.

    Args:
        items: most that may wait; None: as many as ``size_bytes`` lets.
        size_bytes: most bytes that may wait; a single item that is larger still passes when nothing else waits.
        size_of: bytes of one item.
    """

    def __init__(
        self, *, items: int | None = None, size_bytes: int = 16 << 20, size_of: Callable[[T], int] = _one_byte
    ) -> None:
        self._limit_items = items
        self._limit_bytes = size_bytes
        self._size_of = size_of
        self._waiting: deque[tuple[T, int] | _Series[T]] = deque()
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
        many = self._limit_items is not None and 2 * len(self._waiting) >= self._limit_items
        return many or 2 * self._bytes >= self._limit_bytes

    @property
    def last(self) -> T | None:
        """The item that waits last, if it is made already."""
        last = self._waiting[-1] if self._waiting else None
        return last[0] if isinstance(last, tuple) else None

    def last_grew(self, size_bytes: int) -> None:
        """Count what was added to :attr:`last`."""
        last = self._waiting.pop()
        assert isinstance(last, tuple)
        self._waiting.append((last[0], last[1] + size_bytes))
        self._bytes += size_bytes

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
            raise self._full()

    def send_each(self, items: Iterable[T], number: int) -> None:
        """Put ``items`` at the end, at most ``number``, each of which is taken from the iterable when it is its turn.

        So many that are large together need little room. What is sent later comes after all of them. What the iterable
        raises is raised by :meth:`get`.

        Raises:
            CapacityExceeded: there is no room even for what they are made of.
            IllegalState: the mailbox is closed.
        """
        series = _Series(iter(items), number)
        if number and not self._append(series, series.size_bytes):
            raise self._full()

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
        while True:
            while not self._waiting:
                if self._closed:
                    if self._error is not None:
                        raise self._error
                    raise StopAsyncIteration
                self._filled.clear()
                await self._filled.wait()
            first = self._waiting[0]
            if isinstance(first, tuple):
                self._waiting.popleft()
                self._free(first[1])
                return first[0]
            for item in first.items:
                self._free(first.drawn())
                return item
            self._waiting.popleft()
            self._free(first.size_bytes)

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
        size = self._size_of(item)
        return self._append((item, size), size)

    def _append(self, entry: tuple[T, int] | _Series[T], size: int) -> bool:
        if self._closed:
            raise IllegalState("The mailbox is closed.")
        many = self._limit_items is not None and len(self._waiting) >= self._limit_items
        if self._waiting and (many or self._bytes + size > self._limit_bytes):
            return False
        self._waiting.append(entry)
        self._bytes += size
        self._filled.set()
        return True

    def _free(self, size_bytes: int) -> None:
        self._bytes -= size_bytes
        self._room.set()

    def _full(self) -> CapacityExceeded:
        waiting = sum(1 if isinstance(each, tuple) else each.to_come for each in self._waiting)
        most = "" if self._limit_items is None else f"{self._limit_items:,} messages and "
        return CapacityExceeded(
            f"{waiting:,} messages wait already and take {self._bytes:,} bytes; at most {most}"
            f"{self._limit_bytes:,} bytes may.",
            waiting=waiting,
            waiting_bytes=self._bytes,
        )
