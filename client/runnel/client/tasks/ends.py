"""How runs ended, on the way up: looked at where the site wants that, pushed, told, and told again."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Awaitable
from typing import Protocol

import structlog

from runnel.client.tasks.book import HeldRun, RunBook
from runnel.client.tasks.failures import failure_of
from runnel.client.tasks.news import RunNews
from runnel.client.tasks.release import Decisions
from runnel.common.blobs import Source, in_thread
from runnel.common.crash_points import CrashPoint, reach
from runnel.common.errors import (
    CorruptData,
    IllegalState,
    InvalidInput,
    ResultsBlocked,
    RunnelError,
    StorageFull,
    TooLarge,
)
from runnel.common.protocol import BlobRef, RunResult, RunState, TaskNews

_LOOK_S = 1.0
_AGAIN_S = 5.0
_PUSH_DEADLINE_S = 3600.0

log = structlog.get_logger()


class WayUp(Protocol):
    """What runs need of the client's link."""

    @property
    def attached(self) -> bool:
        """Whether the client is attached now."""
        ...

    def send(self, message: TaskNews) -> bool:
        """Send up, in order."""
        ...

    def offer(self, message: TaskNews) -> bool:
        """Send up what may be lost."""
        ...

    def leave(self) -> None:
        """Attach anew."""
        ...

    def push(self, order_id: str, source: Source, ref: BlobRef, *, deadline_s: float) -> Awaitable[object]:
        """Push a file."""
        ...


class RunEnds:
    """Tells the network how runs ended.

    Args:
        name: of the client.
        book: that has them.
        decisions: of the site's people.
        link: the way up.
        news: what is said of runs.
    """

    def __init__(self, name: str, book: RunBook, decisions: Decisions, link: WayUp, news: RunNews) -> None:
        self._name = name
        self._book = book
        self._decisions = decisions
        self._link = link
        self._news = news
        self._attachment = asyncio.Event()

    def attached(self) -> None:
        """The client is attached anew: who was above may know nothing of what was told to it."""
        self._attachment.set()
        self._attachment = asyncio.Event()

    async def tell(self, held: HeldRun) -> None:
        """Tell how a run ended, again over each attachment, until this is cancelled."""
        if held.reviewed:
            held = await self._decided(held)
        run_id = held.run_id
        while True:
            # Taken before anything is sent: an attachment that comes meanwhile has to hear it again.
            attachment = self._attachment
            if self._link.attached:
                try:
                    held = await self._deliver(held)
                except StorageFull as error:
                    log.error("no room above; trying again", run=run_id, error=str(error), again_in_s=_AGAIN_S)
                    self._news.state(run_id, RunState.PUSHING, error.message)
                    await asyncio.sleep(_AGAIN_S)
                    continue
                except IllegalState as error:
                    log.info("the network takes no files of a run", run=run_id, error=str(error))
                except (RunnelError, OSError) as error:
                    log.warning("the end of a run was not delivered; it is kept", run=run_id, error=str(error))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_AGAIN_S):
                            await attachment.wait()
                    continue
            await attachment.wait()

    async def _deliver(self, held: HeldRun) -> HeldRun:
        """Push the files of a run, and say how it ended."""
        run_id, result = held.run_id, _result(held)
        if result.files:
            self._news.state(run_id, RunState.PUSHING)
        started = time.monotonic()
        try:
            for number, each in enumerate(result.files):
                path = self._book.file(run_id, number)
                await self._link.push(run_id, path, each.blob, deadline_s=_PUSH_DEADLINE_S)
        except (TooLarge, InvalidInput, CorruptData) as error:
            log.error("the results of a run were refused", run=run_id, code=error.code, error=str(error))
            held = await in_thread(self._book.replace_result, run_id, failure=failure_of(error))
            result = _result(held)
        reach(CrashPoint.RUN_PUSHED)
        elapsed_s = dict(result.elapsed_s) | {"push": time.monotonic() - started}
        state = RunState.REJECTED if held.rejected else RunState.DONE if result.failure is None else RunState.FAILED
        self._news.state(run_id, state, "", dataclasses.replace(result, elapsed_s=elapsed_s))
        return held

    async def _decided(self, held: HeldRun) -> HeldRun:
        """Wait until somebody has looked at the results of a run."""
        run_id = held.run_id
        self._news.state(run_id, RunState.AWAITING_RELEASE, f"somebody at {self._name} has to look at its results")
        while True:
            try:
                decision = await in_thread(self._decisions.of, run_id)
                if decision is not None:
                    break
            except CorruptData as error:
                log.error("a decision can't be read", run=run_id, error=str(error))
            await asyncio.sleep(_LOOK_S)
        log.info("results decided", run=run_id, release=decision.release, by=decision.by)
        if decision.release:
            return await in_thread(self._book.released, run_id)
        blocked = ResultsBlocked(
            f"Somebody at {self._name} looked at the results of the run, and they stay there.",
            hint=f"The reason: {decision.reason}" if decision.reason else "Ask the people of that site.",
        )
        return await in_thread(self._book.replace_result, run_id, failure=failure_of(blocked), rejected=True)


def _result(held: HeldRun) -> RunResult:
    if held.result is None:
        raise AssertionError("it has not ended")
    return held.result
