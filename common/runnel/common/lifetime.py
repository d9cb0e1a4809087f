"""The life of a process: signals at one end, an exit status at the other.

Exit statuses: 0 it ended as asked (also after a drain), 1 an error, 2 bad settings, 130 interrupted before it was done.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

import structlog

from runnel.common.errors import BadSettings, RunnelError
from runnel.common.logs import mask

OK = 0
FAILED = 1
BAD_SETTINGS = 2
INTERRUPTED = 130

E = TypeVar("E", bound=BaseException)

_log = structlog.get_logger()


async def run_until_signal(
    main: Callable[[asyncio.Event], Awaitable[None]],
    *,
    signals: Iterable[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
) -> None:
    """Run ``main(stop)``; the first signal sets ``stop``, the second cancels ``main``, the third kills the process.

    ``main`` watches ``stop`` and then drains: refuses new work, ends the present, closes. That is a normal end. Runs in
    the main thread only, where Python delivers signals; handlers are put back as they were.

    Raises:
        asyncio.CancelledError: the second signal (or the caller) cut it off.
        BaseException: whatever ``main`` raised.
    """
    task = asyncio.current_task()
    assert task is not None
    stop = asyncio.Event()

    def received(number: signal.Signals) -> None:
        if not stop.is_set():
            stop.set()
            _log.info("stopping", signal=number.name, again="stops at once")
            return
        _log.warning("stopping at once", signal=number.name)
        for each in signals:
            # Whoever asks a third time gets what the operating system does by itself.
            asyncio.get_running_loop().remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        task.cancel(f"second signal, {number.name}")

    signals = tuple(signals)
    with _handlers(signals, received):
        await main(stop)


@contextmanager
def _handlers(signals: tuple[signal.Signals, ...], received: Callable[[signal.Signals], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    before = {each: signal.getsignal(each) for each in signals}
    for each in signals:
        loop.add_signal_handler(each, received, each)
    try:
        yield
    finally:
        for each, handler in before.items():
            loop.remove_signal_handler(each)
            signal.signal(each, handler)


def main_process(
    main: Callable[[], Coroutine[Any, Any, None]], *, debug: bool = False, stream: TextIO | None = None
) -> int:
    """Run ``main()`` in an event loop of its own and return the exit status of the process.

    Args:
        main: the whole program; usually it ends in :func:`run_until_signal`.
        debug: asyncio's debug mode.
        stream: where the one line about an error goes; None stands for standard error.

    A :class:`RunnelError`, also one in an exception group, becomes one readable line; an error of the operating system
    too. Any other exception is a defect and leaves its traceback.
    """
    try:
        with asyncio.Runner(debug=debug) as runner:
            runner.run(main())
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 (the outermost edge: every error becomes a line and a status)
        return report(error, stream=stream)
    except BaseExceptionGroup as error:
        # Only a group with a KeyboardInterrupt or SystemExit in it gets here.
        return report(error, stream=stream)
    return OK


def report(error: BaseException, *, stream: TextIO | None = None) -> int:
    """Write ``error`` to ``stream`` (None: standard error) as :func:`main_process` does, and return its exit status."""
    stream = sys.stderr if stream is None else stream
    known = first_error(error)
    if known is None:
        if _leaves(error, KeyboardInterrupt):
            return INTERRUPTED
        traceback.print_exception(error, file=stream)
        print(f"runnel: unexpected {type(error).__name__}: {mask(str(error))}", file=stream)
        return FAILED
    print(f"runnel: {' '.join(mask(str(known)).split())}", file=stream)
    return BAD_SETTINGS if isinstance(known, BadSettings) else FAILED


def first_error(error: BaseException) -> RunnelError | OSError | None:
    """Return the first error with a message for people: a :class:`RunnelError` if there is one, else an ``OSError``.

    Exception groups are searched depth first. A group that also holds an unexpected exception counts as unexpected,
    except beside a :class:`RunnelError`, which is then most likely its cause.
    """
    found = _leaves(error, RunnelError)
    if found:
        return found[0]
    everything = _leaves(error, BaseException)
    systems = [leaf for leaf in everything if isinstance(leaf, OSError) and leaf.strerror]
    return systems[0] if len(systems) == len(everything) else None


def _leaves(error: BaseException, kind: type[E]) -> list[E]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner, kind)]
    return [error] if isinstance(error, kind) else []
