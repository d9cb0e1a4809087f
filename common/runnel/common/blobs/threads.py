"""Work that must not be torn in the middle, nor block the event loop."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ParamSpec, TypeVar

SMALL_BYTES = 64 << 10
"""To read, check or write so much takes less than the way to a thread and back."""

P = ParamSpec("P")
R = TypeVar("R")


async def to_its_end(work: Coroutine[Any, Any, R]) -> R:
    """Await ``work`` whole: if the caller is cancelled, ``work`` goes on and the cancellation is delivered at its end.

    Like :func:`asyncio.shield`, except that nothing is left running behind the caller's back.
    """
    return await _whole(asyncio.ensure_future(work))


async def _whole(work: asyncio.Future[R]) -> R:
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait((work,))
        except asyncio.CancelledError as error:
            cancelled = error
    try:
        if cancelled is not None:
            if not work.cancelled():
                work.exception()  # marks it as seen: the cancellation is what the caller asked for and gets
            raise cancelled
        return work.result()
    finally:
        del work, cancelled  # what is raised has this frame, and would keep itself and all that it went through


async def in_thread(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call ``function`` in a worker thread, like :func:`asyncio.to_thread`, but never return before the thread is done.

    A thread can't be cancelled. ``to_thread`` returns at once when its task is cancelled and leaves the thread at work,
    which then writes to a file that the caller has closed and deleted meanwhile.
    """
    call = partial(contextvars.copy_context().run, function, *args, **kwargs)
    # Not by to_thread, which would need a task to be waited for.
    return await _whole(asyncio.get_running_loop().run_in_executor(None, call))


async def by_size(nbytes: int, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call ``function``, which reads and writes so many bytes of files: here if they are few, else in a thread."""
    return function(*args, **kwargs) if nbytes <= SMALL_BYTES else await in_thread(function, *args, **kwargs)
