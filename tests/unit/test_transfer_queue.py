"""Tests for the order in which large transfers that come together are served."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from runnel.transport.transfer_queue import SMALL_BYTES, TransferQueue
from tests.eventually import eventually, let_pass

pytestmark = pytest.mark.unit

LARGE = SMALL_BYTES + 1


class Visitors:
    """Transfers that stay at their place until they are told to go."""

    def __init__(self, queue: TransferQueue) -> None:
        self.queue = queue
        self.served: list[str] = []
        self._may_go: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, *names: str, size_bytes: int = LARGE, pushes: bool = False) -> None:
        for name in names:
            self._may_go[name] = asyncio.Event()
            self._tasks[name] = asyncio.create_task(self._visit(name, size_bytes, pushes=pushes))
            await asyncio.sleep(0)

    async def go(self, name: str) -> None:
        self._may_go[name].set()
        await self._tasks.pop(name)
        await asyncio.sleep(0)

    async def leave(self, *names: str) -> None:
        """Cancel them, all at once."""
        left = [self._tasks.pop(name) for name in names]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _visit(self, name: str, size_bytes: int, *, pushes: bool) -> None:
        async with self.queue.place(size_bytes, pushes=pushes):
            self.served.append(name)
            await self._may_go[name].wait()


@contextlib.asynccontextmanager
async def visitors(queue: TransferQueue) -> AsyncIterator[Visitors]:
    found = Visitors(queue)
    try:
        yield found
    finally:
        await found.leave(*found._tasks)


@contextlib.asynccontextmanager
async def moving(move: Callable[[], None]) -> AsyncIterator[None]:
    """Move something at each turn of the loop, so between any two looks."""

    async def go_on() -> None:
        while True:
            move()
            await asyncio.sleep(0)

    task = asyncio.create_task(go_on())
    try:
        yield
    finally:
        task.cancel()


async def test_one_after_another_in_the_order_in_which_they_came_while_the_one_keeps_it_busy() -> None:
    queue = TransferQueue(look_s=0.01, busy_bytes_per_s=1e-6)
    async with visitors(queue) as those, moving(lambda: queue.moved(1)):
        await those.come("a", "b", "c")
        await asyncio.sleep(0.05)  # some looks, of which none may change anything
        assert those.served == ["a"]
        await those.go("a")
        assert those.served == ["a", "b"]
        await those.go("b")
        await those.go("c")
        assert those.served == ["a", "b", "c"]


async def test_others_are_let_in_beside_those_that_are_slow_or_hang() -> None:
    async with visitors(TransferQueue(look_s=60)) as those:
        names = [f"client-{n}" for n in range(9)]
        await those.come(*names)
        assert those.served == names[:1]

        def all_are_served_after_the_next_look() -> bool:
            let_pass(60)
            return those.served == names

        await eventually(all_are_served_after_the_next_look)
        assert those.queue.waiting == 0


class Line:
    """Moves in its own time what it can, of which ``rate`` tells the bytes per second when so many are served."""

    def __init__(self, rate: Callable[[int], float]) -> None:
        self._rate = rate
        self._now_s = 0.0

    def clock(self) -> float:
        return self._now_s

    def move(self, those: Visitors) -> None:
        self._now_s += 0.001
        those.queue.moved(round(self._rate(len(those.served)) * 0.001))


async def test_others_are_let_in_where_each_has_a_slow_line_of_its_own() -> None:
    line = Line(lambda served: 5e6 * served)
    async with visitors(TransferQueue(look_s=0.002, clock=line.clock)) as those, moving(lambda: line.move(those)):
        names = [f"client-{n}" for n in range(9)]
        await those.come(*names)
        await eventually(lambda: those.served == names)


async def test_few_are_served_where_more_of_them_move_no_more() -> None:
    line = Line(lambda served: 50e6)
    async with visitors(TransferQueue(look_s=0.002, clock=line.clock)) as those, moving(lambda: line.move(those)):
        names = [f"client-{n}" for n in range(9)]
        await those.come(*names)
        await eventually(lambda: those.served == names[:2])  # the trial
        await asyncio.sleep(0.2)  # some more trials, of which none may change anything
        assert those.served == names[:2]
        await those.go(names[0])
        assert those.queue.waiting >= 6, "never more than two are served"


async def test_once_nobody_waits_they_go_one_after_another_again() -> None:
    queue = TransferQueue(look_s=0.01, busy_bytes_per_s=1e-6)
    async with visitors(queue) as those:
        await those.come("a", "b")
        await eventually(lambda: those.served == ["a", "b"])
        async with moving(lambda: queue.moved(1)):
            await those.come("c", "d")
            await those.go("a")
            assert those.queue.waiting == 2
            await those.go("b")
            assert those.served == ["a", "b", "c"]
            assert those.queue.waiting == 1


async def test_little_waits_for_nobody() -> None:
    async with visitors(TransferQueue(look_s=60)) as those:
        await those.come("large", "also large")
        await those.come("small", size_bytes=SMALL_BYTES)
        assert those.served == ["large", "small"]


async def test_who_is_cancelled_leaves_no_gap_and_keeps_no_place() -> None:
    async with visitors(TransferQueue(look_s=60)) as those:
        await those.come("a", "b", "c", "d")
        await those.leave("b")
        await those.go("a")
        assert those.served == ["a", "c"]
        # d is told that it is its turn, and is gone before it hears of that.
        gone = asyncio.create_task(those.go("c"))
        while those.queue.waiting:  # noqa: ASYNC110 - one step of the loop at a time is the point
            await asyncio.sleep(0)
        await those.leave("d")
        await gone
        await those.come("e")
        assert those.served == ["a", "c", "e"]


async def test_no_push_begins_while_several_that_came_are_worked_off() -> None:
    async with visitors(TransferQueue(look_s=60)) as those:
        with contextlib.ExitStack() as work:
            for _ in range(3):
                work.enter_context(those.queue.working_off(LARGE))
            with those.queue.working_off(LARGE):
                await those.come("push", pushes=True)
                assert those.served == []
                await those.come("fetch")
                await those.come("small", size_bytes=SMALL_BYTES, pushes=True)
                assert those.served == ["fetch", "small"]
                await those.go("fetch")
                assert those.served == ["fetch", "small"]
            await asyncio.sleep(0)  # at once, not at the next look
            assert those.served == ["fetch", "small", "push"]


async def test_who_waits_for_what_is_worked_off_is_no_sign_of_a_slow_line() -> None:
    async with visitors(TransferQueue(look_s=0.01)) as those:
        with contextlib.ExitStack() as work:
            for _ in range(4):
                work.enter_context(those.queue.working_off(LARGE))
            await those.come("a", "b", "c", pushes=True)
            await asyncio.sleep(0.1)  # some looks, of which none may change anything
            assert those.served == []
        await asyncio.sleep(0)
        assert those.served == ["a"]


async def test_little_that_is_worked_off_holds_nobody_up() -> None:
    async with visitors(TransferQueue(look_s=60)) as those:
        with contextlib.ExitStack() as work:
            for _ in range(100):
                work.enter_context(those.queue.working_off(SMALL_BYTES))
            await those.come("push", pushes=True)
            assert those.served == ["push"]
