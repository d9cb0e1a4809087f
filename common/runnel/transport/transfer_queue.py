"""In which order large fetches and pushes that come together are served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

SMALL_BYTES = 1 << 20
"""Up to this size a transfer waits for nobody."""

_AT_ONCE = 1
_BUSY_BYTES_PER_S = 150e6
_STALLED_BYTES_PER_S = 1e6
_LOOK_S = 0.1
_LOOKS = 5  # until it is judged what more places brought
_REST = 20  # looks after more places that brought nothing, until there are more again
_GAIN = 1.4
_BEHIND = 4  # that came and wait to be worked off


class TransferQueue:
    """Serves few transfers at a time, in the order in which they came, as long as these few keep this process busy.

    A process that moves all it can is as late with the last of many equal transfers whether it serves them side by side
    or one after another. One after another, whoever was first begins to work while the others fetch, and pushes while
    they work, and what was pushed is folded while the next one pushes. Side by side all fetch, then all work, then all
    push, and the processors wait for the one process that serves, or that one for them.

    If those who are served take or give less than this process could move, because their networks are slower or because
    they hang, twice as many are let in, again and again as long as that moves more, until it is enough or nobody waits.
    So nobody waits for one that hangs for longer than a look, or for a slow one for longer than a few. Where more of
    them move no more, as on a machine that is busy with something else, few are served and the others wait: each that
    is served is some megabytes of memory here.

    What was pushed lies on disk until it is worked off. While several do, because that is slower than they come, no
    further push begins; fetches go on.

    Args:
        at_once: how many are served in any case.
        busy_bytes_per_s: what this process moves at the least when it is busy with nothing else.
        look_s: between two looks at how much was moved.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        at_once: int = _AT_ONCE,
        busy_bytes_per_s: float = _BUSY_BYTES_PER_S,
        look_s: float = _LOOK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._at_once = at_once
        self._busy_bytes_per_s = busy_bytes_per_s
        self._look_s = look_s
        self._clock = clock
        self._places = at_once
        self._served = 0
        self._behind = 0
        self._waiting: dict[asyncio.Future[None], bool] = {}  # and whether it is to push
        self._before: tuple[int, float] | None = None  # places and bytes per second, before there were more places
        self._rest = 0
        self._looks = 0
        self._moved_bytes = 0
        self._began_at = 0.0
        self._look: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._waiting)

    @asynccontextmanager
    async def place(self, size_bytes: int, *, pushes: bool = False) -> AsyncIterator[None]:
        """Wait until it is this one's turn, and have a place while the block runs.

        Args:
            size_bytes: what is to be moved; little of it waits for nobody and takes no place.
            pushes: whether it comes here, and is to be worked off then.
        """
        if size_bytes <= SMALL_BYTES:
            yield
            return
        await self._enter(pushes)
        try:
            yield
        finally:
            self._served -= 1
            self._let_in()

    @contextmanager
    def working_off(self, size_bytes: int) -> Iterator[None]:
        """Have something that was pushed lie here while the block runs; little of it counts for nothing."""
        counts = size_bytes > SMALL_BYTES
        self._behind += counts
        try:
            yield
        finally:
            self._behind -= counts
            if self._waiting:
                self._let_in()

    @property
    def _full(self) -> bool:
        return self._behind >= _BEHIND

    def moved(self, count: int) -> None:
        """Note that so many bytes went or came."""
        self._moved_bytes += count

    async def _enter(self, pushes: bool) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = pushes
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                del self._waiting[turn]
            else:  # it was let in at the same moment
                self._served -= 1
            self._let_in()
            raise

    def _let_in(self) -> None:
        full = self._full
        able = [turn for turn, pushes in self._waiting.items() if not (turn.done() or (full and pushes))]
        for turn in able[: max(0, self._places - self._served)]:
            del self._waiting[turn]
            self._served += 1
            turn.set_result(None)
        if not self._waiting:
            self._places, self._before, self._rest, self._looks = self._at_once, None, 0, 0
            if self._look is not None:
                self._look.cancel()
                self._look = None
        elif self._look is None:
            if not self._looks:
                self._moved_bytes, self._began_at = 0, self._clock()
            self._look = asyncio.get_running_loop().call_later(self._look_s, self._look_at_them)

    def _look_at_them(self) -> None:
        self._look = None
        self._looks += 1
        rate = self._moved_bytes / max(self._clock() - self._began_at, 1e-9)
        if rate < _STALLED_BYTES_PER_S or self._looks == (1 if self._before is None else _LOOKS):
            self._looks = 0
            self._judge(rate)
        self._let_in()

    def _judge(self, rate: float) -> None:
        """Choose how many are served from now on, of whom ``rate`` bytes per second were moved lately."""
        if rate >= self._busy_bytes_per_s:
            self._places, self._before = max(self._at_once, self._places // 2), None
        elif rate < _STALLED_BYTES_PER_S or (self._before is not None and rate >= _GAIN * self._before[1]):
            self._try_more(rate)
        elif self._before is not None:
            # One less than before: what seemed a gain was not always one.
            self._places, self._before, self._rest = max(self._at_once, self._before[0] - 1), None, _REST
        elif self._rest:
            self._rest -= 1
        elif self._served <= self._places:
            self._try_more(rate)

    def _try_more(self, rate: float) -> None:
        self._before = (self._places, rate)
        self._places = max(self._places, 2 * self._served)
