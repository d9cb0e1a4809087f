"""How often and how long to try again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

import tenacity

from runnel.common.errors import RunnelError, Unreachable

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential backoff with jitter.

    The n-th wait is drawn evenly from ``[(1 - jitter) * d, d]`` with ``d = min(max_s, initial_s * multiplier**n)``, so
    that many nodes that lost the same peer do not come back in the same moment.

    Args:
        initial_s: longest first wait.
        max_s: longest wait.
        multiplier: growth from wait to wait.
        jitter: share of a wait that is random, 0 to 1.
        attempts: most calls in all; None: no limit.
        total_s: most seconds in all, measured from the first call; None: no limit.
    """

    initial_s: float = 0.1
    max_s: float = 5.0
    multiplier: float = 2.0
    jitter: float = 0.5
    attempts: int | None = None
    total_s: float | None = None

    def delays(self, random: Random) -> Iterator[float]:
        """Yield the waits in seconds, without end."""
        longest = self.initial_s
        while True:
            yield longest * (1.0 - self.jitter * random.random())
            longest = min(self.max_s, longest * self.multiplier)

    async def call(
        self,
        function: Callable[[], Awaitable[R]],
        *,
        retry_on: tuple[type[RunnelError], ...] = (Unreachable,),
        deadline_s: float | None = None,
        random: Random | None = None,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> R:
        """Await ``function()`` until it succeeds, raises something else, or a limit is reached.

        Args:
            function: must be safe to do twice (it carries an idempotency key, or changes nothing).
            retry_on: the errors after which trying again may help.
            deadline_s: seconds left for all of it. A wait that would end after it is not begun.
            random: of the jitter.
            sleep: how to wait.

        Raises:
            RunnelError: the last error, when no further attempt fits the limits.
        """
        delays = self.delays(random or Random(time.monotonic_ns()))  # noqa: S311 - jitter, not a secret
        stops: list[tenacity.stop.stop_base] = []
        if self.attempts is not None:
            stops.append(tenacity.stop_after_attempt(self.attempts))
        stops.extend(tenacity.stop_before_delay(limit) for limit in (self.total_s, deadline_s) if limit is not None)
        async for attempt in tenacity.AsyncRetrying(
            wait=lambda _: next(delays),
            stop=tenacity.stop_any(*stops) if stops else tenacity.stop_never,
            retry=tenacity.retry_if_exception_type(retry_on),
            sleep=sleep,
            reraise=True,
        ):
            with attempt:
                return await function()
        raise AssertionError("the retries ended without a result or an error")
