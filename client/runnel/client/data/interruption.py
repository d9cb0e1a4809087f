"""How a query is ended from another thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from runnel.common.errors import Cancelled, DeadlineExceeded

_AGAIN_S = 0.1


class Interruption:
    """Ends what blocks in a thread: by :meth:`cancel` from anywhere, or because its time is over.

    Whoever blocks says with :meth:`ended_by` how it is ended. That is called until it has ended: a driver asked in the
    moment before a query begins forgets that it was asked.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._reason: Cancelled | DeadlineExceeded | None = None
        self._end: Callable[[], object] | None = None

    def cancel(self) -> None:
        """End what is under way with :class:`~runnel.common.errors.Cancelled`; what begins later ends at once."""
        self._interrupt(Cancelled("The selection of data was called off."))

    def check(self) -> None:
        """Raise why it was interrupted, if it was.

        Raises:
            Cancelled: :meth:`cancel` was called.
            DeadlineExceeded: the time was over.
        """
        if self._reason is not None:
            raise self._reason

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Watch over this block: it is interrupted when ``seconds`` have passed, or when it is called off."""
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(seconds, over), name="interruption")
        watch.start()
        try:
            yield
        finally:
            over.set()
            self._wanted.set()
            watch.join()
            if self._reason is None:
                self._wanted.clear()

    @contextlib.contextmanager
    def ended_by(self, end: Callable[[], object]) -> Iterator[None]:
        """Call ``end`` while this block goes on after an interruption; what it raises then is that of :meth:`check`."""
        with self._lock:
            self._end = end
        try:
            self.check()
            yield
            self.check()
        except Exception:
            self.check()
            raise
        finally:
            with self._lock:
                self._end = None

    def _watch(self, seconds: float, over: threading.Event) -> None:
        if not self._wanted.wait(seconds):
            self._interrupt(DeadlineExceeded(f"The selection of data took longer than {seconds:g} s.", limit_s=seconds))
        while not over.is_set() and self._reason is not None:
            with self._lock:
                if self._end is not None:
                    self._end()
            over.wait(_AGAIN_S)

    def _interrupt(self, reason: Cancelled | DeadlineExceeded) -> None:
        with self._lock:
            if self._reason is None:
                self._reason = reason
        self._wanted.set()
