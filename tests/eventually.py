"""Waiting for a condition instead of for a while."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, overload

T = TypeVar("T")

_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.05


class _Attempts:
    """Ask until the answer is true; keep the last assertion for the message."""

    def __init__(self, check: Callable[[], object], timeout_s: float, state: Callable[[], object] | None) -> None:
        self._check = check
        self._state = state
        self._timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s
        self._pause_s = _FIRST_PAUSE_S
        self._last: AssertionError | None = None

    @contextmanager
    def attempt(self) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:
            self._last = error

    def pause_s(self) -> float:
        """Return how long to wait before the next attempt; raise when the time is over."""
        if time.monotonic() >= self._end:
            wanted = inspect.getsource(self._check).strip() if inspect.isfunction(self._check) else repr(self._check)
            state = f"\nstate: {self._state()}" if self._state else ""
            raise AssertionError(f"not within {self._timeout_s} s: {wanted}{state}") from self._last
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        return self._pause_s


@overload
async def eventually(
    check: Callable[[], Awaitable[T]], *, timeout_s: float = ..., state: Callable[[], object] | None = ...
) -> T: ...
@overload
async def eventually(
    check: Callable[[], T], *, timeout_s: float = ..., state: Callable[[], object] | None = ...
) -> T: ...
async def eventually(
    check: Callable[[], object], *, timeout_s: float = 30.0, state: Callable[[], object] | None = None
) -> object:
    """Return the first true answer of ``check()`` (or of what it returns to await); an AssertionError is a "not yet".

    Raises:
        AssertionError: none came in ``timeout_s``; the message has the source of the check and, if given, ``state()``.
    """
    attempts = _Attempts(check, timeout_s, state)
    while True:
        with attempts.attempt():
            answer = check()
            found = await answer if inspect.isawaitable(answer) else answer
            if found:
                return found
        await asyncio.sleep(attempts.pause_s())


def eventually_blocking(
    check: Callable[[], T], *, timeout_s: float = 30.0, state: Callable[[], object] | None = None
) -> T:
    """Do what :func:`eventually` does where there is no event loop: in tests of real processes."""
    attempts = _Attempts(check, timeout_s, state)
    while True:
        with attempts.attempt():
            if found := check():
                return found
        time.sleep(attempts.pause_s())


def let_pass(seconds: float) -> None:
    """Let the event loop of this test take it that ``seconds`` have passed: what waits for a time-out is at it now.

    How long anything takes on the machine has no part in it. Only the loop's timers are moved, not ``time.monotonic``.
    """
    loop = asyncio.get_running_loop()
    now = loop.time
    loop.time = lambda: now() + seconds  # type: ignore[method-assign]
