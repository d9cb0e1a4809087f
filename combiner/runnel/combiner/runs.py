"""Runs of tasks on their way through a combiner: nothing of them outlives it.

Orders and decisions go down to whoever may lead to their client, news go up, and files are passed on before they are
called complete. What is remembered, which run is whose and the newest news of each, only bridges breaks of the way up.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from runnel.combiner.domain import Membership
from runnel.common.blobs import Leftovers, Spool, SpoolFile
from runnel.common.crash_points import CrashPoint, reach
from runnel.common.errors import (
    DeadlineExceeded,
    Forbidden,
    IllegalState,
    NotFound,
    RunnelError,
    StorageFull,
    Unreachable,
)
from runnel.common.protocol import (
    ENDED,
    BlobRef,
    CatalogueWanted,
    Downward,
    TaskNews,
    TaskOrder,
    TaskRelease,
    TaskSettled,
)
from runnel.transport import NodeIdentity, UplinkLink

log = structlog.get_logger()

_ASK_DEADLINE_S = 30.0
_PUSH_DEADLINE_S = 3600.0
_SMALL_BYTES = 64 << 10
"""A file of at most so many bytes is not asked for first: pushing it tells as much."""

_LOOK_LATER_S = 0.1  # than what was left is over


@dataclass(slots=True)
class _Waiting:
    """A whole file that could not be passed on: of which node and run, and until when it waits for the next attempt."""

    node: str
    run_id: str
    until: float


class Runs:
    """See the module.

    Args:
        name: of this combiner.
        membership: who is below.
        link: the way up.
        send_down: sends to a directly attached node, if it is there.
        folder: scratch for files on their way; emptied at the start.
        keep_s: for how long what a lost node had begun to push waits for it, and a whole file that could not be
            passed on for the next attempt.
    """

    def __init__(
        self,
        name: str,
        *,
        membership: Membership,
        link: UplinkLink,
        send_down: Callable[[str, Downward], None],
        folder: Path,
        keep_s: float,
    ) -> None:
        self._name = name
        self._membership = membership
        self._link = link
        self._send_down = send_down
        self._spool = Spool(folder, durable=False)
        self._spool.wipe()
        self._left = Leftovers(self._spool, keep_s)
        self._keep_s = keep_s
        self._begun: dict[str, set[str]] = {}  # runs of which files are under way, by node
        self._waiting: dict[Path, _Waiting] = {}
        self._newest: dict[str, tuple[str, TaskNews]] = {}  # by run: the child that said it, and what

    # ---- down

    def down(self, message: TaskOrder | TaskSettled | TaskRelease | CatalogueWanted) -> None:
        """Pass on what is for one client, by all ways that may lead to it."""
        if isinstance(message, TaskOrder):
            reach(CrashPoint.RUN_ARRIVED)
            self._membership.takes_run(message.client, message.run_id)
        elif isinstance(message, TaskSettled):
            reach(CrashPoint.RUN_SETTLED_ABOVE)
            self._membership.lets_run_go(message.client, message.run_id)
            self._newest.pop(message.run_id, None)
            self._drop(lambda each: each.run_id == message.run_id)
            self._forget_begun(message.run_id)
        for child in self._membership.ways(message.client):
            self._send_down(child, message)

    # ---- up

    def news(self, child: str, news: TaskNews) -> None:
        """Pass on what a client below ``child`` says of its run; lines alone only if there is room for them."""
        if child not in self._membership.ways(news.client):
            log.warning("news of a client that is elsewhere", child=child, client=news.client, run=news.run_id)
            return
        _, before = self._newest.get(news.run_id, ("", None))
        changed = before is None or (before.state, before.detail) != (news.state, news.detail)
        if before is None or before.state not in ENDED:
            self._newest[news.run_id] = (child, dataclasses.replace(news, lines=()))
        if changed or news.state in ENDED:
            self._link.send(news)
        else:
            self._link.offer(news)

    def attached(self) -> None:
        """The way up is there again: say the newest of each run, as what was said meanwhile went nowhere."""
        runs = list(self._newest)
        newest = (self._newest[run_id][1] for run_id in runs if run_id in self._newest)
        self._link.send_each(newest, len(runs))

    def left(self, child: str) -> None:
        """A node below is gone: its news come by another way now, and what it had begun to push waits a while."""
        self._newest = {run_id: each for run_id, each in self._newest.items() if each[0] != child}
        self._drop(lambda each: each.node == child)
        for run_id in self._begun.pop(child, ()):
            self._left.leave(f"{run_id}/{child}", child)
            asyncio.get_running_loop().call_later(self._keep_s + _LOOK_LATER_S, self._left.expire)

    # ---- files

    async def open_push(self, identity: NodeIdentity, run_id: str, ref: BlobRef) -> SpoolFile | None:
        """Return where a file of a run goes; None: those above have it.

        Raises:
            Forbidden: no client below this node holds that run.
            IllegalState: it ended meanwhile.
            Unreachable: there is no way up at the moment.
            RunnelError: why those above do not take it.
        """
        if not self._membership.holds_run(identity.name, run_id):
            raise Forbidden(
                f"Run {run_id} is not one of {identity.name} or of those below it.", run=run_id, node=identity.name
            )
        begun = self._begun.setdefault(identity.name, set())
        begun.add(run_id)
        if ref.size_bytes > _SMALL_BYTES and await self._link.probe(run_id, ref, deadline_s=_ASK_DEADLINE_S):
            return None
        key = f"{run_id}/{identity.name}"
        self._left.take_up(key, identity.name, ref.sha256)
        file = await asyncio.to_thread(self._spool.open, key, ref)
        if (waiting := self._waiting.get(file.whole)) is not None:
            self._wait(file.whole, waiting.node, waiting.run_id)  # it is about to be passed on
        try:
            await asyncio.to_thread(file.require_room)
        except StorageFull as error:
            log.error("no room for a file of a run", node=identity.name, run=run_id, error=str(error))
            raise
        if run_id not in begun:
            self._spool.forget(key)
            raise IllegalState(f"Run {run_id} has ended; its file is not taken any more.", run=run_id)
        return file

    def _forget_begun(self, run_id: str) -> None:
        """Remove what nodes had begun to push of a run, though they are attached."""
        for name, begun in self._begun.items():
            if run_id in begun:
                begun.discard(run_id)
                self._spool.forget(f"{run_id}/{name}")

    async def pushed(self, identity: NodeIdentity, run_id: str, ref: BlobRef, file: Path) -> None:
        """Pass a verified file on; returns when it is durable at the reducer.

        Raises:
            RunnelError: it could not be passed on, or those above do not take it.
        """
        reach(CrashPoint.RUN_FILE_RECEIVED)
        self._waiting.pop(file, None)
        try:
            await self._link.push(run_id, file, ref, deadline_s=_PUSH_DEADLINE_S)
        except (Unreachable, DeadlineExceeded, asyncio.CancelledError):
            # For the next attempt, be it of who is cut off now; a run that is over has none.
            if self._membership.holds_run(identity.name, run_id):
                self._wait(file, identity.name, run_id)
            else:
                self._remove(file)
            raise
        except FileNotFoundError as error:
            raise NotFound(
                f"The file of run {run_id} waited here too long and is gone.", hint="It has to be pushed again."
            ) from error
        except RunnelError:
            await asyncio.to_thread(file.unlink, missing_ok=True)
            raise
        await asyncio.to_thread(file.unlink, missing_ok=True)
        self._begun.get(identity.name, set()).discard(run_id)

    def _wait(self, file: Path, node: str, run_id: str) -> None:
        loop = asyncio.get_running_loop()
        self._waiting[file] = _Waiting(node=node, run_id=run_id, until=loop.time() + self._keep_s)
        loop.call_later(self._keep_s + _LOOK_LATER_S, lambda: self._drop(lambda each: each.until <= loop.time()))

    def _drop(self, over: Callable[[_Waiting], bool]) -> None:
        """Remove the files for which ``over`` is true; it takes no longer than their directory entries."""
        for file in [file for file, each in self._waiting.items() if over(each)]:
            del self._waiting[file]
            self._remove(file)

    @staticmethod
    def _remove(file: Path) -> None:
        file.unlink(missing_ok=True)
