"""Tells when a child process has ended, without reaping it: until then its number can belong to nobody else."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from types import TracebackType


class ExitWatch:
    """Sets ``exited`` when child ``pid`` has ended; the child stays a zombie until its starter reaps it.

    Linux tells through a file descriptor. Where there is none a thread of its own waits: a shared pool would be used up
    by a few long runs.

    Args:
        pid: of the child.
        descriptor: of this process (``pidfd_open``), which need not be a child then; it is closed at the end.
    """

    def __init__(self, pid: int, *, descriptor: int | None = None) -> None:
        self.exited = asyncio.Event()
        self._pid = pid
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor

    def __enter__(self) -> ExitWatch:
        try:
            if self._descriptor is None:
                self._descriptor = os.pidfd_open(self._pid)
        except (AttributeError, OSError):  # not Linux, or a kernel or sandbox without it
            threading.Thread(target=self._wait, name=f"exit of {self._pid}", daemon=True).start()
        else:
            self._loop.add_reader(self._descriptor, self._ended)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._forget()

    def _ended(self) -> None:
        self._forget()
        self.exited.set()

    def _forget(self) -> None:
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _wait(self) -> None:
        with suppress(ChildProcessError):  # reaped meanwhile, so it has ended as well
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self.exited.set)
