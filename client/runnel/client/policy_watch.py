"""The policy file of a running client: looked at once a second, and taken over when it has changed and is right."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from runnel.client.policy_file import SitePolicy
from runnel.common.errors import BadSettings, RunnelError

_LOOK_S = 1.0

_Signature = tuple[int, int, int] | None
_UNREAD: _Signature = (-1, -1, -1)

log = structlog.get_logger()


class PolicyWatch:
    """Reads a policy file again when it changes, or when somebody asks for it.

    A file is read once two looks in succession find it as it is: half of a policy may allow what the whole does not.

    Args:
        path: the file.
        read: reads and checks it; raises :class:`BadSettings` if it is wrong. Blocks.
        adopt: makes a policy the site's, unless it is; raises :class:`BadSettings` if it does not fit.
        reject: is told what is wrong with the file; the policy before it stays.
        look_s: seconds between two looks.
    """

    def __init__(
        self,
        path: Path,
        *,
        read: Callable[[], SitePolicy],
        adopt: Callable[[SitePolicy], Awaitable[None]],
        reject: Callable[[str], Awaitable[None]],
        look_s: float = _LOOK_S,
    ) -> None:
        self._path = path
        self._read = read
        self._adopt = adopt
        self._reject = reject
        self._look_s = look_s
        self._asked = asyncio.Event()
        # It may have changed since it was read at the start, so it is read once more.
        self._taken: _Signature = _UNREAD
        self._seen: _Signature = _UNREAD

    def look_now(self) -> None:
        """Read the file at once, whether it has changed or not."""
        self._asked.set()

    async def run(self) -> None:
        """Follow the file until cancelled."""
        while True:
            with suppress(TimeoutError):  # nobody asked
                async with asyncio.timeout(self._look_s):
                    await self._asked.wait()
            await self.look()

    async def look(self) -> None:
        """Look at the file once, and read it if that is due."""
        asked = self._asked.is_set()
        self._asked.clear()
        before, self._seen = self._seen, await asyncio.to_thread(_signature, self._path)
        if asked or (self._seen == before != self._taken):
            self._taken = self._seen
            await self._take()

    async def _take(self) -> None:
        try:
            try:
                await self._adopt(await asyncio.to_thread(self._read))
            except BadSettings as error:
                log.error("the policy file is wrong; the policy before it stays", error=str(error))
                await self._reject(str(error))
        except (RunnelError, OSError) as error:  # of the audit log: without it no policy is taken over
            log.error("the policy is not taken over, for that can't be written down", error=str(error))


@contextmanager
def on_hangup(do: Callable[[], None]) -> Iterator[None]:
    """Call ``do`` at each SIGHUP while the block runs; of no effect outside the main thread, where no signals come."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGHUP)
    loop.add_signal_handler(signal.SIGHUP, do)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, before)


def _signature(path: Path) -> _Signature:
    try:
        found = path.stat()
    except OSError:  # it is being replaced, or gone, which reading it tells
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
